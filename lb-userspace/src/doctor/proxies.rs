//! Others that serve the cluster's Services by BPF. What either of us does to a packet the other does not see, and nothing
//! of it is tested: they are refused.

use std::{fs, path::Path};

use super::{Facts, Line};

/// Where they pin what they have, whatever file system ours is.
pub(super) const BPF_FILESYSTEM: &str = "/sys/fs/bpf";

/// One that is active, or that left its pins behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proxy {
    pub(super) kind: Kind,
    /// What it has pinned, below [`BPF_FILESYSTEM`].
    pub(super) pin: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Cilium,
    Calico,
}

/// A folder, and how names of pins in it begin. Cilium pins its service maps in any mode, those of connections to node
/// ports (`pkg/maps/neighborsmap`) and the links of its socket programs (`pkg/socketlb`) only where it replaces
/// kube-proxy. Calico has frontends (`felix/bpf/nat`, with the layout's version behind the name) in eBPF mode only.
const PINS: [(Kind, &str, &str); 6] = [
    (Kind::Cilium, "tc/globals", "cilium_nodeport_neigh4"),
    (Kind::Cilium, "tc/globals", "cilium_nodeport_neigh6"),
    (
        Kind::Cilium,
        "cilium/socketlb/links/cgroup",
        "cil_sock4_connect",
    ),
    (
        Kind::Cilium,
        "cilium/socketlb/links/cgroup",
        "cil_sock6_connect",
    ),
    (Kind::Calico, "tc/globals", "cali_v4_nat_fe"),
    (Kind::Calico, "tc/globals", "cali_v6_nat_fe"),
];

impl Proxy {
    /// All that have something pinned below `folder`, each once.
    pub(super) fn find(folder: &Path) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for (kind, below, begin) in PINS {
            if found.iter().any(|proxy| proxy.kind == kind) {
                continue;
            }
            let pins = fs::read_dir(folder.join(below)).into_iter().flatten();
            let names = pins.flatten().map(|pin| pin.file_name());
            let mut names = names.filter_map(|name| name.into_string().ok());
            if let Some(name) = names.find(|name| name.starts_with(begin)) {
                let pin = format!("{below}/{name}");
                found.push(Self { kind, pin });
            }
        }
        found
    }

    fn line(&self) -> Line {
        let (who, fix) = match self.kind {
            Kind::Cilium => (
                "Cilium's kube-proxy replacement",
                "run Cilium with kubeProxyReplacement=false and socketLB.enabled=false, beside kube-proxy",
            ),
            Kind::Calico => (
                "Calico's eBPF mode",
                "run Calico with bpfEnabled: false in its FelixConfiguration, beside kube-proxy",
            ),
        };
        let found = format!(
            "{who} serves this node ({BPF_FILESYSTEM}/{}), which is not tested beside ours",
            self.pin
        );
        let after = "restart the node, if it only left its pins behind";
        Line::unfit(NAME, found, format!("{fix}; {after}"))
    }
}

const NAME: &str = "service proxy";

pub(super) fn lines(facts: &Facts) -> Vec<Line> {
    if facts.proxies.is_empty() {
        return vec![Line::ok(NAME, "no other one by BPF")];
    }
    facts.proxies.iter().map(Proxy::line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found where these are pinned.
    fn found(test: &str, pins: &[&str]) -> Vec<String> {
        let folder = format!("millrace-proxies-{test}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        for pin in pins {
            let path = folder.join(pin);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let found = Proxy::find(&folder);
        if !pins.is_empty() {
            fs::remove_dir_all(&folder).unwrap();
        }
        found.into_iter().map(|proxy| proxy.pin).collect()
    }

    #[test]
    fn a_proxy_is_known_by_its_pins() {
        let nobody = Vec::<String>::new();
        assert_eq!(found("none", &[]), nobody);
        // Cilium beside kube-proxy, and Calico with filters by XDP, in its other mode.
        let others = [
            "tc/globals/cilium_lb4_services_v2",
            "tc/globals/cilium_lxc",
            "cilium/devices/eth0/links/cil_from_netdev",
            "calico/xdp/eth0",
            "millrace/abi3-1/FLOWS4",
        ];
        assert_eq!(found("others", &others), nobody);
        let cilium = [
            "tc/globals/cilium_nodeport_neigh4",
            "tc/globals/cilium_nodeport_neigh6",
            "cilium/socketlb/links/cgroup/cil_sock4_connect",
        ];
        assert_eq!(found("cilium", &cilium), cilium[..1]);
        assert_eq!(found("sockets", &cilium[2..]), cilium[2..]);
        let both = ["tc/globals/cali_v6_nat_fe3", cilium[1]];
        assert_eq!(found("both", &both), [both[1], both[0]]);
    }
}
