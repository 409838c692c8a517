//! On a real Kubernetes: control plane, kubelets, kube-proxy, pods, and a client outside.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{Cluster, ask, get, wait_for},
    netns::run,
};
use serde_json::json;

/// VIPs of one test, one of each family.
fn vips(number: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([192, 0, 2, number]),
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)]),
    ]
}

/// Requests until each of a few servers has had its turn, if they are chosen at random: 2^-60 of all runs miss one of two.
const REQUESTS: usize = 60;

/// What the suite's other assertions are built on: all of this happens without us.
#[test]
fn kube_proxy_serves_a_vip_that_is_routed_to_one_node() -> Result<()> {
    let Some(cluster) = Cluster::named()? else {
        return Ok(());
    };
    let space = cluster.space("baseline")?;
    space.servers("web", 2)?;
    space.service("web", &vips(10), &json!({}))?;
    let pods = space.pods("web", None)?;
    ensure!(pods.len() == 2, "{pods:?}");
    for vip in vips(10) {
        cluster.route(vip, "node1")?;
        let server = SocketAddr::new(vip, 80);
        wait_for(&cluster.client, server)?;
        let mut answered = BTreeSet::new();
        for _ in 0..REQUESTS {
            answered.insert(get(&cluster.client, server, "hostname")?);
        }
        ensure!(answered == pods, "{vip}: {answered:?} of {pods:?}");
        let answer = ask(&cluster.client, server, "hostname")?;
        ensure!(pods.contains(&answer), "{vip}: {answer}");
    }
    Ok(())
}

/// With the policy `Local` the node that got the packet serves it alone, and the pod sees who asks.
#[test]
fn kube_proxy_keeps_the_clients_address_on_the_node_that_got_the_packet() -> Result<()> {
    let Some(cluster) = Cluster::named()? else {
        return Ok(());
    };
    let space = cluster.space("local")?;
    space.servers("web", 4)?;
    let policy = json!({"externalTrafficPolicy": "Local"});
    space.service("web", &vips(11), &policy)?;
    for vip in vips(11) {
        let server = SocketAddr::new(vip, 80);
        for node in ["node1", "node2"] {
            cluster.route(vip, node)?;
            wait_for(&cluster.client, server)?;
            let own = space.pods("web", Some(node))?;
            let mut answered = BTreeSet::new();
            for _ in 0..REQUESTS {
                answered.insert(get(&cluster.client, server, "hostname")?);
            }
            ensure!(answered == own, "{vip} at {node}: {answered:?} of {own:?}");
            let seen: SocketAddr = get(&cluster.client, server, "clientip")?.trim().parse()?;
            let client = cluster.address("client", vip.is_ipv6())?;
            ensure!(seen.ip() == client, "{vip} at {node}: {seen}");
        }
    }
    Ok(())
}

/// Contract A14.1 begins here: under exactly the manifest's Role nothing is forbidden.
#[test]
fn our_agents_are_ready_on_every_node_and_have_read_the_cluster() -> Result<()> {
    let Some(cluster) = Cluster::named()? else {
        return Ok(());
    };
    let agents = cluster.install()?;
    for node in cluster.nodes()? {
        let status = agents.status(&node)?;
        ensure!(status["node"] == node.as_str(), "{status:#}");
        let interfaces = status["interfaces"].as_array().context("interfaces")?;
        let attached = |name: &str| {
            interfaces
                .iter()
                .any(|one| one["name"] == name && one["attached"]["state"] == "native")
        };
        ensure!(attached("eth0"), "{status:#}");
        for name in ["services", "endpointslices", "nodes"] {
            let sources = status["sources"].as_array().context("sources")?;
            let source = sources.iter().find(|source| source["name"] == name);
            let state = source.map(|source| &source["state"]);
            ensure!(state.is_some_and(|state| state == "synced"), "{status:#}");
        }
    }
    let log = agents.log()?;
    ensure!(!log.contains("forbidden") && !log.contains("403"), "{log}");
    agents.remove()?;
    for node in cluster.nodes()? {
        let mut command = cluster.on_node(&node)?;
        let pins = run(command.args(["ls", "-A", "/sys/fs/bpf"]))?;
        ensure!(!pins.contains("millrace"), "{node}: {pins}");
        let mut command = cluster.on_node(&node)?;
        let links = run(command.args(["ip", "-details", "link", "show", "dev", "eth0"]))?;
        ensure!(!links.contains("xdp"), "{node}: {links}");
    }
    Ok(())
}

/// Contract A2.4, A4.6, A10.1: with the policy `Local` each request goes by the packet path of the node that got it, to a
/// pod of that node, which sees who asks.
#[test]
fn pods_of_the_node_that_got_the_packet_are_served_by_xdp_and_see_the_client() -> Result<()> {
    let Some(cluster) = Cluster::named()? else {
        return Ok(());
    };
    let space = cluster.space("near")?;
    space.servers("web", 4)?;
    let policy = json!({"externalTrafficPolicy": "Local"});
    space.service("web", &vips(12), &policy)?;
    let own = space.pods("web", Some("node1"))?;
    let agents = cluster.install()?;
    for vip in vips(12) {
        cluster.route(vip, "node1")?;
        let server = SocketAddr::new(vip, 80);
        agents.serve("node1", server)?;
        let before = agents.served("node1", server)?;
        let mut answered = BTreeSet::new();
        for _ in 0..REQUESTS {
            answered.insert(get(&cluster.client, server, "hostname")?);
        }
        ensure!(answered == own, "{vip}: {answered:?} of {own:?}");
        let seen: SocketAddr = get(&cluster.client, server, "clientip")?.trim().parse()?;
        let client = cluster.address("client", vip.is_ipv6())?;
        ensure!(seen.ip() == client, "{vip}: {seen}");
        ensure!(own.contains(&ask(&cluster.client, server, "hostname")?));
        let after = agents.served("node1", server)?;
        let asked = REQUESTS as u64 + 1;
        let new = after.new_flows - before.new_flows;
        ensure!(new == asked, "{vip}: {new} of {asked} by XDP");
        ensure!(after.replies - before.replies >= 3 * asked, "{after:?}");
        ensure!(after.passed == before.passed, "{before:?}, {after:?}");
    }
    agents.remove()
}

/// With the policy `Cluster` all pods answer: those of the node by the packet path, the others by kube-proxy, which has it
/// all when the agents are gone.
#[test]
fn pods_of_other_nodes_stay_with_kube_proxy_and_so_does_everything_after_removal() -> Result<()> {
    let Some(cluster) = Cluster::named()? else {
        return Ok(());
    };
    let space = cluster.space("both")?;
    space.servers("web", 2)?;
    space.service("web", &vips(13), &json!({}))?;
    let pods = space.pods("web", None)?;
    let agents = cluster.install()?;
    for vip in vips(13) {
        cluster.route(vip, "node1")?;
        let server = SocketAddr::new(vip, 80);
        agents.serve("node1", server)?;
        let before = agents.served("node1", server)?;
        let mut answered = BTreeSet::new();
        for _ in 0..REQUESTS {
            answered.insert(get(&cluster.client, server, "hostname")?);
        }
        ensure!(answered == pods, "{vip}: {answered:?} of {pods:?}");
        let after = agents.served("node1", server)?;
        let new = after.new_flows - before.new_flows;
        ensure!(new > 0 && new < REQUESTS as u64, "{vip}: {new} by XDP");
        ensure!(after.passed > before.passed, "{before:?}, {after:?}");
    }
    agents.remove()?;
    for vip in vips(13) {
        get(&cluster.client, SocketAddr::new(vip, 80), "hostname")?;
    }
    Ok(())
}
