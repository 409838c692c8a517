//! By which line of the contract something is as it is. Who decides says so, and `millrace explain` repeats it.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::config::Frontend;

/// A decision, and the line of the contract that it follows. `Display`: `ready, cluster set [A4.1]`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rule {
    // Of a frontend: where the Service says so.
    InStatus,
    InExternalIps,
    OfNodePort,
    OfClusterIp,
    /// Of the ports of a VIP that are no frontends.
    WholeAddress,
    // Of a frontend that a Service does not get.
    OlderHasIt,
    NodesAddress,
    NodesPort,
    TunnelsPort,
    NatAddress,
    // Of clients.
    NoRanges,
    Ranges,
    RangesOfAnnotation,
    RangesOfVipsOnly,
    RangesOfOtherFamily,
    NoValidRange,
    // Of an endpoint that gets new flows.
    ReadyInCluster,
    ReadyHere,
    ReadyForNode,
    ReadyForZone,
    ServingInCluster,
    ServingHere,
    // Of one that does not.
    NotHere,
    ForOthers,
    Terminating,
    NotReady,
    // Of the way to an endpoint.
    OnThisNode,
    OnAnotherNode,
    OnNoNode,
    ByTunnel,
    AgentAway,
    NoAgent,
    NoWayThere,
    NoNodeAddress,
    NoKeys,
    // Of packets that no endpoint gets.
    NoneAnywhere,
    NoneHere,
}

impl Rule {
    /// What was decided, and the line's number; empty where the contract leaves it to us.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::InStatus => ("status.loadBalancer, ipMode VIP", "A2.4"),
            Self::InExternalIps => ("spec.externalIPs, by option", "A2.3"),
            Self::OfNodePort => ("nodePort of this node, by option", "A2.2"),
            Self::OfClusterIp => ("spec.clusterIPs from outside, by option", "A2.10"),
            Self::WholeAddress => ("a VIP is ours whole", "A2.11"),
            Self::OlderHasIt => ("an older Service has it", "A1.8"),
            Self::NodesAddress => ("an address of a node, without allowNodeAddresses", ""),
            Self::NodesPort => ("a port that keeps nodes manageable", ""),
            Self::TunnelsPort => ("the port of the tunnels, at an address of a node", ""),
            Self::NatAddress => ("one of nat.addresses", ""),
            Self::NoRanges => ("no ranges", "A9.1"),
            Self::Ranges => ("by spec.loadBalancerSourceRanges", "A9.1"),
            Self::RangesOfAnnotation => ("by annotation load-balancer-source-ranges", "A9.2"),
            Self::RangesOfVipsOnly => ("ranges hold for VIPs only, by option", "A9.3"),
            Self::RangesOfOtherFamily => ("no range of this family", "A9.4"),
            Self::NoValidRange => ("no valid range", "A9.6"),
            Self::ReadyInCluster => ("ready, cluster set", "A4.1"),
            Self::ReadyHere => ("ready, local set", "A4.2"),
            Self::ReadyForNode => ("ready, hinted to this node", "A5.2"),
            Self::ReadyForZone => ("ready, hinted to this zone", "A5.2"),
            Self::ServingInCluster => ("none is ready: serves while it terminates", "A4.1"),
            Self::ServingHere => ("none here is ready: serves while it terminates", "A4.2"),
            Self::NotHere => ("not in the local set; its flows stay", "A4.2"),
            Self::ForOthers => ("hinted to others; its flows stay", "A5.2"),
            Self::Terminating => ("terminates; its flows stay", "A4.4"),
            Self::NotReady => ("not ready; its flows stay", "A4.1"),
            Self::OnThisNode => ("on this node", "A3.13"),
            Self::OnAnotherNode => ("on another node", "A3.13"),
            Self::OnNoNode => ("on no known node", "A3.12"),
            Self::ByTunnel => ("on another node, with an agent", "A10.1"),
            Self::AgentAway => (
                "on another node, whose agent is not ready: kube-proxy gets new flows",
                "",
            ),
            Self::NoAgent => ("on another node, where no agent was seen", ""),
            Self::NoWayThere => (
                "on another node, and no route leads there: kube-proxy gets new flows",
                "",
            ),
            Self::NoNodeAddress => (
                "on another node, without an InternalIP of the family of one of this node's",
                "",
            ),
            Self::NoKeys => ("on another node, and without keys for tunnels", ""),
            Self::NoneAnywhere => ("no endpoint anywhere", "A6.1"),
            Self::NoneHere => ("endpoints on other nodes only", "A6.2"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words() {
            (words, "") => f.write_str(words),
            (words, line) => write!(f, "{words} [{line}]"),
        }
    }
}

/// By which rules a frontend is served.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRules {
    /// That it is one.
    pub asked: Rule,
    /// Who may be a client.
    pub clients: Rule,
    /// What becomes of packets while no endpoint gets them; none: one does.
    pub unserved: Option<Rule>,
    /// What becomes of the other ports of its address; none: the host has them.
    pub others: Option<Rule>,
}

/// What the cluster says of a backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    pub node: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
    /// Why it gets new flows, or none.
    pub chosen: Rule,
    /// What its mode goes by.
    pub placed: Rule,
}

/// A frontend that a Service asks for and does not get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeftOut {
    pub frontend: Frontend,
    pub rule: Rule,
}
