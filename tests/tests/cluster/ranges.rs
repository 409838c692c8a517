//! Who may be a client.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use lb_tests::cluster::{Asker, Met, Reach, vips, with_agents};
use serde_json::json;

const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Ranges of an annotation hold where the spec has none. An entry that is no prefix (the API server takes it while nobody
/// reads it) allows nobody and closes nothing.
///
/// A9.2, A9.6
#[test]
fn ranges_stand_in_an_annotation_and_a_wrong_one_is_told() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("annotated")?;
        space.spread("web", 1)?;
        space.service(
            "web",
            &vips(137),
            &json!({"externalTrafficPolicy": "Local"}),
        )?;
        let servers = agents.serve_vips(vips(137))?;
        let [v4, v6] = [
            cluster.address("client", false)?,
            cluster.address("client", true)?,
        ];
        let (own, others) = (
            format!("{v4}/32, {v6}/128"),
            "198.51.100.0/24,2001:db8:ffff::/48",
        );
        let annotate = |ranges: &str| {
            let said = format!("{ANNOTATION}={ranges}");
            space.kubectl(&["annotate", "service", "web", &said, "--overwrite"])
        };
        let spec = |ranges: serde_json::Value| {
            space.edit(
                "service",
                "web",
                &json!({"loadBalancerSourceRanges": ranges}),
            )
        };
        let reach = |wanted| {
            let mut servers = servers.iter();
            servers.try_for_each(|&server| cluster.wait_until(wanted, server))
        };
        annotate(others)?;
        reach(Reach::Silent)?;
        annotate(&own)?;
        reach(Reach::Answered)?;
        spec(json!(others.split(',').collect::<Vec<_>>()))?;
        reach(Reach::Silent)?;

        annotate(&format!("nonsense,{own}"))?;
        spec(json!(null))?;
        reach(Reach::Answered)?;
        space.warned("InvalidSourceRange", "web")?;
        spec(json!(["198.51.100.0/24"]))?;
        reach(Reach::Silent)?;
        annotate("nonsense")?;
        spec(json!(null))?;
        reach(Reach::Silent)?;
        let from = [(v4, 40_000).into()];
        let explained = agents.explain("node1", &from, servers[0], "syn")?;
        explained[0].ensure_rule("source", "A9.6")
    })
}

/// kube-proxy serves clients within the cluster, pods and a node's own processes, and holds them to the ranges, too.
///
/// A9.5
#[test]
fn ranges_hold_within_the_cluster_as_kube_proxy_has_it() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("within")?;
        space.spread("web", 1)?;
        space.service("web", &vips(138), &json!({}))?;
        let pods = space.placed("web")?;
        let all = Met::answered(&pods.iter().collect::<Vec<_>>());
        let own = |place| -> Result<[IpAddr; 2]> {
            Ok([
                cluster.address(place, false)?,
                cluster.address(place, true)?,
            ])
        };
        let outside = own("client")?.to_vec();
        let inside = [own("node1")?, pods[0].addresses].concat();
        let servers = agents.serve_vips(vips(138))?;
        for (allowed, outside, inside) in [
            (outside, &all, &Met::Silence),
            (inside, &Met::Silence, &all),
        ] {
            let ranges: Vec<_> = allowed.into_iter().map(IpNet::from).collect();
            let fields = json!({"loadBalancerSourceRanges": ranges});
            space.edit("service", "web", &fields)?;
            let each = servers.into_iter().flat_map(|server| {
                [
                    (Asker::Outside, server, outside),
                    (Asker::Host("node1"), server, inside),
                    (Asker::Pod(&pods[0]), server, inside),
                ]
            });
            cluster.wait_to_meet_each(each)?;
        }
        Ok(())
    })
}
