//! Frontends that only the config's `kubernetes` asks for, on agents that all have one `clusterKey`.

use anyhow::{Result, ensure};
use lb_tests::{
    cluster::{
        Agents, Asker, Cluster,
        Endpoint::{Leaving, Ready},
        Met, PATIENCE, Reach, vips, with_settings,
    },
    netns::until,
};
use serde_json::json;

fn with_all(test: impl FnOnce(&Cluster, &Agents<'_>) -> Result<()>) -> Result<()> {
    let fields = [
        "clusterKey: 000102030405060708090a0b0c0d0e0f",
        "kubernetes: {nodePorts: true, externalIPs: true, clusterIPs: true}",
    ];
    with_settings(&fields, test)
}

/// All entries of a Service are served by the packet path, each with its own policy; source ranges hold for all of them.
///
/// A2.1, A2.2, A2.3, A2.10, A4.5, A4.6, A9.3
#[test]
fn every_entry_of_a_service_is_a_frontend() -> Result<()> {
    with_all(|cluster, agents| {
        let space = cluster.space("entries")?;
        space.spread("web", 1)?;
        let (all, own) = (space.pods("web", None)?, space.pods("web", Some("node1"))?);
        let more = json!({"externalTrafficPolicy": "Local", "externalIPs": vips(140)});
        space.service("web", &vips(139), &more)?;
        let vips = agents.serve_vips(vips(139))?;
        let entries = space.entries("web")?;
        let external = [vips, entries.node_ports, entries.external_ips].concat();
        let internal = entries.cluster_ips;
        let by_us = |server| {
            agents.serve("node1", server)?;
            let (answered, done) = agents.answering("node1", server)?;
            Ok::<_, anyhow::Error>((answered, done.new_flows))
        };
        for &server in &external {
            let (answered, new) = by_us(server)?;
            ensure!(answered == own, "{server}: {answered:?} of {own:?}");
            ensure!(new == Cluster::REQUESTS, "{server}: {new} by XDP");
        }
        for server in internal {
            let (answered, new) = by_us(server)?;
            ensure!(answered == all, "{server}: {answered:?} of {all:?}");
            ensure!(new > 0 && new < Cluster::REQUESTS, "{server}: {new} by XDP");
        }

        let fields = json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Cluster"});
        space.edit("service", "web", &fields)?;
        cluster.wait_for_answers(&internal, &own)?;
        cluster.wait_for_answers(&external, &all)?;

        let ranges = json!(["198.51.100.0/24", "2001:db8:ffff::/48"]);
        space.edit(
            "service",
            "web",
            &json!({"loadBalancerSourceRanges": ranges}),
        )?;
        for &server in external.iter().chain(&internal) {
            cluster.wait_until(Reach::Silent, server)?;
        }
        space.edit("service", "web", &json!({"loadBalancerSourceRanges": null}))?;
        for &server in external.iter().chain(&internal) {
            cluster.wait_until(Reach::Answered, server)?;
        }
        Ok(())
    })
}

/// Of one Service at one time: the VIP goes to a pod of this node that terminates, as no other is here; the cluster IP to
/// one that is ready, on the other node; and the VIP's other port to one of this node that is ready.
///
/// A4.1, A4.2, A4.3
#[test]
fn each_port_and_each_set_falls_back_by_itself() -> Result<()> {
    with_all(|cluster, agents| {
        let space = cluster.space("sets")?;
        space.spread("web", 2)?;
        let pods = space.placed("web")?;
        let (leaves, stays, there) = (&pods[0], &pods[1], &pods[2]);
        let port = |name: &str, port: u16| json!({"name": name, "port": port});
        let fields = json!({
            "selector": null,
            "externalTrafficPolicy": "Local",
            "externalIPs": vips(142),
            "ports": [port("tcp", 80), port("more", 81)],
        });
        space.service("web", &vips(141), &fields)?;
        space.endpoints("web", &["tcp"], &[Leaving(leaves), Ready(there)])?;
        space.endpoints(
            "web",
            &["more"],
            &[Leaving(leaves), Ready(stays), Ready(there)],
        )?;
        let servers = agents.serve_vips(vips(141))?;
        let internal = space.entries("web")?.cluster_ips;
        for (vip, inner) in servers.into_iter().zip(internal) {
            for (server, pod) in [
                (vip, leaves),
                (inner, there),
                ((vip.ip(), 81).into(), stays),
            ] {
                cluster.wait_to_meet(Asker::Outside, server, &Met::answered(&[pod]))?;
            }
        }
        Ok(())
    })
}

/// For each of a few clients all nodes choose the same slot, and in it the same pod.
///
/// A4.9
#[test]
fn all_nodes_choose_alike() -> Result<()> {
    with_all(|cluster, agents| {
        let space = cluster.space("alike")?;
        space.spread("web", 2)?;
        space.service("web", &vips(143), &json!({}))?;
        let servers = agents.serve_vips(vips(143))?;
        let nodes = cluster.nodes()?;
        let pods = 2 * nodes.len() as u64;
        for server in servers {
            for node in &nodes {
                until(PATIENCE, || {
                    let ready = agents.served(node, server)?.ready;
                    ensure!(ready == pods, "{server} on {node}: {ready} ready");
                    Ok(())
                })?;
            }
            let client = cluster.address("client", server.is_ipv6())?;
            let from: Vec<_> = (40_000..40_006).map(|port| (client, port).into()).collect();
            let one = agents.explain(&nodes[0], &from, server, "syn")?;
            for node in &nodes[1..] {
                let other = agents.explain(node, &from, server, "syn")?;
                for (one, other) in one.iter().zip(&other) {
                    // The hash that chose the slot, and who has it.
                    let chosen = [one, other].map(|node| (node.step("slot").1, node.said.backend));
                    ensure!(chosen[0] == chosen[1], "{one:#?}, {other:#?}");
                    ensure!(chosen[0].1.is_some(), "{one:#?}");
                }
            }
        }
        Ok(())
    })
}
