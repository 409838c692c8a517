//! Pods on a bridge of their node, with addresses of the node's own networks; between nodes a route to each.

use super::{
    PATIENCE, control,
    layout::{self, Layout, MTU, Node, Pair},
    network,
    process::until,
    state::State,
};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::fs;

/// Connects all nodes, and writes down their pods' networks, which they have from us.
pub(super) fn start(state: &State) -> Result<()> {
    network::apply(
        &state.layout,
        &layout::routes_without_overlay(&state.layout),
    )?;
    for node in state.layout.nodes() {
        let (name, pods) = (node.name(), node.pods());
        let networks = json!({"spec": {"podCIDR": pods.v4, "podCIDRs": [pods.v4, pods.v6]}});
        until(PATIENCE, || {
            control::ended(state, &format!("{name}-kubelet"))?;
            control::kubectl(
                state,
                &["patch", "node", &name, "-p", &networks.to_string()],
            )
        })?;
        give(&state.layout, node, &pods, MTU)?;
    }
    Ok(())
}

/// Tells a node's container runtime how pods get their addresses: from then on the node can be ready. `mtu` in bytes.
pub(super) fn give(layout: &Layout, node: Node, pods: &Pair<String>, mtu: u16) -> Result<()> {
    let folder = layout.file(&node.name()).join("cni");
    // The runtime watches the folder, and reads no file of this name.
    let fresh = folder.join("10-bridge.new");
    fs::write(&fresh, list(pods, mtu)).with_context(|| fresh.display().to_string())?;
    let path = folder.join("10-bridge.conflist");
    fs::rename(&fresh, &path).with_context(|| path.display().to_string())
}

/// Nothing is masqueraded here: everybody has routes to pods, or the one who has none for them does it.
fn list(pods: &Pair<String>, mtu: u16) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "cluster",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "mtu": mtu,
                // A pod may be its own service's backend.
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": pods.v4}], [{"subnet": pods.v6}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    format!("{list:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn pods_have_addresses_of_their_nodes_networks() {
        let node = Layout::new(Path::new("/x"), 3).nodes().last();
        let list: serde_json::Value =
            serde_json::from_str(&list(&node.expect("a third node").pods(), 1450)).expect("JSON");
        let ranges = &list["plugins"][0]["ipam"]["ranges"];
        assert_eq!(ranges[0][0]["subnet"], "10.244.3.0/24");
        assert_eq!(ranges[1][0]["subnet"], "fd00:244:0:3::/64");
    }
}
