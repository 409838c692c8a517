//! Our agents as the manifest brings them: what they are allowed, what they serve, what they leave to kube-proxy.

use anyhow::{Context as _, Result, ensure};
use lb_tests::cluster::{Cluster, vips, with_agents};
use serde_json::json;

/// A14.1, A14.2
#[test]
fn our_agents_are_ready_on_every_node_and_have_read_the_cluster() -> Result<()> {
    with_agents(|cluster, agents| {
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
        Ok(())
    })
}

/// What a node gives for it while nothing is served.
#[test]
fn an_agent_holds_less_than_forty_megabytes() -> Result<()> {
    with_agents(|cluster, agents| {
        for node in cluster.nodes()? {
            let held = agents.anonymous_kib(&node)?;
            eprintln!("{node}: {held} KiB");
            ensure!(held < 40 * 1024, "{node}: {held} KiB");
        }
        Ok(())
    })
}

/// With the policy `Local` each request goes by the packet path of the node that got it, to a pod of that node, which
/// sees who asks.
///
/// A2.4, A4.2, A4.6, A10.1
#[test]
fn pods_of_the_node_that_got_the_packet_are_served_by_xdp_and_see_the_client() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("near")?;
        space.spread("web", 2)?;
        let policy = json!({"externalTrafficPolicy": "Local"});
        space.service("web", &vips(12), &policy)?;
        let own = space.pods("web", Some("node1"))?;
        for server in agents.serve_vips(vips(12))? {
            let (answered, done) = agents.answering("node1", server)?;
            ensure!(answered == own, "{server}: {answered:?} of {own:?}");
            let new = done.new_flows;
            ensure!(new == Cluster::REQUESTS, "{server}: {new} by XDP");
            ensure!(done.replies >= 3 * new, "{server}: {done:?}");
            ensure!(done.passed == 0, "{server}: {done:?}");
            cluster.ensure_seen(server)?;
        }
        Ok(())
    })
}

/// With the policy `Cluster` all pods answer: those of the node by the packet path, the others by kube-proxy.
///
/// A4.1, A10.1
#[test]
fn pods_of_other_nodes_stay_with_kube_proxy() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("both")?;
        space.spread("web", 1)?;
        space.service("web", &vips(13), &json!({}))?;
        let pods = space.pods("web", None)?;
        for server in agents.serve_vips(vips(13))? {
            let (answered, done) = agents.answering("node1", server)?;
            ensure!(answered == pods, "{server}: {answered:?} of {pods:?}");
            let new = done.new_flows;
            ensure!(new > 0 && new < Cluster::REQUESTS, "{server}: {new} by XDP");
            ensure!(done.passed > 0, "{server}: {done:?}");
        }
        Ok(())
    })
}

/// Whoever asks from within the cluster does not come in by an uplink: kube-proxy serves him, and nothing is counted.
///
/// A4.7, A10.2, A10.3
#[test]
fn clients_within_the_cluster_stay_with_kube_proxy() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("inside")?;
        space.spread("web", 1)?;
        let policy = json!({"externalTrafficPolicy": "Local"});
        space.service("web", &vips(14), &policy)?;
        let pod = space
            .pods("web", Some("node1"))?
            .pop_first()
            .context("a pod")?;
        for server in agents.serve_vips(vips(14))? {
            let before = agents.served("node1", server)?;
            let (address, timeout) = (server.to_string(), "--timeout=5s");
            for _ in 0..10 {
                // The pod is its own backend at times.
                space.kubectl(&["exec", &pod, "--", "/agnhost", "connect", &address, timeout])?;
                cluster.get_at("node1", server, "hostname")?;
            }
            let after = agents.served("node1", server)?;
            ensure!(after.new_flows == before.new_flows, "{before:?}, {after:?}");
            ensure!(after.passed == before.passed, "{before:?}, {after:?}");
        }
        Ok(())
    })
}
