//! Fields of a Service are edited while it serves; what the cluster is told is what clients meet.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_tests::{
    cluster::{PATIENCE, Reach, vips, with_agents},
    netns::until,
};
use serde_json::json;

/// A4.1, A4.2, A4.6, A8.2, A8.4, A10.1
#[test]
fn policies_and_affinity_change() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("policies")?;
        space.spread("web", 2)?;
        space.service("web", &vips(20), &json!({}))?;
        let (all, own) = (space.pods("web", None)?, space.pods("web", Some("node1"))?);
        let servers = agents.serve_vips(vips(20))?;
        cluster.wait_for_answers(&servers, &all)?;
        space.edit("service", "web", &json!({"externalTrafficPolicy": "Local"}))?;
        cluster.wait_for_answers(&servers, &own)?;
        for &server in &servers {
            cluster.ensure_seen(server)?;
        }
        space.edit("service", "web", &json!({"sessionAffinity": "ClientIP"}))?;
        for &server in &servers {
            until(PATIENCE, || {
                let answered = cluster.answering(server)?;
                ensure!(answered.len() == 1, "{server}: {answered:?}");
                Ok(())
            })?;
        }
        let fields = json!({"sessionAffinity": "None", "externalTrafficPolicy": "Cluster"});
        space.edit("service", "web", &fields)?;
        cluster.wait_for_answers(&servers, &all)
    })
}

/// A9.1, A9.4
#[test]
fn source_ranges_close_and_open_a_frontend() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("ranges")?;
        space.spread("web", 1)?;
        space.service("web", &vips(21), &json!({"externalTrafficPolicy": "Local"}))?;
        let servers = agents.serve_vips(vips(21))?;
        let client = |v6| {
            cluster
                .address("client", v6)
                .map(|address| address.to_string())
        };
        let own = [client(false)? + "/32", client(true)? + "/128"];
        for (ranges, [v4, v6]) in [
            (json!(["198.51.100.0/24"]), [Reach::Silent, Reach::Silent]),
            (json!(own), [Reach::Answered, Reach::Answered]),
            // Nobody of the other family is in the list.
            (json!([own[0]]), [Reach::Answered, Reach::Silent]),
            (json!(null), [Reach::Answered, Reach::Answered]),
        ] {
            space.edit(
                "service",
                "web",
                &json!({"loadBalancerSourceRanges": ranges}),
            )?;
            cluster.wait_until(v4, servers[0])?;
            cluster.wait_until(v6, servers[1])?;
        }
        space.warned("SourceRangesLackFamily", "web")
    })
}

/// A1.6, A2.4, A2.5, A2.7, A2.11
#[test]
fn frontends_come_and_go() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("frontends")?;
        space.spread("web", 1)?;
        space.service("web", &vips(22), &json!({}))?;
        let servers = agents.serve_vips(vips(22))?;
        let pods = space.pods("web", None)?;
        let [v4, v6] = vips(22);

        space.ingress(
            "web",
            &json!([{"ip": v4, "ipMode": "Proxy"}, {"ip": v6, "ipMode": "VIP"}]),
        )?;
        agents.release("node1", v4)?;
        cluster.wait_for_answers(&servers[1..], &pods)?;
        space.addresses("web", &vips(22))?;
        cluster.wait_for_answers(&servers, &pods)?;

        let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port, "targetPort": 8080});
        let before = [port("tcp", "TCP", 80), port("udp", "UDP", 80)];
        let after = [&before[..], &[port("more", "TCP", 81)]].concat();
        let more: Vec<_> = vips(22).map(|vip| SocketAddr::new(vip, 81)).into();
        space.edit("service", "web", &json!({"ports": after}))?;
        cluster.wait_for_answers(&more, &pods)?;
        space.edit("service", "web", &json!({"ports": before}))?;
        for &server in &more {
            cluster.wait_until(Reach::Refused, server)?;
        }
        for &server in &servers {
            let answered = cluster.datagrams(server)?.ask("hostname")?;
            ensure!(pods.contains(&answered), "{server}: {answered}");
        }

        space.edit("service", "web", &json!({"type": "ClusterIP"}))?;
        for vip in vips(22) {
            agents.release("node1", vip)?;
        }
        space.edit("service", "web", &json!({"type": "LoadBalancer"}))?;
        space.addresses("web", &vips(22))?;
        cluster.wait_for_answers(&servers, &pods)
    })
}

/// The other Service of that name has other servers, and its clients are the same.
///
/// A1.7
#[test]
fn a_service_that_is_made_anew_under_its_name_inherits_nothing() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("anew")?;
        space.spread("web", 1)?;
        space.spread("other", 1)?;
        let local = json!({"externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"});
        space.service("web", &vips(23), &local)?;
        let servers = agents.serve_vips(vips(23))?;
        let clients = servers
            .iter()
            .map(|&server| cluster.datagrams(server))
            .collect::<Result<Vec<_>>>()?;
        let old = space.pods("web", Some("node1"))?;
        for client in &clients {
            let answered = client.ask("hostname")?;
            ensure!(old.contains(&answered), "{answered} of {old:?}");
        }
        space.kubectl(&["delete", "service", "web"])?;
        let others = json!({"externalTrafficPolicy": "Local", "selector": {"app": "other"}});
        space.service("web", &vips(23), &others)?;
        let new = space.pods("other", Some("node1"))?;
        cluster.wait_for_answers(&servers, &new)?;
        for client in &clients {
            until(PATIENCE, || {
                let answered = client.ask("hostname")?;
                ensure!(new.contains(&answered), "{answered} of {new:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}
