//! What has begun: it stays with its pod, or leaves one that is gone, whoever was there to see that.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_tests::{
    cluster::{
        Asker,
        Endpoint::{Dead, Leaving, Ready},
        Met, PATIENCE, vips, with_agents,
    },
    netns::{run, until},
};
use serde_json::json;

/// A connection goes on while its pod terminates, when it serves no more, and when it is in no slice any more; new ones go
/// elsewhere from the first on.
///
/// A4.4, A7.6
#[test]
fn connections_stay_with_a_pod_that_leaves() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("stay")?;
        space.spread("web", 2)?;
        let pods = space.placed("web")?;
        let (leaves, stays) = (&pods[0], &pods[1]);
        space.service("web", &vips(131), &json!({"selector": null}))?;
        space.endpoints("web", &["tcp"], &[Ready(leaves)])?;
        let servers = agents.serve_vips(vips(131))?;
        let mut connections = Vec::new();
        for server in servers {
            let from = cluster.address("client", server.is_ipv6())?;
            let mut connection = cluster.caller(from)?.call(server)?;
            ensure!(connection.get("hostname")? == leaves.name, "{server}");
            connections.push(connection);
        }
        for state in [
            &[Leaving(leaves), Ready(stays)][..],
            &[Dead(leaves), Ready(stays)],
            &[Ready(stays)],
        ] {
            space.endpoints("web", &["tcp"], state)?;
            for (server, connection) in servers.into_iter().zip(&mut connections) {
                cluster.wait_to_meet(Asker::Outside, server, &Met::answered(&[stays]))?;
                let answered = connection.get("hostname")?;
                ensure!(answered == leaves.name, "{server}: {answered}, {state:?}");
            }
        }
        Ok(())
    })
}

/// Nobody told the agents that came back: they compare what is there with what is to be. Datagrams leave the pod that is
/// no endpoint any more, others stay where they were.
///
/// A7.1, A7.3, A7.4
#[test]
fn agents_that_were_away_find_flows_of_an_endpoint_that_left() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("unseen")?;
        space.spread("web", 2)?;
        let pods = space.placed("web")?;
        let (leaves, stays) = (&pods[0], &pods[1]);
        space.service("web", &vips(132), &json!({"selector": null}))?;
        let ports = ["tcp", "udp"];
        space.endpoints("web", &ports, &[Ready(leaves), Ready(stays)])?;
        let mut clients = Vec::new();
        for server in agents.serve_vips(vips(132))? {
            let own = clients.len();
            // Each goes to either of the two.
            while clients.len() < own + 8
                || !clients[own..].iter().any(|(_, pod)| *pod == leaves.name)
            {
                let client = cluster.datagrams(server)?;
                let answered = client.ask("hostname")?;
                clients.push((client, answered));
            }
        }
        agents.away(|| {
            space.endpoints("web", &ports, &[Ready(stays)])?;
            for (client, before) in &clients {
                let answered = client.ask("hostname")?;
                ensure!(answered == *before, "{answered}, before {before}");
            }
            Ok(())
        })?;
        for (client, before) in &clients {
            until(PATIENCE, || {
                let answered = client.ask("hostname")?;
                ensure!(answered == stays.name, "{answered}, before {before}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// The kernel remembers a datagram that came before the Service as one for nobody; whoever sent it is served all the same.
///
/// A6.4, A7.5
#[test]
fn a_datagram_before_the_service_pins_nothing() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("early")?;
        space.spread("web", 1)?;
        let mut clients = Vec::new();
        for vip in vips(133) {
            cluster.route(vip, "node1")?;
            let server = SocketAddr::new(vip, 80);
            let client = cluster.datagrams(server)?;
            client.send(b"hostname")?;
            until(PATIENCE, || {
                let mut dump = cluster.conntrack("node1", "--dump", vip.is_ipv6())?;
                let known = run(dump.args(["--orig-dst", &vip.to_string()]))?;
                ensure!(known.contains("udp"), "{vip}: {known}");
                Ok(())
            })?;
            clients.push((server, client));
        }
        space.service(
            "web",
            &vips(133),
            &json!({"externalTrafficPolicy": "Local"}),
        )?;
        let own = space.pods("web", Some("node1"))?;
        for (server, client) in clients {
            until(PATIENCE, || {
                let ready = agents.served("node1", server)?.ready;
                ensure!(ready == 1, "{server}: {ready} ready");
                Ok(())
            })?;
            let answered = client.ask("hostname")?;
            ensure!(own.contains(&answered), "{server}: {answered} of {own:?}");
        }
        Ok(())
    })
}
