//! Who gets a request: by policy, by what is said of endpoints, by who asks.

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{
        Asker,
        Endpoint::{Leaving, Ready},
        Met, PATIENCE, vips, with_agents,
    },
    netns::until,
};
use serde_json::json;

/// A slice of the contract's table: the VIP, off-cluster client, process of the node, pod. The first meets our packet
/// path, which counts his requests, the others kube-proxy.
///
/// A4.1, A4.2, A4.6, A4.7, A4.8, A6.1, A6.2
#[test]
fn each_client_of_a_vip_meets_what_policy_and_endpoints_say() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("table")?;
        space.spread("web", 1)?;
        let pods = space.placed("web")?;
        let (here, there) = (&pods[0], &pods[1]);
        space.service("web", &vips(130), &json!({"selector": null}))?;
        let both = [Ready(here), Ready(there)];
        space.endpoints("web", &["tcp"], &both)?;
        let servers = agents.serve_vips(vips(130))?;
        let (host, pod) = (Asker::Host("node1"), Asker::Pod(here));
        // Endpoints; what becomes of requests to the cluster's set, and to this node's.
        let states = [
            (
                &both[..],
                Met::answered(&[here, there]),
                Met::answered(&[here]),
            ),
            (
                &[Leaving(here)],
                Met::answered(&[here]),
                Met::answered(&[here]),
            ),
            (&[Ready(there)], Met::answered(&[there]), Met::Silence),
            (&[], Met::Refused, Met::Refused),
        ];
        for policy in ["Cluster", "Local"] {
            let fields = json!({"externalTrafficPolicy": policy});
            space.edit("service", "web", &fields)?;
            for (endpoints, cluster_set, local_set) in &states {
                space.endpoints("web", &["tcp"], endpoints)?;
                let outside = if policy == "Local" {
                    local_set
                } else {
                    cluster_set
                };
                // What has no endpoint, kube-proxy in iptables mode has a node's own processes ask beyond the node: its REJECT
                // stands in INPUT and FORWARD. From there the packet comes to ours.
                let away = endpoints.is_empty() && cluster.kube_proxy()? == "iptables";
                let (ours, others): (&[_], &[_]) = if away {
                    (&[Asker::Outside, host], &[pod])
                } else {
                    (&[Asker::Outside], &[host, pod])
                };
                for &asker in ours {
                    let met = match asker {
                        Asker::Outside => outside,
                        _ => cluster_set,
                    };
                    for server in servers {
                        cluster
                            .wait_to_meet(asker, server, met)
                            .with_context(|| format!("{policy}, {endpoints:?}, {asker:?}"))?;
                    }
                }
                // The last packets of the client's connections come when they come.
                until(PATIENCE, || {
                    let before = agents.counters("node1", &space.name)?;
                    ensure!(!before.is_empty(), "no counters of {}", space.name);
                    for server in servers {
                        for &asker in others {
                            cluster.wait_to_meet(asker, server, cluster_set)?;
                        }
                    }
                    let after = agents.counters("node1", &space.name)?;
                    ensure!(after == before, "{before:#?}, {after:#?}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    })
}
