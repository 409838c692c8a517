//! Pods come and go.

use anyhow::{Result, ensure};
use lb_tests::{
    cluster::{PATIENCE, Reach, vips, with_agents},
    netns::until,
};
use serde_json::json;

/// With either policy, over both families: who is told to end serves its last seconds, and new requests go elsewhere.
///
/// A4.1, A4.2, A4.4, A4.6
#[test]
fn a_rolling_update_loses_no_request() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("rolling")?;
        space.spread("web", 2)?;
        space.service("web", &vips(30), &json!({}))?;
        let near = json!({"selector": {"app": "web"}, "externalTrafficPolicy": "Local"});
        space.service("near", &vips(31), &near)?;
        let [first, second] = [vips(30), vips(31)].map(|vips| agents.serve_vips(vips));
        let servers = [first?, second?].concat();
        let old = space.pods("web", None)?;
        cluster.under_load(&servers, || {
            space.kubectl(&["rollout", "restart", "deployment/web"])?;
            space.settled("web")
        })?;
        servers.into_iter().try_for_each(|server| {
            until(PATIENCE, || {
                let answered = cluster.answering(server)?;
                ensure!(answered.is_disjoint(&old), "{server}: {answered:?}");
                Ok(())
            })
        })
    })
}

/// A3.5, A4.6, A6.1, A6.2, A6.3, A6.4, A7.1, A7.2
#[test]
fn one_pod_becomes_fifty_then_none_then_one() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("scale")?;
        space.servers("web", 1)?;
        space.service("web", &vips(32), &json!({}))?;
        let servers = agents.serve_vips(vips(32))?;
        let mut clients = Vec::new();
        for server in servers {
            let client = cluster.datagrams(server)?;
            client.ask("hostname")?;
            clients.push(client);
        }
        space.scale("web", 50)?;
        for server in servers {
            for node in cluster.nodes()? {
                until(PATIENCE, || {
                    let ready = agents.served(&node, server)?.ready;
                    ensure!(ready == 50, "{server} on {node}: {ready} ready");
                    Ok(())
                })?;
            }
            let answered = cluster.answering(server)?;
            ensure!(answered.len() > 10, "{server}: {answered:?}");
        }
        space.scale("web", 0)?;
        for (server, client) in servers.into_iter().zip(&clients) {
            cluster.wait_until(Reach::Refused, server)?;
            until(PATIENCE, || client.ensure_refused())?;
        }
        space.scale("web", 1)?;
        let one = space.pods("web", None)?;
        for (server, client) in servers.into_iter().zip(&clients) {
            cluster.wait_for(server)?;
            until(PATIENCE, || {
                let answered = client.ask("hostname")?;
                ensure!(one.contains(&answered), "{server}: {answered} of {one:?}");
                Ok(())
            })?;
        }

        // A node that has none says nothing, so that another one can be tried.
        let local = json!({"externalTrafficPolicy": "Local"});
        space.edit("service", "web", &local)?;
        for node in cluster.nodes()? {
            let reach = match space.pods("web", Some(&node))?.len() {
                0 => Reach::Silent,
                _ => Reach::Answered,
            };
            for server in servers {
                cluster.route(server.ip(), &node)?;
                cluster.wait_until(reach, server)?;
            }
        }
        Ok(())
    })
}

/// A4.1, A4.4
#[test]
fn a_drained_node_loses_no_request() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("drain")?;
        space.spread("web", 1)?;
        space.service("web", &vips(33), &json!({}))?;
        let servers = agents.serve_vips(vips(33))?;
        let stay = space.pods_elsewhere("web", "node2")?;
        cluster.under_load(&servers, || {
            let selector = "--pod-selector=app=web";
            cluster.kubectl(&["drain", "node2", "--ignore-daemonsets", selector])?;
            for server in servers {
                let answered = cluster.answering(server)?;
                ensure!(answered == stay, "{server}: {answered:?} of {stay:?}");
            }
            cluster.kubectl(&["uncordon", "node2"])?;
            space.settled("web")
        })
    })
}
