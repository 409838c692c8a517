//! What goes on when a node's connection tracking has forgotten it.

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{PATIENCE, vips, with_agents},
    netns::until,
};
use serde_json::json;

/// More than a client takes that does not read: its pod asks from time to time whether it would.
const MUCH: usize = 400_000;

/// Who masquerades what pods send takes a packet of a forgotten connection for the first of a new one. The pod's is heard
/// as the VIP all the same.
///
/// A10.1
#[test]
fn a_pod_that_speaks_first_is_heard_as_the_vip() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("forgotten")?;
        space.spread("web", 1)?;
        let pod = &space.placed("web")?[0];
        let policy = json!({"externalTrafficPolicy": "Local"});
        space.service("web", &vips(115), &policy)?;
        // As CNIs do it.
        let chain = "chain postrouting {
            type nat hook postrouting priority srcnat;
            iifname cni0 oifname eth0 masquerade
        }";
        let _masquerading = cluster.filter("node1", "masquerading", chain)?;
        for server in agents.serve_vips(vips(115))? {
            let v6 = server.is_ipv6();
            let (client, own) = (
                cluster.address("client", v6)?,
                pod.addresses[usize::from(v6)],
            );
            let mut call = cluster.caller(client)?.call(server)?;
            call.ask_last(&format!("echo?msg={}", "x".repeat(MUCH)))?;
            // As long as the client speaks as well, it may be the first.
            let known = until(PATIENCE, || {
                cluster.forget(&pod.node, call.from)?;
                let known = cluster.tracked_to(&pod.node, call.from)?;
                ensure!(!known.is_empty(), "{server}: the pod is silent");
                Ok(known)
            })?;
            for known in &known {
                let ([from, _], [_, back]) = (known.original, known.reply);
                ensure!(from.ip() == own && back == from, "{own}: {known:?}");
            }
            let answer = call.rest()?;
            let (_, body) = answer.split_once("\r\n\r\n").context("no head")?;
            let came = body.bytes().filter(|&byte| byte == b'x').count();
            ensure!(came == MUCH, "{server}: {came} bytes");
        }
        Ok(())
    })
}
