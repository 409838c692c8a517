//! `kubectl millrace uninstall`: nodes and Services are as they were.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{Cluster, PATIENCE, vips, with_agents, without_agents},
    netns::until,
};
use serde_json::json;

/// What each node's kernel has without us.
fn before() -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    without_agents(|cluster| {
        for node in cluster.nodes()? {
            found.insert(node.clone(), cluster.programs_and_pins(&node)?);
        }
        Ok(())
    })?;
    Ok(found)
}

fn ensure_as_before(cluster: &Cluster, before: &BTreeMap<String, String>) -> Result<()> {
    for (node, before) in before {
        let after = cluster.programs_and_pins(node)?;
        ensure!(after == *before, "{node}: {after}, before: {before}");
    }
    let namespaces = cluster.kubectl(&["get", "namespaces,clusterroles,clusterrolebindings"])?;
    ensure!(!namespaces.contains("millrace"), "{namespaces}");
    Ok(())
}

#[test]
fn uninstalled_leaves_every_node_as_it_was_and_kube_proxy_serves() -> Result<()> {
    let before = before()?;
    with_agents(|cluster, agents| {
        let space = cluster.space("uninstalled")?;
        space.spread("web", 1)?;
        space.service("web", &vips(60), &json!({}))?;
        let pods = space.pods("web", None)?;
        let servers = agents.serve_vips(vips(60))?;
        for node in cluster.nodes()? {
            let with = cluster.programs_and_pins(&node)?;
            ensure!(with.contains("/sys/fs/bpf/millrace"), "{node}: {with}");
        }
        let plan = cluster.uninstall(&["--dry-run"])?;
        for line in [
            "detach on node1",
            "delete daemonset millrace-system/millrace",
        ] {
            ensure!(plan.lines().any(|one| one == line), "{plan}");
        }
        for server in servers {
            agents.serve("node1", server)?;
        }
        let pod = space.own_servers("web", "node1")?;
        cluster.without_a_silent_second(servers, pod, || cluster.uninstall(&[]))?;
        ensure_as_before(cluster, &before)?;
        for server in servers {
            let answered = cluster.answering(server)?;
            ensure!(answered == pods, "{server}: {answered:?} of {pods:?}");
        }
        let again = cluster.uninstall(&[])?;
        ensure!(again == "nothing of ours is installed\n", "{again}");
        Ok(())
    })
}

/// While a node is away, its pods get nothing new, and uninstalling says what is to be done. Whoever installs again instead
/// has agents again, and nothing that detaches is left beside them. When the node is back, it does by itself what it was
/// told last.
///
/// A4.1
#[test]
fn a_node_that_is_away_is_named_and_detaches_when_it_is_back() -> Result<()> {
    let before = before()?;
    with_agents(|cluster, agents| {
        let space = cluster.space("away")?;
        space.spread("web", 1)?;
        space.service("web", &vips(61), &json!({}))?;
        let servers = agents.serve_vips(vips(61))?;
        let stay = space.pods_elsewhere("web", "node2")?;
        let kubelet = cluster.under_load(&servers, || {
            let kubelet = cluster.stop("node2-kubelet")?;
            cluster.wait_for_node("node2", false)?;
            cluster.wait_for_answers(&servers, &stay)?;
            Ok(kubelet)
        })?;
        let refused = |timeout| {
            let refused = cluster.uninstall(&[timeout]).err();
            Ok::<_, anyhow::Error>(format!("{:#}", refused.context("node2 is away")?))
        };
        let said = refused("--timeout=20s")?;
        for part in [
            "node2: the node is not ready",
            "crictl stopp",
            "--leave NODE",
        ] {
            ensure!(said.contains(part), "{said}");
        }
        ensure!(!said.contains("node1:"), "{said}");
        agents.apply()?;
        until(PATIENCE, || agents.ensure_nothing_detaches())?;
        for server in servers {
            agents.serve("node1", server)?;
        }
        refused("--timeout=1s")?;
        kubelet.start()?;
        cluster.wait_for_node("node2", true)?;
        cluster.uninstall(&[])?;
        ensure_as_before(cluster, &before)
    })
}
