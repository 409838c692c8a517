//! What the config says about Services, and which node this is.

use std::{net::IpAddr, sync::Arc};

use crate::config::ServiceName;

/// How the cluster is served.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, as the config has them"
)]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// This node's name.
    pub node: Arc<str>,
    /// `kubernetes.externalIPs`: `spec.externalIPs` are frontends (contract A2.3).
    pub external_ips: bool,
    /// `kubernetes.nodePorts`: node ports of this node's primary addresses are frontends (contract A2.2).
    pub node_ports: bool,
    /// `kubernetes.clusterIPs`: cluster IPs are frontends for clients outside (contract A2.10).
    pub cluster_ips: bool,
    /// `kubernetes.topologyHints`: external frontends follow hints, too (contract A5.6).
    pub topology_hints: bool,
    /// `kubernetes.vipOnlySourceRanges`: ranges hold for VIPs only, as with kube-proxy (contract A9.3).
    pub vip_only_source_ranges: bool,
    /// `allowNodeAddresses`.
    pub allow_node_addresses: bool,
    /// `nat.addresses`.
    pub nat_addresses: Vec<IpAddr>,
    /// `kubernetes.forwardingMode`: endpoints on other nodes are reached through tunnels (contract A10.1).
    pub dsr: bool,
    /// `tunnel.port`, where nodes take each other's packets, UDP.
    pub tunnel_port: u16,
    /// The Service of the agents themselves, which says where they are ready. None: nobody knows.
    pub agents: Option<ServiceName>,
}
