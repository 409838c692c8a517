//! On a real Kubernetes: control plane, kubelets, kube-proxy, pods, and a client outside.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Result, ensure};
use lb_tests::cluster::{Cluster, ask, get, wait_for};
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
