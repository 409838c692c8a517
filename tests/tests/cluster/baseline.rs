//! What the suite's other assertions are built on: all of this happens without us.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_tests::cluster::{vips, without_agents};
use serde_json::json;

#[test]
fn kube_proxy_serves_a_vip_that_is_routed_to_one_node() -> Result<()> {
    without_agents(|cluster| {
        let space = cluster.space("baseline")?;
        space.spread("web", 1)?;
        space.service("web", &vips(10), &json!({}))?;
        let pods = space.pods("web", None)?;
        for vip in vips(10) {
            cluster.route(vip, "node1")?;
            let server = SocketAddr::new(vip, 80);
            cluster.wait_for(server)?;
            let answered = cluster.answering(server)?;
            ensure!(answered == pods, "{vip}: {answered:?} of {pods:?}");
            let answer = cluster.datagrams(server)?.ask("hostname")?;
            ensure!(pods.contains(&answer), "{vip}: {answer}");
        }
        Ok(())
    })
}

/// With the policy `Local` the node that got the packet serves it alone, and the pod sees who asks.
#[test]
fn kube_proxy_keeps_the_clients_address_on_the_node_that_got_the_packet() -> Result<()> {
    without_agents(|cluster| {
        let space = cluster.space("local")?;
        space.spread("web", 2)?;
        let policy = json!({"externalTrafficPolicy": "Local"});
        space.service("web", &vips(11), &policy)?;
        for vip in vips(11) {
            let server = SocketAddr::new(vip, 80);
            for node in ["node1", "node2"] {
                cluster.route(vip, node)?;
                cluster.wait_for(server)?;
                let own = space.pods("web", Some(node))?;
                let answered = cluster.answering(server)?;
                ensure!(answered == own, "{vip} at {node}: {answered:?} of {own:?}");
                cluster.ensure_seen(server)?;
            }
        }
        Ok(())
    })
}
