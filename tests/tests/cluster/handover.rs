//! A node's packet path lets go, and takes up again, under clients that ask all the time.

use anyhow::{Result, ensure};
use lb_tests::{
    cluster::{Cluster, PATIENCE, vips, with_agents},
    netns::until,
};
use serde_json::json;

/// Detached for good is what `kubectl millrace uninstall` does to every node, in a test of its own.
#[test]
fn bypassed_leaves_clients_to_kube_proxy_within_a_second() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("bypassed")?;
        space.spread("web", 1)?;
        space.service("web", &vips(113), &json!({}))?;
        let servers = agents.serve_vips(vips(113))?;
        let pod = space.own_servers("web", "node1")?;
        cluster.without_a_silent_second(servers, pod, || {
            let bypass = agents.bypass("node1")?;
            for server in servers {
                let (_, done) = agents.answering("node1", server)?;
                ensure!(done.new_flows == 0, "{server}: {done:?}");
            }
            drop(bypass);
            servers.into_iter().try_for_each(|server| {
                let before = agents.served("node1", server)?;
                until(PATIENCE, || {
                    let after = agents.served("node1", server)?;
                    let new = after.new_flows - before.new_flows;
                    ensure!(new > Cluster::REQUESTS, "{server}: {new} by XDP");
                    Ok(())
                })
            })
        })
    })
}
