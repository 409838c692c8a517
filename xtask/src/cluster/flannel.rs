//! flannel with its vxlan backend: a flanneld on each node, which knows the others from their Node objects.
//!
//! Its manifest runs it in a pod; here it is a process of the node, as kube-proxy is, with that manifest's options. What
//! the manifest's second program does, a CNI plugin that reads `subnet.env` and hands `bridge` its networks and MTU, is
//! done here once: its Go module is not published at every proxy.

use super::{
    PATIENCE, bridge, control,
    layout::{Node, PODS, Pair},
    node::{self, option},
    pki,
    process::until,
    programs::Programs,
    state::State,
};
use crate::run::{quietly, text};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::{ffi::OsString, fs};

/// Where the CNI plugin looks for what flanneld found out; `/run` is the node's own.
const SUBNET: &str = "/run/flannel/subnet.env";

/// Its manifest's role, without leave to read pods: we tell it the node's name.
const ROLE: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: flannel}
rules:
- {apiGroups: [\"\"], resources: [nodes], verbs: [get, list, watch]}
- {apiGroups: [\"\"], resources: [nodes/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: flannel}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flannel}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: flannel}
";

/// Connects all nodes, which the controller manager gives their networks.
pub(super) fn start(state: &mut State, programs: &Programs) -> Result<()> {
    let layout = state.layout.clone();
    let (role, config) = (layout.file("flannel.yaml"), layout.file("flannel.json"));
    for (path, text) in [(&role, ROLE.to_owned()), (&config, net_config())] {
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    let role = role.to_str().context("a path that is no text")?;
    control::kubectl(state, &["apply", "--filename", role])?;

    let mut networks = Vec::new();
    for node in layout.nodes() {
        // It would end where there are none yet.
        networks.push(until(PATIENCE, || pods(state, node))?);
        let line: [OsString; 7] = [
            "env".into(),
            format!("NODE_NAME={}", node.name()).into(),
            programs.file("flanneld")?.into_os_string(),
            "--kube-subnet-mgr".into(),
            "--ip-masq".into(),
            option("--kubeconfig-file", &pki::kubeconfig(&layout, "flannel")),
            option("--net-config-path", &config),
        ];
        node::start(state, node, "flanneld", &line)?;
    }
    for (node, pods) in layout.nodes().zip(networks) {
        let mtu = until(PATIENCE, || {
            control::ended(state, &format!("{}-flanneld", node.name()))?;
            let cat = ["cat", SUBNET].map(OsString::from);
            let found = quietly(&mut node::command(state, node, &cat)?)?;
            mtu(&text(&found)).with_context(|| format!("no MTU in {SUBNET}"))
        })?;
        bridge::give(&layout, node, &pods, mtu)?;
    }
    Ok(())
}

/// Both families; its own nftables tables, as with iptables it insists on the module `br_netfilter`.
fn net_config() -> String {
    let (v4, v6) = PODS.split_once(',').unwrap_or((PODS, ""));
    let config = json!({
        "Network": v4,
        "EnableIPv6": true,
        "IPv6Network": v6,
        "EnableNFTables": true,
        "Backend": {"Type": "vxlan"},
    });
    format!("{config:#}\n")
}

/// The networks of a node's pods, once it has them.
fn pods(state: &State, node: Node) -> Result<Pair<String>> {
    let name = node.name();
    control::ended(state, &format!("{name}-kubelet"))?;
    let path = "jsonpath={.spec.podCIDRs[0]} {.spec.podCIDRs[1]}";
    let answer = control::kubectl(state, &["get", "node", &name, "-o", path])?;
    let answer = text(&answer);
    let (v4, v6) = answer
        .split_once(' ')
        .filter(|(v4, v6)| !v4.is_empty() && !v6.is_empty())
        .with_context(|| format!("{name} has no networks for pods"))?;
    Ok(Pair {
        v4: v4.to_owned(),
        v6: v6.to_owned(),
    })
}

/// Of packets that vxlan can carry, in bytes.
fn mtu(subnet: &str) -> Option<u16> {
    let mut lines = subnet.lines();
    lines.find_map(|line| line.strip_prefix("FLANNEL_MTU=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_go_through_vxlan() {
        let config: serde_json::Value = serde_json::from_str(&net_config()).expect("JSON");
        assert_eq!(config["Network"], "10.244.0.0/16");
        assert_eq!(config["IPv6Network"], "fd00:244::/48");
        assert_eq!(config["Backend"]["Type"], "vxlan");
    }

    #[test]
    fn the_mtu_is_what_flanneld_found() {
        let written = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(mtu(written), Some(1450));
        assert_eq!(mtu("FLANNEL_NETWORK=10.244.0.0/16\n"), None);
    }
}
