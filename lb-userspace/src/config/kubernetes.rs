//! `kubernetes`: the cluster as source of services, in place of `services`.

use std::{path::PathBuf, str::FromStr};

use super::{
    error::Invalid,
    reader::{Faults, Map},
};

/// Which Services are served, and how.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, as the file has them"
)]
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Kubernetes {
    /// `node`: this node's name. Default: `NODE_NAME` of the environment, else the host's name.
    pub node: Option<String>,
    /// `kubeconfig`: a file. Default: that of `KUBECONFIG`, else the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// `nodePorts`: node ports of this node's primary addresses are frontends. Default: false.
    pub node_ports: bool,
    /// `externalIPs`: `spec.externalIPs` are frontends; whoever may write a Service can take any address then. Default:
    /// false.
    pub external_ips: bool,
    /// `clusterIPs`: cluster IPs are frontends for clients outside the cluster. Default: false.
    pub cluster_ips: bool,
    /// `topologyHints`: external frontends follow hints, too. Default: false.
    pub topology_hints: bool,
    /// `sourceRanges`: `all` external frontends of a Service, or `vips` only, as kube-proxy has it. Default: all.
    pub vip_only_source_ranges: bool,
    /// `healthCheckNodePort`. Default: auto.
    pub health_check_ports: HealthCheckPorts,
    /// `forwardingMode`: endpoints on other nodes are reached through tunnels (`dsr`), or left to kube-proxy (`pass`); an
    /// annotation of a Service says otherwise for that one. Default: pass, as it was before there were tunnels.
    pub dsr: bool,
}

/// Who answers on the `healthCheckNodePort` of Services.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum HealthCheckPorts {
    /// This agent where nobody else does.
    #[default]
    Auto,
    /// This agent; a port that somebody else has is told as an event.
    Always,
    Never,
}

/// Text that names an object.
struct ObjectName(String);

impl FromStr for ObjectName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if text.is_empty() || text.len() > 253 || !text.bytes().all(good) {
            return Err(Invalid::new(
                format!("\"{text}\" is not the name of a node"),
                "write it as `kubectl get nodes` shows it",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Kubernetes {
    pub(super) fn read(mut map: Map<'_>, faults: &mut Faults) -> Self {
        let node = map
            .take("node")
            .and_then(|at| at.parse::<ObjectName>(faults));
        let kubeconfig = map
            .take("kubeconfig")
            .and_then(|at| at.text(faults).map(PathBuf::from));
        let mut switch = |name| {
            let on = map.take(name).and_then(|at| at.boolean(faults));
            on.unwrap_or(false)
        };
        let (node_ports, external_ips) = (switch("nodePorts"), switch("externalIPs"));
        let (cluster_ips, topology_hints) = (switch("clusterIPs"), switch("topologyHints"));
        let reach = [("all", false), ("vips", true)];
        let ranges = map
            .take("sourceRanges")
            .and_then(|at| at.word(&reach, faults));
        let words = [
            ("auto", HealthCheckPorts::Auto),
            ("always", HealthCheckPorts::Always),
            ("never", HealthCheckPorts::Never),
        ];
        let ports = map
            .take("healthCheckNodePort")
            .and_then(|at| at.word(&words, faults));
        let modes = [("dsr", true), ("pass", false)];
        let dsr = map
            .take("forwardingMode")
            .and_then(|at| at.word(&modes, faults));
        map.close(faults);
        Self {
            node: node.map(|node| node.0),
            kubeconfig,
            node_ports,
            external_ips,
            cluster_ips,
            topology_hints,
            vip_only_source_ranges: ranges.unwrap_or_default(),
            health_check_ports: ports.unwrap_or_default(),
            dsr: dsr.unwrap_or_default(),
        }
    }
}
