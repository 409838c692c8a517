//! Parts of the control plane are away; who forwards packets asks none of them.

use std::{env, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{Agents, Cluster, PATIENCE, Space, vips, with_agents},
    netns::until,
};
use serde_json::json;

/// How long the API server is away: a minute, or as many as `MILLRACE_OUTAGE_MINUTES` says.
fn outage() -> Result<Duration> {
    let minutes = env::var("MILLRACE_OUTAGE_MINUTES");
    let minutes = minutes.map_or(Ok(1), |text| text.parse());
    Ok(Duration::from_mins(
        minutes.context("MILLRACE_OUTAGE_MINUTES")?,
    ))
}

/// What is said to the API server comes to the agents: a VIP that goes, and comes back.
fn heard(cluster: &Cluster, space: &Space<'_>, agents: &Agents<'_>, number: u8) -> Result<()> {
    cluster.wait_for_api()?;
    let [v4, v6] = vips(number);
    until(PATIENCE, || space.addresses("web", &[v4]))?;
    agents.release("node1", v6)?;
    space.addresses("web", &[v4, v6])?;
    agents.serve("node1", SocketAddr::new(v6, 80))
}

/// Neither clients nor agents notice, and what changes afterwards is heard of.
///
/// A11.6
#[test]
fn an_api_server_that_is_away_is_not_missed() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("outage")?;
        space.spread("web", 1)?;
        space.service("web", &vips(50), &json!({}))?;
        let servers = agents.serve_vips(vips(50))?;
        let away = cluster.stop("kube-apiserver")?;
        cluster.under_load(&servers, || {
            thread::sleep(outage()?);
            for node in cluster.nodes()? {
                agents.ensure_healthy(&node)?;
            }
            Ok(())
        })?;
        away.start()?;
        heard(cluster, &space, agents, 50)?;
        // Controllers thought them dead.
        for node in cluster.nodes()? {
            cluster.wait_for_node(&node, true)?;
        }
        space.settled("web")?;
        agents.serve("node1", servers[0])?;
        let away = cluster.stop("etcd")?;
        cluster.answering(servers[0])?;
        away.start()?;
        heard(cluster, &space, agents, 50)
    })
}

/// New agents take over what the old ones left in the kernel: no request fails, and a client's datagrams go where they
/// went before.
///
/// A7.4, A13.4
#[test]
fn agents_are_replaced_under_load() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("replaced")?;
        space.spread("web", 2)?;
        space.service("web", &vips(51), &json!({}))?;
        let servers = agents.serve_vips(vips(51))?;
        let mut clients = Vec::new();
        for server in servers {
            for _ in 0..8 {
                clients.push(until(PATIENCE, || {
                    let client = cluster.datagrams(server)?;
                    let answered = client.ask("hostname")?;
                    Ok((client, answered))
                })?);
            }
        }
        cluster.under_load(&servers, || agents.restart())?;
        for (client, before) in &clients {
            let answered = client.ask("hostname")?;
            ensure!(answered == *before, "{answered}, before {before}");
        }
        Ok(())
    })
}
