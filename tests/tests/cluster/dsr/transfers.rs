//! Whole files through tunnels, whatever the links on the way carry.

use std::{env, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_tests::cluster::{NGINX, PORT, vips, with_tunnels};
use serde_json::json;

/// Of a file, unless `MILLRACE_BYTES` says otherwise. A gigabyte takes minutes.
const BYTES: usize = 8 << 20;

/// As much as a veth with an XDP program takes of a frame in one page.
const JUMBO: u16 = 3400;

/// MTUs of the client's link, and of those between the nodes.
const LINKS: [(u16, u16); 4] = [(1500, 1500), (JUMBO, 1400), (1500, JUMBO), (JUMBO, JUMBO)];

/// Both ways, a file arrives as it was, and nginx's log names the client.
///
/// A4.1, A10.1
#[test]
fn files_arrive_whole_at_every_mtu_and_nginx_sees_the_client() -> Result<()> {
    let bytes = match env::var("MILLRACE_BYTES") {
        Ok(text) => text.parse().context("MILLRACE_BYTES")?,
        Err(_) => BYTES,
    };
    with_tunnels(|cluster, agents| {
        let space = cluster.space("transfers")?;
        space.servers("web", 1)?;
        let nginx = space.nginx("web", bytes)?;
        let ports = json!({"ports": [
            {"name": "tcp", "port": 80, "targetPort": PORT},
            {"name": "nginx", "port": 81, "targetPort": NGINX},
        ]});
        space.service("web", &vips(154), &ports)?;
        let servers = agents.serve_vips(vips(154))?;
        // By the other node.
        let [entry, _] = super::around(cluster, &space)?;
        let entry = entry.as_str();
        for server in servers {
            agents.serve_wholly(entry, server)?;
        }
        let mut places = cluster.nodes()?;
        places.push("control".to_owned());
        for (client, nodes) in LINKS {
            let _client = cluster.carry(&["client".to_owned()], client)?;
            let _nodes = cluster.carry(&places, nodes)?;
            for server in servers {
                let (server, v6) = (SocketAddr::new(server.ip(), 81), server.is_ipv6());
                let before = agents.served(entry, server)?;
                let exchanged = nginx.exchange(cluster, server);
                exchanged.with_context(|| format!("{server}: {client}, {nodes} between nodes"))?;
                let after = agents.served(entry, server)?;
                ensure!(after.new_flows == before.new_flows + 2, "{after:?}");
                ensure!(after.passed == before.passed, "{after:?}");
                let client = cluster.address("client", v6)?;
                let log = nginx.log()?;
                let last = [format!("{client} GET"), format!("{client} PUT")];
                ensure!(log.ends_with(&last), "{log:?}");
            }
        }
        Ok(())
    })
}
