//! What of a Service is a frontend of ours, as the manifest's config has it.

use std::{net::IpAddr, process::Command, time::Instant};

use anyhow::{Result, ensure};
use aya::util::nr_cpus;
use lb_common::abi::Reason;
use lb_tests::{
    cluster::{Agents, Cluster, PATIENCE, vips, with_agents},
    netns::until,
};
use serde_json::json;

/// Cluster IPs from outside, node ports and external IPs: kube-proxy answers there, and pods see a node in the client's
/// place.
///
/// A2.1, A2.2, A2.3, A2.10
#[test]
fn only_vips_are_frontends_unless_more_is_asked_for() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("plain")?;
        space.spread("web", 1)?;
        let pods = space.pods("web", None)?;
        let more = json!({"externalIPs": vips(135)});
        space.service("web", &vips(134), &more)?;
        agents.serve_vips(vips(134))?;
        let entries = space.entries("web")?;
        let others = [
            entries.cluster_ips,
            entries.node_ports,
            entries.external_ips,
        ]
        .concat();
        for server in others {
            cluster.wait_for_answers(&[server], &pods)?;
            let frontends = agents.frontends("node1")?;
            let ours = [server.to_string() + "/tcp", server.to_string() + "/udp"];
            ensure!(
                !ours.iter().any(|one| frontends.contains(one)),
                "{frontends:?}"
            );
            for _ in 0..4 {
                let seen = cluster.get(server, "clientip")?;
                ensure!(!cluster.is_client(&seen)?, "{server}: {seen}");
            }
        }
        Ok(())
    })
}

/// What balancers of other layers need is neither needed nor in the way here, and a VIP answers pings.
///
/// A2.6, A2.9, A2.12
#[test]
fn a_vip_needs_no_node_port_and_no_known_application() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("bare")?;
        space.spread("web", 1)?;
        let own = space.pods("web", Some("node1"))?;
        let fields = json!({
            "externalTrafficPolicy": "Local",
            "allocateLoadBalancerNodePorts": false,
            "ports": [{
                "name": "tcp",
                "port": 80,
                "targetPort": 8080,
                "appProtocol": "example.com/nobody-knows-it",
            }],
        });
        space.service("web", &vips(136), &fields)?;
        let spec = space.spec("service", "web")?;
        ensure!(spec["ports"][0]["nodePort"].is_null(), "{spec:#}");
        let servers = agents.serve_vips(vips(136))?;
        for server in servers {
            let (answered, done) = agents.answering("node1", server)?;
            ensure!(answered == own, "{server}: {answered:?} of {own:?}");
            let new = done.new_flows;
            ensure!(new == Cluster::REQUESTS, "{server}: {new} by XDP");
            let ping = || {
                let mut ping = Command::new("ping");
                ping.args(["-c", "1", "-W", "5"]);
                cluster.client.run(ping.arg(server.ip().to_string()))
            };
            ping()?;
            pings_are_answered_within_a_budget(cluster, agents, server.ip())?;
            until(PATIENCE, ping)?;
        }
        Ok(())
    })
}

/// Answers of its own that a processor gives in a second, and at once: `rejects.perSecond`.
const BUDGET: u64 = 1000;

/// Pings one after the other.
const PINGS: u64 = 10 * BUDGET;

/// Pings beyond the budget are dropped, and counted.
fn pings_are_answered_within_a_budget(
    cluster: &Cluster,
    agents: &Agents<'_>,
    vip: IpAddr,
) -> Result<()> {
    let wire = cluster.wire("node1")?;
    let ping = wire.ping(cluster.address("client", vip.is_ipv6())?, vip);
    let counted = |reason| agents.ended("node1", reason);
    let before = [counted(Reason::Echo)?, counted(Reason::RejectLimited)?];
    let begun = Instant::now();
    let limited = until(PATIENCE, || {
        (0..PINGS).try_for_each(|_| wire.send(&ping))?;
        let limited = counted(Reason::RejectLimited)? - before[1];
        ensure!(
            limited > 0,
            "{vip}: all of {PINGS} in {:?}",
            begun.elapsed()
        );
        Ok(limited)
    })?;
    let answered = counted(Reason::Echo)? - before[0];
    let seconds = 1 + begun.elapsed().as_secs();
    let most = nr_cpus().map_err(|(_, error)| error)? as u64 * BUDGET * (1 + seconds);
    ensure!(
        (1..=most).contains(&answered),
        "{vip}: {answered} of {PINGS} answered, {limited} not, in {seconds} s"
    );
    Ok(())
}
