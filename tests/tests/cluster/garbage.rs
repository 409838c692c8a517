//! Objects that break a rule: each is skipped alone, and told of.

use anyhow::{Context as _, Result, ensure};
use lb_tests::cluster::{vips, with_agents};
use serde_json::json;

/// A1.8, A2.8, A3.14
#[test]
fn what_breaks_a_rule_is_skipped_alone_and_told() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("garbage")?;
        space.spread("web", 1)?;
        // What others claim of the VIP is kube-proxy's to sort out where it serves.
        space.service("web", &vips(40), &json!({"externalTrafficPolicy": "Local"}))?;
        let servers = agents.serve_vips(vips(40))?;
        let pods = space.pods("web", Some("node1"))?;

        let one = json!({"ipFamilyPolicy": "SingleStack"});
        space.service("taken", &vips(40)[..1], &one)?;
        space.service("node", &[cluster.address("node2", false)?], &one)?;
        space.service("nowhere", &["224.0.0.1".parse()?], &one)?;
        let sctp =
            json!({"ports": [{"port": 80, "protocol": "SCTP"}], "ipFamilyPolicy": "SingleStack"});
        space.service("sctp", &vips(41)[..1], &sctp)?;
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "loop",
                "namespace": space.name,
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "tcp", "protocol": "TCP", "port": 8080}],
            "endpoints": [{"addresses": [vips(40)[0]]}],
        });
        cluster.put(&slice)?;

        for (kind, name, reason) in [
            ("Service", "taken", "FrontendConflict"),
            ("Service", "node", "NodeAddressRefused"),
            ("Service", "nowhere", "InvalidAddress"),
            ("Service", "sctp", "UnsupportedProtocol"),
            ("EndpointSlice", "loop", "InvalidEndpoint"),
        ] {
            space.warned(reason, name)?;
            let series = format!("millrace_objects_skipped{{kind=\"{kind}\",reason=\"{reason}\"}}");
            let object = format!("{}/{name}", space.name);
            for node in cluster.nodes()? {
                let count = agents.metric(&node, &series)?;
                ensure!(
                    count.is_some_and(|count| count >= 1.0),
                    "{node}: {series}: {count:?}"
                );
                let status = agents.status(&node)?;
                let skipped = status["skipped"].as_array().context("skipped")?;
                let told = skipped.iter().any(|one| {
                    one["kind"] == kind
                        && one["object"] == object.as_str()
                        && one["reason"] == reason
                });
                ensure!(told, "{node}: {object}: {reason}: {skipped:?}");
            }
        }
        for server in servers {
            let answered = cluster.answering(server)?;
            ensure!(answered == pods, "{server}: {answered:?} of {pods:?}");
        }

        // Who waited for the frontend has it when the other one is gone.
        space.kubectl(&["delete", "service", "web"])?;
        space.spread("taken", 1)?;
        let taken = space.pods("taken", None)?;
        cluster.wait_for_answers(&servers[..1], &taken)
    })
}
