//! Other nodes, as far as packets go there: by which addresses, and whether an agent takes them.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::cluster::facts::{Endpoint, Slice};

/// By name, this node among them.
#[derive(Default, Debug)]
pub(super) struct Peers(HashMap<Arc<str>, Peer>);

#[derive(Default, Debug)]
struct Peer {
    /// Of type `InternalIP`, in the order of the Node.
    addresses: Vec<IpAddr>,
    agent: Agent,
}

/// What is known of a node's agent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Agent {
    /// There was none since this one began.
    #[default]
    Never,
    /// It is not ready, or has gone; its program may be there all the same.
    Away,
    Ready,
}

impl Peers {
    /// True if that is a change.
    pub(super) fn set_addresses(&mut self, node: &Arc<str>, addresses: &[IpAddr]) -> bool {
        if addresses.is_empty() {
            let Some(peer) = self.0.get_mut(node) else {
                return false;
            };
            let changed = !std::mem::take(&mut peer.addresses).is_empty();
            if peer.agent != Agent::Ready {
                self.0.remove(node);
            }
            return changed;
        }
        let peer = self.0.entry(Arc::clone(node)).or_default();
        let changed = peer.addresses != addresses;
        addresses.clone_into(&mut peer.addresses);
        changed
    }

    /// Takes the slices of the agents' own Service in. Nodes whose agent came, went, or is ready now.
    pub(super) fn set_agents<'a>(
        &mut self,
        slices: impl Iterator<Item = &'a Slice>,
    ) -> BTreeSet<Arc<str>> {
        let mut told: HashMap<&Arc<str>, bool> = HashMap::new();
        for endpoint in slices.flat_map(|slice| &slice.endpoints) {
            if let Some(node) = &endpoint.node {
                *told.entry(node).or_default() |= is_ready(endpoint);
            }
        }
        let mut changed = BTreeSet::new();
        let mut set = |node: &Arc<str>, peer: &mut Peer, agent| {
            if peer.agent != agent {
                peer.agent = agent;
                changed.insert(Arc::clone(node));
            }
        };
        for (node, peer) in &mut self.0 {
            if peer.agent == Agent::Ready && !told.contains_key(node) {
                set(node, peer, Agent::Away);
            }
        }
        for (node, ready) in told {
            let peer = self.0.entry(Arc::clone(node)).or_default();
            set(node, peer, if ready { Agent::Ready } else { Agent::Away });
        }
        changed
    }

    pub(super) fn agent(&self, node: &str) -> Agent {
        self.0.get(node).map_or(Agent::Never, |peer| peer.agent)
    }

    /// Addresses of one family of two nodes: that of the endpoint if both have one, else the other.
    pub(super) fn ends(&self, own: &str, other: &str, v4: bool) -> Option<[IpAddr; 2]> {
        let first = |node: &str, v4: bool| {
            let addresses = &self.0.get(node)?.addresses;
            addresses.iter().find(|ip| ip.is_ipv4() == v4).copied()
        };
        [v4, !v4]
            .into_iter()
            .find_map(|v4| Some([first(own, v4)?, first(other, v4)?]))
    }

    /// Those of a node.
    pub(super) fn addresses(&self, node: &str) -> &[IpAddr] {
        self.0.get(node).map_or(&[], |peer| &peer.addresses)
    }

    /// Of all nodes but one, each once, in order.
    pub(super) fn addresses_of_others(&self, own: &str) -> BTreeSet<IpAddr> {
        let others = self.0.iter().filter(|(node, _)| ***node != *own);
        others
            .flat_map(|(_, peer)| &peer.addresses)
            .copied()
            .collect()
    }
}

/// As kube-proxy reads it: nothing said means ready.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.ready.unwrap_or(true)
}
