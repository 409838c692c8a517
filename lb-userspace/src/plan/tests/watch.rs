//! The maps in memory, and what must hold of them after every op.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    abi::{
        Backend, Frontend as Entry, Mode, NO_OWNER, NextHop, OWNERS, Region, Service, filter_bit,
        leaving_bit, owner, service_flag,
    },
    bytes::{Be16, V4, V6},
};

use super::super::{Limits, Op, table};
use super::KEY;
use crate::{
    dataplane::{Dataplane as _, Fake},
    desired::Desired,
};

pub(super) struct Watch {
    pub(super) fake: Fake,
    /// What packets that are still in the program may have seen: since the last grace period.
    seen: Seen,
    /// By table: ordinals that own slots, and those anywhere in a chain.
    tables: RefCell<BTreeMap<u64, (Ordinals, Ordinals)>>,
}

type Ordinals = BTreeSet<u16>;

#[derive(Default)]
struct Seen {
    /// Regions of tables and members, as base and size.
    slots: BTreeSet<(u32, u32)>,
    members: BTreeSet<(u32, u32)>,
    /// Words of `MEMBERS` that slots named.
    words: BTreeSet<u32>,
    /// Backends that words or targets named, next hops that words' backends named.
    backends: BTreeSet<u32>,
    hops: BTreeSet<u32>,
    /// Services that entries named.
    services: BTreeSet<u32>,
    removed: Vec<(IpAddr, u16, u8)>,
}

impl Watch {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            fake: Fake::new(limits),
            seen: Seen::default(),
            tables: RefCell::default(),
        }
    }

    fn ordinals(&self, table: Region) -> (Ordinals, Ordinals) {
        let read = || {
            let slots = self.slots(table);
            let at = |positions: u32| {
                let of = |slot: &u64| {
                    (0..positions)
                        .map(|position| owner(*slot, position))
                        .collect::<Vec<_>>()
                };
                slots.iter().flat_map(of).collect()
            };
            (at(1), at(OWNERS as u32))
        };
        self.tables
            .borrow_mut()
            .entry(table.0)
            .or_insert_with(read)
            .clone()
    }

    /// Frontends that lead to a table with slots, and those that lead to one without.
    fn served(&self) -> (BTreeSet<u32>, BTreeSet<u32>) {
        let ids = self.entries().map(|(_, entry)| {
            let value = self.fake.services.get(&entry.service);
            let table = value.map_or(Region::EMPTY, |value| Region(value.table));
            (entry.id, !table.is_empty())
        });
        let (served, starved): (Vec<_>, Vec<_>) = ids.partition(|(_, served)| *served);
        let ids = |list: Vec<(u32, bool)>| list.into_iter().map(|(id, _)| id).collect();
        (ids(served), ids(starved))
    }

    pub(super) fn apply(&mut self, ops: &[Op]) {
        let (before, _) = self.served();
        let mut starved = BTreeSet::new();
        for (at, op) in ops.iter().enumerate() {
            self.see();
            self.may(op, &ops[..=at]);
            self.fake
                .apply(std::slice::from_ref(op))
                .unwrap_or_else(|error| panic!("{error} at {at} of {ops:#?}"));
            if matches!(op, Op::Slots { .. }) {
                self.tables.borrow_mut().clear();
            }
            if *op == Op::Grace {
                self.seen = Seen::default();
            }
            self.whole(&ops[..=at]);
            if matches!(op, Op::Table { .. } | Op::Service { .. }) {
                starved.extend(self.served().1);
            }
        }
        // Who has backends before and after has them in between.
        starved.retain(|id| before.contains(id) && self.served().0.contains(id));
        assert_eq!(starved, BTreeSet::new(), "{ops:#?}");
    }

    /// The slots of a service's table.
    pub(super) fn table(&self, nth: usize) -> Vec<u64> {
        let value = self.fake.services.values().nth(nth).unwrap();
        self.slots(Region(value.table))
    }

    fn slots(&self, region: Region) -> Vec<u64> {
        (region.base()..region.base() + region.size())
            .map(|at| self.fake.slots.get(&at).copied().unwrap_or_default())
            .collect()
    }

    fn live(&self) -> impl Iterator<Item = (u32, Service)> + '_ {
        let named: BTreeSet<u32> = self.entries().map(|(_, entry)| entry.service).collect();
        self.fake
            .services
            .iter()
            .filter(move |(index, value)| {
                value.flags & service_flag::LIVE != 0 && named.contains(index)
            })
            .map(|(index, value)| (*index, *value))
    }

    fn entries(&self) -> impl Iterator<Item = (IpAddr, Entry)> + '_ {
        let entries = self.fake.frontends.iter();
        entries
            .filter(|(key, _)| key.port != 0)
            .map(|(key, entry)| (key.address, *entry))
    }

    fn see(&mut self) {
        let mut seen = std::mem::take(&mut self.seen);
        for (_, entry) in self.entries() {
            seen.services.insert(entry.service);
        }
        // By the backend a packet sees whether the entry that it holds is another's by now.
        seen.backends.extend(self.fake.targets.values());
        for (_, value) in self.live() {
            let (table, members) = (Region(value.table), Region(value.members));
            if !table.is_empty() {
                seen.slots.insert((table.base(), table.size()));
            }
            if !members.is_empty() {
                seen.members.insert((members.base(), members.size()));
            }
            for ordinal in self.ordinals(table).0 {
                let word = members.base() + u32::from(ordinal);
                seen.words.insert(word);
                let id = self.fake.members.get(&word).copied().unwrap_or_default() as u32;
                seen.backends.insert(id);
                let backend = self.fake.backends.get(&id).copied().unwrap_or_default();
                seen.hops.insert(backend.next_hop);
            }
        }
        self.seen = seen;
    }

    /// Whether a packet that saw anything since the last grace period would be hurt.
    fn may(&mut self, op: &Op, ops: &[Op]) {
        let overlaps = |set: &BTreeSet<(u32, u32)>, base: u32, size: u32| {
            set.iter()
                .any(|(at, length)| base < at + length && *at < base + size)
        };
        match op {
            Op::Backend { id, .. } => {
                assert!(
                    !self.seen.backends.contains(id),
                    "backend {id} in use: {ops:#?}"
                );
            }
            Op::NextHop { id, .. } => {
                let named = self
                    .fake
                    .backends
                    .values()
                    .any(|backend| backend.next_hop == *id);
                assert!(
                    !named && !self.seen.hops.contains(id),
                    "next hop {id} in use: {ops:#?}"
                );
            }
            Op::Service { index, value } => {
                let named = self.entries().any(|(_, entry)| entry.service == *index);
                assert!(!named, "service {index} in use: {ops:#?}");
                let reused = *value != Service::default() && self.seen.services.contains(index);
                assert!(!reused, "service {index} was in use: {ops:#?}");
            }
            Op::Slots { base, slots } => {
                // In place only the chain behind the owner may change.
                let hit = overlaps(&self.seen.slots, *base, slots.len() as u32);
                for (at, slot) in (*base..).zip(slots) {
                    let now = self.fake.slots.get(&at).copied().unwrap_or_default();
                    assert!(
                        !hit || owner(*slot, 0) == owner(now, 0),
                        "slots in use: {ops:#?}"
                    );
                }
            }
            Op::Members { base, members } => {
                for (at, id) in (*base..).zip(members) {
                    let hit = self.seen.words.contains(&at);
                    assert!(!hit || *id != 0, "word {at} in use: {ops:#?}");
                }
                if members.len() > 1 {
                    let hit = overlaps(&self.seen.members, *base, members.len() as u32);
                    assert!(!hit, "members in use: {ops:#?}");
                }
            }
            Op::InsertFrontend4 { key, .. } => {
                let key = (
                    IpAddr::from(key.address.to_bytes()),
                    key.port.to_host(),
                    key.protocol,
                );
                assert!(
                    self.seen.removed.iter().all(|removed| *removed == key),
                    "{ops:#?}"
                );
            }
            Op::InsertFrontend6 { key, .. } => {
                let key = (
                    IpAddr::from(key.address.to_bytes()),
                    key.port.to_host(),
                    key.protocol,
                );
                assert!(
                    self.seen.removed.iter().all(|removed| *removed == key),
                    "{ops:#?}"
                );
            }
            Op::RemoveFrontend4 { key } => self.seen.removed.push((
                IpAddr::from(key.address.to_bytes()),
                key.port.to_host(),
                key.protocol,
            )),
            Op::RemoveFrontend6 { key } => self.seen.removed.push((
                IpAddr::from(key.address.to_bytes()),
                key.port.to_host(),
                key.protocol,
            )),
            _ => {}
        }
    }

    /// Whether a packet that comes now meets a whole state.
    fn whole(&self, ops: &[Op]) {
        for (_, entry) in self.entries() {
            let value = self.fake.services.get(&entry.service);
            let live = value.is_some_and(|value| value.flags & service_flag::LIVE != 0);
            assert!(live && entry.id != 0, "{entry:?} leads nowhere: {ops:#?}");
        }
        for ((service, address, port), id) in &self.fake.targets {
            let backend = self.fake.backends.get(id).copied().unwrap_or_default();
            assert_eq!(
                (
                    backend.address.to_ip(),
                    backend.port.to_host(),
                    backend.mode
                ),
                (*address, *port, Mode::Local as u8),
                "target of service {service}: {ops:#?}"
            );
        }
        let mut owned: BTreeMap<u32, u32> = BTreeMap::new();
        for (index, value) in self.live() {
            let members = Region(value.members);
            let (owners, mut ordinals) = self.ordinals(Region(value.table));
            assert!(!owners.contains(&NO_OWNER));
            ordinals.remove(&NO_OWNER);
            for ordinal in ordinals {
                assert!(u32::from(ordinal) < members.size(), "{ordinal}: {ops:#?}");
                let word = members.base() + u32::from(ordinal);
                let id = self.fake.members.get(&word).copied().unwrap_or_default() as u32;
                let backend = self.fake.backends.get(&id);
                assert!(
                    backend.is_some_and(|b| b.generation > 0),
                    "backend {id}: {ops:#?}"
                );
                let first = *owned.entry(id).or_insert(index);
                assert_eq!(first, index, "backend {id} of two services: {ops:#?}");
                let backend = backend.unwrap();
                if backend.next_hop != 0 {
                    assert!(
                        self.fake.next_hops.contains_key(&backend.next_hop),
                        "{ops:#?}"
                    );
                }
                if backend.mode == Mode::Nat as u8 {
                    assert!(self.lets_in(backend.source.to_ip()), "{ops:#?}");
                }
                if backend.mode == Mode::Local as u8 {
                    assert!(self.looks_at(backend), "{ops:#?}");
                    assert_eq!(backend.next_hop, 0, "the stack knows the way: {ops:#?}");
                }
            }
        }
    }

    fn lets_in(&self, address: IpAddr) -> bool {
        self.is_set(match address {
            IpAddr::V4(ip) => filter_bit(&V4::from(ip)),
            IpAddr::V6(ip) => filter_bit(&V6::from(ip)),
        })
    }

    /// Whether a backend's packets are looked at as they leave: by its address, and by address and port.
    fn looks_at(&self, backend: &Backend) -> bool {
        [Be16::new(0), backend.port].into_iter().all(|port| {
            self.is_set(match backend.address.to_ip() {
                IpAddr::V4(ip) => leaving_bit(&V4::from(ip), port),
                IpAddr::V6(ip) => leaving_bit(&V6::from(ip), port),
            })
        })
    }

    fn is_set(&self, (index, bit): (u32, u64)) -> bool {
        let word = self.fake.addresses.get(&index);
        word.is_some_and(|word| word & bit != 0)
    }

    /// Whether the maps say what is desired, and no more.
    pub(super) fn holds(&self, desired: &Desired) {
        let fake = &self.fake;
        let (mut frontends, mut vips, mut sources) = (0, BTreeSet::new(), 0);
        let (mut owned, mut targets) = (BTreeSet::new(), BTreeSet::new());
        for (name, service) in &desired.services {
            for group in &service.groups {
                let mut indexes = BTreeSet::new();
                for one in &group.frontends {
                    let found = fake.frontends.iter().find(|(key, _)| {
                        (key.address, key.port) == (one.frontend.address, one.frontend.port)
                            && key.protocol == one.frontend.protocol.number()
                    });
                    let (_, entry) = found.unwrap_or_else(|| panic!("{name}: {one:?} missing"));
                    indexes.insert(entry.service);
                    frontends += 1;
                    vips.insert(one.frontend.address);
                    assert!(self.lets_in(one.frontend.address));
                }
                assert_eq!(indexes.len(), 1, "{name}: one index a group");
                let index = *indexes.first().unwrap();
                assert!(owned.insert(index), "{name}: index {index} twice");
                let value = fake.services[&index];
                let flag = |bit: u64| value.flags & bit != 0;
                assert_eq!(flag(service_flag::FLOWS), service.mode != Mode::Ipip);
                let shared = matches!(service.mode, Mode::Local | Mode::Dsr);
                assert_eq!(flag(service_flag::SHARED), shared);
                assert_eq!(flag(service_flag::DSR), service.mode == Mode::Dsr);
                assert_eq!(flag(service_flag::AFFINITY), service.affinity.is_some());
                assert_eq!(
                    flag(service_flag::SOURCE_RANGES),
                    group.source_ranges.is_some()
                );
                assert_eq!(flag(service_flag::DROP), group.drop);
                for net in group.source_ranges.iter().flatten() {
                    sources += 1;
                    assert!(fake.sources.iter().any(|source| {
                        source.service == index
                            && source.client == net.network()
                            && source.bits == u32::from(net.prefix_len())
                    }));
                }
                self.holds_backends(value, group);
                for one in group.backends.iter().filter(|one| one.mode == Mode::Local) {
                    targets.insert((index, one.address, one.port));
                }
            }
        }
        assert_eq!(self.entries().count(), frontends);
        let markers = fake.frontends.keys().filter(|key| key.port == 0);
        let markers: BTreeSet<_> = markers.map(|key| key.address).collect();
        assert_eq!(markers, vips);
        assert_eq!(fake.sources.len(), sources);
        let named: BTreeSet<_> = fake.targets.keys().copied().collect();
        assert_eq!(named, targets);
        let live = fake.services.values().filter(|value| value.flags != 0);
        assert_eq!(live.count(), owned.len());
    }

    fn holds_backends(&self, value: Service, group: &crate::desired::Group) {
        let fake = &self.fake;
        let members = Region(value.members);
        let mut shares = Vec::new();
        for backend in &group.backends {
            let named = (0..members.size()).filter(|ordinal| {
                let id = fake.members.get(&(members.base() + ordinal)).copied();
                let found = fake.backends.get(&(id.unwrap_or_default() as u32));
                let at = |found: &Backend| match backend.node_address {
                    Some(node) => {
                        (found.address.to_ip(), found.target.to_ip()) == (node, backend.address)
                    }
                    None => found.address.to_ip() == backend.address,
                };
                found.is_some_and(|found| {
                    at(found)
                        && found.port.to_host() == backend.port
                        && found.state == backend.state()
                })
            });
            let named: Vec<_> = named.collect();
            assert!(!named.is_empty(), "{backend:?}");
            if !backend.usable() {
                continue;
            }
            assert_eq!(named.len(), 1, "{backend:?}");
            let id = fake.members[&(members.base() + named[0])] as u32;
            let found = fake.backends[&id];
            assert_eq!(found.mode, backend.mode as u8);
            if let Some(source) = backend.source {
                assert_eq!(found.source.to_ip(), source);
            }
            if found.next_hop != 0 {
                let path = backend.path.as_ref().unwrap();
                let hop = fake.next_hops[&found.next_hop];
                assert_eq!((hop.segment, hop.mtu()), (path.segment, path.mtu));
                let resolved = hop.destination & NextHop::RESOLVED != 0;
                assert_eq!(resolved, path.neighbour.is_some());
            }
            shares.push(table::Share {
                ordinal: named[0] as u16,
                weight: backend.weight,
            });
        }
        shares.sort();
        let algorithm = crate::config::Algorithm::Rendezvous;
        let owners = table::owners(algorithm, KEY, &shares, &mut table::Scratch::default());
        let slots = self.slots(Region(value.table));
        let now: Vec<_> = slots.iter().map(|slot| owner(*slot, 0)).collect();
        assert_eq!(now, owners);
    }
}
