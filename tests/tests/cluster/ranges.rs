//! Who may be a client.

use anyhow::Result;
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

/// kube-proxy serves clients within the cluster, and holds them to the ranges, too.
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
        let [client, pod] = [
            [
                cluster.address("client", false)?,
                cluster.address("client", true)?,
            ],
            pods[0].addresses,
        ];
        let servers = agents.serve_vips(vips(138))?;
        let own = Asker::Pod(&pods[0]);
        for ([v4, v6], outside, inside) in
            [(client, &all, &Met::Silence), (pod, &Met::Silence, &all)]
        {
            let ranges = json!([format!("{v4}/32"), format!("{v6}/128")]);
            space.edit(
                "service",
                "web",
                &json!({"loadBalancerSourceRanges": ranges}),
            )?;
            for server in servers {
                cluster.wait_to_meet(Asker::Outside, server, outside)?;
                cluster.wait_to_meet(own, server, inside)?;
            }
        }
        Ok(())
    })
}
