//! How packets get to an endpoint.

use std::net::IpAddr;

use lb_common::abi::Mode;

use super::{Objects, backends::Candidate, peers::Agent, rule::Rule};
use crate::{
    desired::group::nat_source,
    net::{Facts, Path, path},
};

/// The parts of a [`crate::desired::Backend`] that follow from where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Way {
    pub mode: Mode,
    /// Where the tunnel ends.
    pub node_address: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub path: Option<Path>,
    /// New flows are left to kube-proxy.
    pub away: bool,
    pub rule: Rule,
}

impl Objects {
    /// `dsr`: it is asked for.
    pub(super) fn way(&self, endpoint: &Candidate<'_>, dsr: bool, host: &Facts) -> Way {
        let v4 = endpoint.address.is_ipv4();
        let Some(node) = endpoint.node else {
            return self.without_tunnel(endpoint.address, Rule::OnNoNode, host);
        };
        if endpoint.local {
            return Way::by_stack(Mode::Local, Rule::OnThisNode);
        }
        let without = |rule| self.without_tunnel(endpoint.address, rule, host);
        if !dsr {
            return without(Rule::OnAnotherNode);
        }
        if self.keys().is_none() {
            return without(Rule::NoKeys);
        }
        let peers = &self.tunnels.peers;
        let Some([own, other]) = peers.ends(&self.options.node, node, v4) else {
            return without(Rule::NoNodeAddress);
        };
        let path = path::resolve(host, other);
        // Who was sent packets before gets those of the flows that he has, whatever becomes of his agent.
        let (away, rule) = match (peers.agent(node), &path) {
            (Agent::Ready, Some(_)) => (false, Rule::ByTunnel),
            (Agent::Ready, None) => (true, Rule::NoWayThere),
            (Agent::Away, _) => (true, Rule::AgentAway),
            // Nobody there would give back what he does not know.
            (Agent::Never, _) => return without(Rule::NoAgent),
        };
        Way {
            mode: Mode::Dsr,
            node_address: Some(other),
            source: Some(own),
            path,
            away,
            rule,
        }
    }

    /// `nat` from an own address, else kube-proxy serves it.
    fn without_tunnel(&self, address: IpAddr, rule: Rule, host: &Facts) -> Way {
        if !self.has_nat(address.is_ipv4()) {
            return Way::by_stack(Mode::Pass, rule);
        }
        let path = path::resolve(host, address);
        let source = path
            .as_ref()
            .and_then(|_| nat_source(&self.options.nat_addresses, address));
        Way {
            mode: Mode::Nat,
            source,
            path,
            ..Way::by_stack(Mode::Nat, rule)
        }
    }

    fn has_nat(&self, v4: bool) -> bool {
        let mut own = self.options.nat_addresses.iter();
        own.any(|ip| ip.is_ipv4() == v4)
    }
}

impl Way {
    const fn by_stack(mode: Mode, rule: Rule) -> Self {
        Self {
            mode,
            node_address: None,
            source: None,
            path: None,
            away: false,
            rule,
        }
    }
}
