//! What is known of the cluster, and what a change of it concerns. Whatever the order in which changes come, the same
//! objects make the same services (A3.11).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Options,
    claims::{Claimant, Claims, Concerned},
    frontends::{Asked, frontends},
    health,
    skip::Skips,
    triggers::Triggers,
    tunnels::Tunnels,
    which::ours,
};
use crate::{
    cluster::facts::{Address, Change, Endpoint, Kind, Node, Object, ObjectKey, Service, Slice},
    config::ServiceName,
};

/// The cluster's objects as they were told, with indexes, so that a change costs what it concerns.
#[derive(Debug)]
pub struct Objects {
    pub(super) options: Options,
    pub(super) services: HashMap<ServiceName, Known>,
    pub(super) slices: HashMap<ServiceName, BTreeMap<ObjectKey, Slice>>,
    /// The Service of each slice.
    owners: HashMap<ObjectKey, ServiceName>,
    nodes: HashMap<ObjectKey, Node>,
    /// How many nodes have an address.
    node_addresses: HashMap<IpAddr, usize>,
    /// Services that have an endpoint with an address, once for each slice that names it.
    endpoints: HashMap<IpAddr, Vec<ServiceName>>,
    pub(super) claims: Claims,
    /// What a list that has begun has told so far.
    listing: HashMap<Kind, HashSet<ObjectKey>>,
    synced: BTreeSet<Kind>,
    triggers: Triggers,
    pub(super) tunnels: Tunnels,
}

/// A Service and what it asks for.
#[derive(Debug)]
pub(super) struct Known {
    pub key: ObjectKey,
    pub fact: Service,
    pub claimant: Claimant,
    pub asked: Vec<Asked>,
    /// There is something to build or to tell: frontends, what of them is skipped, or a health check port.
    pub is_of_interest: bool,
}

impl Objects {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            services: HashMap::new(),
            slices: HashMap::new(),
            owners: HashMap::new(),
            nodes: HashMap::new(),
            node_addresses: HashMap::new(),
            endpoints: HashMap::new(),
            claims: Claims::default(),
            listing: HashMap::new(),
            synced: BTreeSet::new(),
            triggers: Triggers::default(),
            tunnels: Tunnels::default(),
        }
    }

    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// Takes other options; true if that concerns every Service.
    pub fn set_options(&mut self, options: Options) -> bool {
        let changed = self.options != options;
        self.options = options;
        if changed {
            self.ask_all_again();
        }
        changed
    }

    /// Takes a change in. Services to build again, those that are gone among them.
    pub fn apply(&mut self, change: Change) -> BTreeSet<ServiceName> {
        let mut concerned = BTreeSet::new();
        match change {
            Change::Applied(object) => {
                let (kind, key) = match &*object {
                    Object::Service(key, _) => (Kind::Service, key),
                    Object::EndpointSlice(key, _) => (Kind::EndpointSlice, key),
                    Object::Node(key, _) => (Kind::Node, key),
                    Object::Secret(key, _) => (Kind::Secret, key),
                };
                if let Some(seen) = self.listing.get_mut(&kind) {
                    seen.insert(key.clone());
                }
                match *object {
                    Object::Service(key, service) => {
                        self.set_service(&key, Some(service), &mut concerned);
                    }
                    Object::EndpointSlice(key, slice) => {
                        self.set_slice(&key, Some(slice), &mut concerned);
                    }
                    Object::Node(key, node) => self.set_node(&key, Some(node), &mut concerned),
                    Object::Secret(_, keys) => self.set_keys(Some(keys), &mut concerned),
                }
            }
            Change::Deleted(kind, key) => {
                if let Some(seen) = self.listing.get_mut(&kind) {
                    seen.remove(&key);
                }
                self.delete(kind, &key, &mut concerned);
            }
            Change::ListBegins(kind) => {
                self.listing.insert(kind, HashSet::new());
            }
            Change::ListEnds(kind) => {
                if let Some(seen) = self.listing.remove(&kind) {
                    if kind == Kind::Secret && seen.is_empty() {
                        self.set_keys(None, &mut concerned);
                    }
                    for gone in self.objects(kind) {
                        if !seen.contains(&gone) {
                            self.delete(kind, &gone, &mut concerned);
                        }
                    }
                }
                self.synced.insert(kind);
                self.tunnels.told |= kind == Kind::Secret;
            }
            Change::Lost(Kind::Secret, _) => self.tunnels.told = true,
            Change::Lost(..) | Change::Found(_) => {}
        }
        concerned
    }

    /// Whether all kinds of [`Kind::SERVED`] were told whole at least once. What is not known before that may be there all the same.
    pub fn is_synced(&self) -> bool {
        Kind::SERVED.iter().all(|kind| self.synced.contains(kind))
    }

    pub fn is_kind_synced(&self, kind: Kind) -> bool {
        self.synced.contains(&kind)
    }

    /// When the changes of a Service's endpoints since the last call were triggered, in milliseconds since the Unix epoch.
    /// What the first lists told is no change (A13.1).
    pub fn take_triggers(&mut self, name: &ServiceName) -> Vec<i64> {
        self.triggers.take(name)
    }

    /// How many objects of a kind are known.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.owners.len(),
            Kind::Node => self.nodes.len(),
            Kind::Secret => usize::from(self.keys().is_some()),
        }
    }

    /// Services of which something is built or told, this node's end of the tunnels among them.
    pub fn names(&self) -> impl Iterator<Item = &ServiceName> {
        let known = self.services.iter();
        let known = known.filter(|(_, known)| known.is_of_interest);
        known.map(|(name, _)| name).chain(self.tunnel_end())
    }

    /// Whether it asks for frontends.
    pub fn asks(&self, name: &ServiceName) -> bool {
        let known = self.services.get(name);
        known.is_some_and(|known| !known.asked.is_empty()) || self.tunnel_end() == Some(name)
    }

    pub(super) fn is_of_interest(&self, name: &ServiceName) -> bool {
        self.services
            .get(name)
            .is_some_and(|known| known.is_of_interest)
    }

    /// Services that ask for frontends of an address or have an endpoint there: whether it is a node's, or this host's,
    /// concerns them.
    pub fn concerned_by(&self, address: IpAddr) -> BTreeSet<ServiceName> {
        let mut concerned: BTreeSet<_> = self.claims.of_address(address).cloned().collect();
        if self.claims.is_vip(address) {
            let endpoints = self.endpoints.get(&address).into_iter().flatten();
            concerned.extend(endpoints.filter(|name| self.is_of_interest(name)).cloned());
        }
        concerned
    }

    pub fn is_node_address(&self, address: IpAddr) -> bool {
        self.node_addresses.contains_key(&address)
    }

    /// The UID of an object; empty if it is not known.
    pub fn uid(&self, kind: Kind, key: &ObjectKey) -> &str {
        let uid = match kind {
            Kind::Service => service_name(&key.namespace, &key.name)
                .and_then(|name| self.services.get(&name))
                .map(|known| &known.fact.uid),
            Kind::EndpointSlice => self
                .owners
                .get(key)
                .and_then(|owner| self.slices.get(owner)?.get(key))
                .map(|slice| &slice.uid),
            Kind::Node => self.nodes.get(key).map(|node| &node.uid),
            // Nothing of it is left out.
            Kind::Secret => None,
        };
        uid.map_or("", String::as_str)
    }

    /// This node, as the cluster has it.
    pub fn own_node(&self) -> Option<&Node> {
        self.nodes.get(&ObjectKey::new("", &self.options.node))
    }

    fn objects(&self, kind: Kind) -> Vec<ObjectKey> {
        match kind {
            Kind::Service => self
                .services
                .values()
                .map(|known| known.key.clone())
                .collect(),
            Kind::EndpointSlice => self.owners.keys().cloned().collect(),
            Kind::Node => self.nodes.keys().cloned().collect(),
            // It says nothing while it is away.
            Kind::Secret => Vec::new(),
        }
    }

    fn delete(&mut self, kind: Kind, key: &ObjectKey, concerned: &mut BTreeSet<ServiceName>) {
        match kind {
            Kind::Service => self.set_service(key, None, concerned),
            Kind::EndpointSlice => self.set_slice(key, None, concerned),
            Kind::Node => self.set_node(key, None, concerned),
            Kind::Secret => self.set_keys(None, concerned),
        }
    }

    fn set_service(
        &mut self,
        key: &ObjectKey,
        fact: Option<Service>,
        concerned: &mut BTreeSet<ServiceName>,
    ) {
        let Some(name) = service_name(&key.namespace, &key.name) else {
            return;
        };
        let before = self.services.get(&name);
        if before.map(|known| &known.fact) == fact.as_ref() {
            return;
        }
        let mut moved = Concerned::default();
        if let Some(known) = self.services.remove(&name) {
            if known.is_of_interest {
                concerned.insert(name.clone());
            }
            self.claims
                .remove(&known.claimant, &known.asked, &mut moved);
        }
        if let Some(fact) = fact {
            let claimant = Claimant {
                created: fact.created,
                uid: fact.uid.clone(),
                service: name.clone(),
            };
            let (asked, is_of_interest) = self.ask(key, &fact);
            if is_of_interest {
                concerned.insert(name.clone());
            }
            self.claims.add(&claimant, &asked, &mut moved);
            let known = Known {
                key: key.clone(),
                fact,
                claimant,
                asked,
                is_of_interest,
            };
            let asking = (!known.asked.is_empty()).then_some(&known.fact);
            self.tunnels.note(&name, asking);
            self.services.insert(name, known);
        } else {
            self.tunnels.note(&name, None);
            self.triggers.take(&name);
        }
        self.spread(moved, concerned);
    }

    /// What a Service asks for, and whether anything is to be built or told of it.
    fn ask(&self, key: &ObjectKey, fact: &Service) -> (Vec<Asked>, bool) {
        if ours(fact).is_err() {
            return (Vec::new(), false);
        }
        // What it skips is told when the Service is built.
        let mut skips = Skips::of(key);
        let asked = frontends(fact, &self.options, self.own_node(), &mut skips);
        let skipped = !skips.into_found().is_empty();
        let is_of_interest = !asked.is_empty() || skipped || health::port(fact).is_some();
        (asked, is_of_interest)
    }

    fn spread(&self, moved: Concerned, concerned: &mut BTreeSet<ServiceName>) {
        concerned.extend(moved.services);
        for address in moved.addresses {
            let endpoints = self.endpoints.get(&address).into_iter().flatten();
            concerned.extend(endpoints.filter(|name| self.is_of_interest(name)).cloned());
        }
    }

    fn set_slice(
        &mut self,
        key: &ObjectKey,
        slice: Option<Slice>,
        concerned: &mut BTreeSet<ServiceName>,
    ) {
        let owner = slice
            .as_ref()
            .filter(|slice| !slice.for_another_proxy && !slice.service.is_empty())
            .and_then(|slice| service_name(&key.namespace, &slice.service));
        let before = match &owner {
            Some(owner) => self.owners.insert(key.clone(), owner.clone()),
            None => self.owners.remove(key),
        };
        let old = before
            .as_ref()
            .and_then(|before| self.take_slice(before, key));
        if before != owner || old != slice {
            let both = before
                .iter()
                .chain(&owner)
                .filter(|name| self.is_of_interest(name));
            concerned.extend(both.cloned());
        }
        let triggered = |slice: Option<&Slice>| slice.and_then(|slice| slice.triggered_ms);
        // The annotation stays when something else of the slice changes.
        if let (Some(owner), Some(at)) = (&owner, triggered(slice.as_ref()))
            && triggered(old.as_ref()) != Some(at)
            && self.is_synced()
            && self.asks(owner)
        {
            self.triggers.add(owner, at);
        }
        let agents = self.options.agents.as_ref();
        let of_agents = agents.is_some() && (before.as_ref() == agents || owner.as_ref() == agents);
        if let (Some(owner), Some(slice)) = (owner, slice) {
            for address in addresses(&slice) {
                self.endpoints
                    .entry(address)
                    .or_default()
                    .push(owner.clone());
            }
            self.slices
                .entry(owner)
                .or_default()
                .insert(key.clone(), slice);
        }
        if of_agents {
            self.agents_changed(concerned);
        }
    }

    fn take_slice(&mut self, owner: &ServiceName, key: &ObjectKey) -> Option<Slice> {
        let slices = self.slices.get_mut(owner)?;
        let slice = slices.remove(key)?;
        if slices.is_empty() {
            self.slices.remove(owner);
        }
        for address in addresses(&slice) {
            let Some(services) = self.endpoints.get_mut(&address) else {
                continue;
            };
            if let Some(at) = services.iter().position(|name| name == owner) {
                services.swap_remove(at);
            }
            if services.is_empty() {
                self.endpoints.remove(&address);
            }
        }
        Some(slice)
    }

    fn set_node(
        &mut self,
        key: &ObjectKey,
        node: Option<Node>,
        concerned: &mut BTreeSet<ServiceName>,
    ) {
        let said = |node: Option<&Node>| -> (BTreeSet<IpAddr>, Option<Arc<str>>) {
            let addresses = node.into_iter().flat_map(|node| &node.addresses);
            let zone = node.and_then(|node| node.zone.clone());
            (addresses.copied().collect(), zone)
        };
        let (new, new_zone) = said(node.as_ref());
        let internal = node.as_ref().map_or(&[][..], |node| &node.internal);
        self.addresses_changed(&key.name, internal, concerned);
        let before = match node {
            Some(node) => self.nodes.insert(key.clone(), node),
            None => self.nodes.remove(key),
        };
        let (old, old_zone) = said(before.as_ref());
        for address in &new {
            *self.node_addresses.entry(*address).or_default() += 1;
        }
        for address in &old {
            if let Some(nodes) = self.node_addresses.get_mut(address) {
                *nodes -= 1;
                if *nodes == 0 {
                    self.node_addresses.remove(address);
                }
            }
        }
        for address in old.symmetric_difference(&new) {
            concerned.extend(self.concerned_by(*address));
        }
        if *key.name != *self.options.node {
            return;
        }
        if old != new && self.options.node_ports {
            self.ask_all_again();
            concerned.extend(self.services.keys().cloned());
        }
        if old_zone != new_zone {
            concerned.extend(self.names().cloned());
        }
    }

    fn ask_all_again(&mut self) {
        let mut claims = Claims::default();
        let mut services = std::mem::take(&mut self.services);
        for known in services.values_mut() {
            (known.asked, known.is_of_interest) = self.ask(&known.key, &known.fact);
            claims.add(&known.claimant, &known.asked, &mut Concerned::default());
            let asking = (!known.asked.is_empty()).then_some(&known.fact);
            self.tunnels.note(&known.claimant.service, asking);
        }
        self.services = services;
        self.claims = claims;
    }
}

/// None where no such object can exist.
fn service_name(namespace: &str, name: &str) -> Option<ServiceName> {
    format!("{namespace}/{name}").parse().ok()
}

fn addresses(slice: &Slice) -> impl Iterator<Item = IpAddr> + '_ {
    let address = |endpoint: &Endpoint| match endpoint.address {
        Address::Ip(ip) => Some(ip),
        Address::Text(_) => None,
    };
    slice.endpoints.iter().filter_map(address)
}
