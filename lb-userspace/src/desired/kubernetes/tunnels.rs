//! `dsr`: what this node is to others, which Services are sent through tunnels, and whom a change of a node concerns.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::abi::Mode;

use super::{
    Objects,
    peers::Peers,
    skip::{Reason, Skips},
};
use crate::{
    cluster::{
        facts::Service as Fact,
        keys::{Keys, NAME},
    },
    config::{Algorithm, Frontend, Protocol, ServiceName},
    desired::{Group, GroupFrontend, GroupKey, Service},
};

/// This node's end of the tunnels, as a service. No Service has such a name: theirs have a namespace.
const END: &str = "tunnel";

/// What `dsr` goes by.
#[derive(Debug)]
pub(super) struct Tunnels {
    pub peers: Peers,
    /// The last good ones.
    pub keys: Option<Keys>,
    /// Why there are none, or no newer ones.
    pub fault: Option<String>,
    /// The cluster has said once whether there are keys, or that it does not say.
    pub told: bool,
    /// Services that ask for it by annotation.
    asking: HashSet<ServiceName>,
    end: Option<ServiceName>,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self {
            peers: Peers::default(),
            keys: None,
            fault: None,
            told: false,
            asking: HashSet::new(),
            end: END.parse().ok(),
        }
    }
}

impl Tunnels {
    /// Notes whether a Service that has frontends asks for `dsr` by itself.
    pub(super) fn note(&mut self, name: &ServiceName, fact: Option<&Fact>) {
        if fact.is_some_and(|fact| asked(fact) == Some(Ok(true))) {
            self.asking.insert(name.clone());
        } else {
            self.asking.remove(name);
        }
    }
}

impl Objects {
    /// Whether some Service is to be `dsr`, so that keys are needed.
    pub fn wants_keys(&self) -> bool {
        self.options.dsr || !self.tunnels.asking.is_empty()
    }

    /// Whether everything is known that packets of other nodes need: those are sent as soon as this agent is ready.
    pub fn is_whole(&self) -> bool {
        self.is_synced() && (self.tunnels.told || self.options.agents.is_none())
    }

    /// Those in force.
    pub const fn keys(&self) -> Option<&Keys> {
        self.tunnels.keys.as_ref()
    }

    /// Why there are no keys, or no newer ones, if that is of any concern.
    pub fn keys_fault(&self) -> Option<&str> {
        let concerns = self.wants_keys() || self.keys().is_some();
        self.tunnels.fault.as_deref().filter(|_| concerns)
    }

    /// Takes keys that are known from before.
    pub fn adopt_keys(&mut self, keys: Keys) {
        self.tunnels.keys = Some(keys);
    }

    /// Takes what the Secret says; what was said before holds where it says nothing good.
    pub(super) fn set_keys(
        &mut self,
        told: Option<Result<Keys, String>>,
        concerned: &mut BTreeSet<ServiceName>,
    ) {
        match told {
            Some(Ok(keys)) => {
                self.tunnels.fault = None;
                if self.tunnels.keys.replace(keys).is_none() {
                    concerned.extend(self.names().cloned());
                }
            }
            Some(Err(fault)) => self.tunnels.fault = Some(fault),
            None => self.tunnels.fault = Some(format!("there is no Secret {NAME}")),
        }
    }

    /// Whether endpoints of a Service on other nodes are reached through tunnels.
    pub(super) fn is_dsr(&self, service: &Fact, skips: &mut Skips) -> bool {
        match asked(service) {
            None => self.options.dsr,
            Some(Ok(dsr)) => dsr,
            Some(Err(text)) => {
                skips.service(
                    Reason::InvalidForwardingMode,
                    format!(
                        "annotation millrace.io/forwarding-mode \"{text}\" is no mode, and not followed; write dsr or pass"
                    ),
                );
                self.options.dsr
            }
        }
    }

    /// Name of this node's end of the tunnels, if it has one.
    pub(super) fn tunnel_end(&self) -> Option<&ServiceName> {
        let own = self.tunnels.peers.addresses(&self.options.node);
        let has = self.tunnels.keys.is_some() && !own.is_empty();
        self.tunnels.end.as_ref().filter(|_| has)
    }

    /// Takes packets of the other nodes, whatever is asked of Services here: they may be told of a change earlier.
    pub(super) fn tunnel(&self) -> Service {
        let frontend = |address: &IpAddr| GroupFrontend {
            frontend: Frontend {
                address: *address,
                port: self.options.tunnel_port,
                protocol: Protocol::Udp,
            },
            owns_address: false,
            rules: None,
        };
        let (node, peers) = (&self.options.node, &self.tunnels.peers);
        let others = peers.addresses_of_others(node);
        let group = Group {
            key: GroupKey {
                restricted: true,
                ..GroupKey::default()
            },
            frontends: peers.addresses(node).iter().map(frontend).collect(),
            backends: Vec::new(),
            source_ranges: Some(others.into_iter().map(IpNet::from).collect()),
            drop: false,
        };
        Service {
            mode: Mode::Dsr,
            is_tunnel_end: true,
            affinity: None,
            algorithm: Algorithm::default(),
            groups: vec![group],
            left_out: Vec::new(),
        }
    }

    /// The agents' own Service changed.
    pub(super) fn agents_changed(&mut self, concerned: &mut BTreeSet<ServiceName>) {
        let agents = self.options.agents.as_ref();
        let slices = agents.and_then(|agents| self.slices.get(agents));
        let slices = slices.into_iter().flat_map(|slices| slices.values());
        let changed = self.tunnels.peers.set_agents(slices);
        if !changed.is_empty() {
            self.nodes_changed(|node| changed.contains(node), concerned);
        }
    }

    /// A node has other addresses than before.
    pub(super) fn addresses_changed(
        &mut self,
        node: &Arc<str>,
        addresses: &[IpAddr],
        concerned: &mut BTreeSet<ServiceName>,
    ) {
        let end = self.tunnel_end().cloned();
        if !self.tunnels.peers.set_addresses(node, addresses) {
            return;
        }
        concerned.extend(end);
        concerned.extend(self.tunnel_end().cloned());
        let own = **node == *self.options.node;
        self.nodes_changed(|other| own || other == node, concerned);
    }

    /// Adds the Services with endpoints on nodes that changed. That is all slices once, at a change that is a rare one.
    fn nodes_changed(
        &self,
        changed: impl Fn(&Arc<str>) -> bool,
        concerned: &mut BTreeSet<ServiceName>,
    ) {
        for (name, slices) in &self.slices {
            let mut nodes = slices
                .values()
                .flat_map(|slice| &slice.endpoints)
                .filter_map(|endpoint| endpoint.node.as_ref());
            let asks = self.is_of_interest(name)
                && (self.options.dsr || self.tunnels.asking.contains(name));
            if asks && nodes.any(&changed) {
                concerned.insert(name.clone());
            }
        }
    }
}

/// What the annotation says, if it is there: `dsr` or not; the text if it says neither.
fn asked(service: &Fact) -> Option<Result<bool, &str>> {
    let text = service.forwarding_mode.as_deref()?.trim();
    Some(match text {
        "dsr" => Ok(true),
        "pass" => Ok(false),
        other => Err(other),
    })
}
