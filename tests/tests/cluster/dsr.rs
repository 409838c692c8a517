//! `dsr`: pods of other nodes get the client's own packets through tunnels, and answer the client themselves.

#[path = "dsr/transfers.rs"]
mod transfers;
#[path = "dsr/way.rs"]
mod way;

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    cluster::{Agents, Call, Cluster, PATIENCE, Space, vips, with_tunnels},
    netns::until,
};
use lb_userspace::doctor::{Line, State};
use serde_json::json;

/// Connections to each family's frontend. With a third of the pods here, as on three nodes, 5 in a million times all go to
/// the others.
const CALLS: usize = 30;

/// A pod on each node behind VIPs that node 1 has, all of it by the packet path.
fn serve(agents: &Agents<'_>, space: &Space<'_>, number: u8) -> Result<[SocketAddr; 2]> {
    space.spread("web", 1)?;
    space.service("web", &vips(number), &json!({}))?;
    let pods = space.pods("web", None)?;
    let servers = agents.serve_vips(vips(number))?;
    for server in servers {
        let answered = agents.serve_wholly("node1", server)?;
        ensure!(answered == pods, "{server}: {answered:?} of {pods:?}");
    }
    Ok(servers)
}

/// A node without the one pod of `web`, for clients to come in by, and the one that has it.
fn around(cluster: &Cluster, space: &Space<'_>) -> Result<[String; 2]> {
    let [mut entry, mut home] = [None, None];
    for node in cluster.nodes()? {
        let has = !space.pods("web", Some(&node))?.is_empty();
        *(if has { &mut home } else { &mut entry }) = Some(node);
    }
    Ok([
        entry.context("a node without the pod")?,
        home.context("the pod's node")?,
    ])
}

/// Connections of both kinds: to the pod of node 1, and to those of other nodes.
fn calls(cluster: &Cluster, server: SocketAddr) -> Result<[Vec<Call>; 2]> {
    let mut calls = [Vec::new(), Vec::new()];
    for caller in cluster.callers(CALLS, server.is_ipv6())? {
        let call = caller.call(server)?;
        let mut tracking = Vec::new();
        for node in cluster.nodes()? {
            if !cluster.tracked(&node, call.from)?.is_empty() {
                tracking.push(node);
            }
        }
        let [node] = &tracking[..] else {
            bail!("{}: tracked on {tracking:?}", call.from);
        };
        calls[usize::from(node != "node1")].push(call);
    }
    ensure!(calls.iter().all(|calls| !calls.is_empty()), "{calls:?}");
    Ok(calls)
}

/// The node that the client's packets come to does not track what goes to the other one, whose pod sees the client all the
/// same.
///
/// A4.1, A10.1
#[test]
fn pods_of_all_nodes_see_the_client() -> Result<()> {
    with_tunnels(|cluster, agents| {
        let space = cluster.space("dsr")?;
        for server in serve(agents, &space, 150)? {
            for mut call in calls(cluster, server)?.into_iter().flatten() {
                let seen = call.seen()?;
                ensure!(seen == call.from, "{}: {seen}", call.from);
            }
            for _ in 0..CALLS {
                cluster.ensure_seen(server)?;
            }
        }
        Ok(())
    })
}

/// A13.4
#[test]
fn connections_outlive_the_agents_of_both_nodes() -> Result<()> {
    with_tunnels(|cluster, agents| {
        let space = cluster.space("outlive")?;
        let mut all = Vec::new();
        for server in serve(agents, &space, 152)? {
            all.extend(calls(cluster, server)?.into_iter().flatten());
        }
        agents.restart()?;
        for call in &mut all {
            let seen = call.seen()?;
            ensure!(seen == call.from, "{}: {seen}", call.from);
        }
        Ok(())
    })
}

/// Another node gets the client's packets from now on, as after the end of the one before.
///
/// A4.1
#[test]
fn connections_go_on_by_a_node_that_has_not_seen_them_begin() -> Result<()> {
    with_tunnels(|cluster, agents| {
        let space = cluster.space("moved")?;
        for server in serve(agents, &space, 155)? {
            let calls = calls(cluster, server)?;
            cluster.route(server.ip(), "node2")?;
            for mut call in calls.into_iter().flatten() {
                let seen = call.seen()?;
                ensure!(seen == call.from, "{}: {seen}", call.from);
            }
        }
        Ok(())
    })
}

/// Slots go to pods that come; connections stay where they are.
///
/// A4.1
#[test]
fn connections_stay_with_their_pods_when_others_come() -> Result<()> {
    with_tunnels(|cluster, agents| {
        let space = cluster.space("grown")?;
        let servers = serve(agents, &space, 158)?;
        let mut all = Vec::new();
        for server in servers {
            for mut call in calls(cluster, server)?.into_iter().flatten() {
                let pod = call.get("hostname")?;
                all.push((call, pod));
            }
        }
        space.scale("web", 8)?;
        let pods = space.pods("web", None)?;
        for server in servers {
            until(PATIENCE, || {
                let answered = agents.serve_wholly("node1", server)?;
                ensure!(answered == pods, "{server}: {answered:?} of {pods:?}");
                Ok(())
            })?;
        }
        // What the first packet has taught is used by the next.
        for (call, pod) in &mut all {
            for _ in 0..3 {
                let answered = call.get("hostname")?;
                ensure!(answered == *pod, "{}: {answered}, not {pod}", call.from);
            }
        }
        Ok(())
    })
}

/// What kube-proxy began goes on with it when agents come.
///
/// A13.4
#[test]
fn connections_of_kube_proxys_go_on_beside_tunnels() -> Result<()> {
    with_tunnels(|cluster, agents| {
        let space = cluster.space("before")?;
        let servers = serve(agents, &space, 156)?;
        cluster.uninstall(&[])?;
        let mut all = Vec::new();
        for server in servers {
            cluster.wait_for(server)?;
            for caller in cluster.callers(CALLS, server.is_ipv6())? {
                all.push((caller.call(server)?, server));
            }
        }
        for (call, server) in &mut all {
            let (seen, from) = (call.seen()?, call.from);
            ensure!(seen.ip() != from.ip(), "{from} to {server}: {seen}");
        }
        agents.install()?;
        for server in servers {
            agents.serve_wholly("node1", server)?;
        }
        // More than one packet each: what one of them has taught is used.
        for _ in 0..3 {
            for (call, server) in &mut all {
                let name = call.get("hostname");
                name.with_context(|| format!("{} to {server}", call.from))?;
            }
        }
        Ok(())
    })
}

/// What was said of one check.
fn line<'a>(lines: &'a [Line], check: &str) -> Result<&'a Line> {
    let found = lines.iter().find(|line| line.check == check);
    found.with_context(|| format!("no {check} in {lines:#?}"))
}

/// By the programs of the other nodes, whose wires carry no client's full-size packet in a tunnel until they are widened. Where
/// no answers come in, the port that is to be opened is named.
#[test]
fn doctor_tries_the_ways_to_the_other_nodes() -> Result<()> {
    with_tunnels(|cluster, agents| {
        let space = cluster.space("doctor")?;
        serve(agents, &space, 159)?;
        let nodes = cluster.nodes()?;
        let judged = |asking: &str, asked: &str, state| -> Result<()> {
            let lines = agents.doctor(asking)?;
            for v6 in [false, true] {
                let to = cluster.address(asked, v6)?;
                let line = line(&lines, &format!("tunnel to {to}"))?;
                ensure!(line.state == state, "{asking}: {line:?}");
                let fix = line.fix.as_deref().unwrap_or_default();
                let says = fix.contains("open UDP 16081 between ");
                ensure!(says == (state != State::Ok), "{asking}: {line:?}");
            }
            Ok(())
        };
        let roomy = |state| -> Result<()> {
            for node in &nodes {
                let lines = agents.doctor(node)?;
                let room = line(&lines, "tunnel room")?;
                ensure!(room.state == state, "{node}: {room:?}");
            }
            Ok(())
        };
        for asking in &nodes {
            for asked in nodes.iter().filter(|node| *node != asking) {
                judged(asking, asked, State::Ok)?;
            }
        }
        roomy(State::Limit)?;
        {
            let _wide = cluster.carry(&nodes, 1600)?;
            // The agents hear of it.
            until(PATIENCE, || roomy(State::Ok))?;
        }
        let rules = "chain in { type filter hook input priority 0; udp sport 16081 drop; }";
        let _closed = cluster.filter("node1", "closed", rules)?;
        judged("node1", "node2", State::Unfit)?;
        judged("node2", "node1", State::Ok)
    })
}
