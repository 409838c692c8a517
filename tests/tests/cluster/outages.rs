//! Agents are away, and come back.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_tests::{
    cluster::{PATIENCE, vips, with_agents},
    netns::until,
};
use serde_json::json;

/// New agents take over what the old ones left in the kernel: no request fails, and a client's datagrams go where they
/// went before.
///
/// A7.4, A13.4
#[test]
fn agents_are_replaced_under_load() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("replaced")?;
        space.spread("web", 2)?;
        space.service("web", &vips(51), &json!({}))?;
        let servers = vips(51).map(|vip| SocketAddr::new(vip, 80));
        let mut clients = Vec::new();
        for server in servers {
            cluster.route(server.ip(), "node1")?;
            agents.serve("node1", server)?;
            for _ in 0..8 {
                clients.push(until(PATIENCE, || {
                    let client = cluster.datagrams(server)?;
                    let answered = client.ask("hostname")?;
                    Ok((client, answered))
                })?);
            }
        }
        cluster.under_load(&servers, || agents.restart())?;
        for (client, before) in &clients {
            let answered = client.ask("hostname")?;
            ensure!(answered == *before, "{answered}, before {before}");
        }
        Ok(())
    })
}
