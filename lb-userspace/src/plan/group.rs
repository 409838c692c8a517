//! One group of frontends: from what is in the maps to what is desired, in an order in which every packet between two
//! ops meets a whole state.
//!
//! Counters, next hops and backends that nothing names yet; the words that name them; slots; the table, in one store;
//! then what lost its use. Everything is allocated before the first op, so that a full map changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    abi::{Backend, Mode, NO_OWNER, Region, Service, owner, service_flag, slot_of},
    bytes::{Addr, Be16},
};

use super::{
    Op, PlanError, Planner,
    ordinals::{self, Asking},
    placed::{Member, MemberKey, Placed, Table, chained, has_history, stripped},
    table::{self, Share},
};
use crate::desired;

/// What a change takes from the pools.
#[derive(Default)]
struct Taken {
    backends: Vec<u32>,
    frontends: Vec<u32>,
    members: Option<(u32, u8)>,
    slots: Option<(u32, u8)>,
}

/// What a change leaves behind.
struct Left {
    members: Vec<Member>,
    /// Ordinals that go on naming one of them, by its id: the table before may lead there until it is forgotten.
    words: BTreeMap<u16, u32>,
}

/// What a change will make of the members and the table.
struct Draft {
    given: BTreeMap<u16, MemberKey>,
    /// None: the slots stay.
    slots: Option<Box<[u64]>>,
    built: Vec<(Share, u32)>,
    /// Ordinals that mean another backend now, or none.
    strangers: BTreeSet<u16>,
}

impl Planner {
    pub(super) fn create(
        &mut self,
        service: &desired::Service,
        group: &desired::Group,
        ops: &mut Vec<Op>,
    ) -> Result<Placed, PlanError> {
        let index = self
            .pools
            .id("services", |pools| &mut pools.services, ops)?;
        let mut placed = Placed {
            index,
            value: Service::default(),
            frontends: BTreeSet::new(),
            members: BTreeMap::new(),
            table: Table {
                built: Some(Vec::new()),
                slots: None,
            },
            sources: BTreeSet::new(),
        };
        match self.change(&mut placed, service, group, ops) {
            Ok(()) => Ok(placed),
            Err(error) => {
                self.pools.services.untake(index);
                Err(error)
            }
        }
    }

    /// Changes a group; one whose value is all zero is not in the maps yet.
    pub(super) fn change(
        &mut self,
        placed: &mut Placed,
        service: &desired::Service,
        group: &desired::Group,
        ops: &mut Vec<Op>,
    ) -> Result<(), PlanError> {
        let wanted: BTreeMap<MemberKey, &desired::Backend> = group
            .backends
            .iter()
            .map(|backend| ((backend.address, backend.port), backend))
            .collect();
        let draft = self.draft(placed, service.algorithm, &wanted);
        self.check_sources(placed, &service.source_ranges)?;
        let taken = self.take(placed, service.mode, &wanted, &draft, group, ops)?;
        let Taken {
            backends,
            frontends,
            members,
            slots,
        } = taken;

        let fresh = placed.value == Service::default();
        self.insert_sources(placed, &service.source_ranges, ops);
        let old = placed.value;
        let left = self.write_members(placed, service.mode, &wanted, &draft, backends, ops);
        let mut value = placed.value;
        if let Some((base, log2)) = members {
            let region = Region::new(base, log2, Region(value.members).generation() + 1);
            let words = (0..=u16::MAX).take(1 << log2).map(|ordinal| {
                let member = placed.members.get(&ordinal).map(|member| member.id);
                let id = member.or(left.words.get(&ordinal).copied());
                u64::from(id.unwrap_or_default())
            });
            ops.push(Op::Members {
                base,
                members: words.collect(),
            });
            value.members = region.0;
        }
        value.flags = service_flag::LIVE
            | flag(service_flag::FLOWS, service.mode == Mode::Nat)
            | flag(service_flag::AFFINITY, service.affinity)
            | flag(
                service_flag::SOURCE_RANGES,
                !service.source_ranges.is_empty(),
            );
        let old_table = Region(old.table);
        if let Some(words) = &draft.slots {
            value.table = slots
                .map_or(Region::EMPTY, |(base, log2)| {
                    ops.push(Op::Slots {
                        base,
                        slots: words.to_vec(),
                    });
                    Region::new(base, log2, old_table.generation() + 1)
                })
                .0;
        }
        publish(placed, value, fresh, ops);
        self.remove_sources(placed, &service.source_ranges, ops);
        if draft.slots.is_some() && !old_table.is_empty() {
            self.pools.slots.release(old_table.base(), old_table.log2());
        }
        if members.is_some() {
            self.release_members(Region(old.members));
        }
        let base = Region(value.members).base();
        let words = left.words.into_iter();
        self.pools
            .stale
            .extend(words.map(|(ordinal, id)| (base + u32::from(ordinal), id)));
        remember_table(placed, draft, ops);
        self.list(placed, &group.frontends, frontends, ops);
        self.unlist(
            placed,
            |frontend| group.frontends.iter().any(|one| one.frontend == *frontend),
            ops,
        );
        self.retire(placed, &wanted, left.members, ops);
        Ok(())
    }

    /// Takes a group out of the maps.
    pub(super) fn remove(&mut self, mut placed: Placed, ops: &mut Vec<Op>) {
        self.unlist(&mut placed, |_| false, ops);
        ops.push(Op::Service {
            index: placed.index,
            value: Service::default(),
        });
        self.remove_sources(&mut placed, &[], ops);
        let table = Region(placed.value.table);
        if !table.is_empty() {
            self.pools.slots.release(table.base(), table.log2());
        }
        self.release_members(Region(placed.value.members));
        self.pools.services.release(placed.index);
        for member in placed.members.into_values() {
            self.forget(member, ops);
        }
    }

    /// Pure but for the scratch memory: who gets which ordinal, and the slots if they change.
    fn draft(
        &mut self,
        placed: &Placed,
        algorithm: crate::config::Algorithm,
        wanted: &BTreeMap<MemberKey, &desired::Backend>,
    ) -> Draft {
        let asking: Vec<_> = wanted
            .iter()
            .map(|(key, backend)| Asking {
                key: *key,
                usable: backend.usable(),
                drain: backend.drain,
            })
            .collect();
        let owning = match &placed.table.built {
            Some(built) => built.iter().map(|(share, _)| share.ordinal).collect(),
            None => placed.members.keys().copied().collect(),
        };
        let given = ordinals::assign(&placed.members, &asking, &owning);
        let shares: Vec<_> = given
            .iter()
            .filter(|(_, key)| wanted[*key].usable())
            .map(|(ordinal, key)| Share {
                ordinal: *ordinal,
                weight: wanted[key].weight,
            })
            .collect();
        let strangers = placed
            .members
            .iter()
            .filter(|(ordinal, member)| given.get(ordinal) != Some(&member.key))
            .map(|(ordinal, _)| *ordinal)
            .collect();
        let known = placed.table.shares();
        if known.as_ref() == Some(&shares) {
            return Draft {
                given,
                slots: None,
                built: placed.table.built.clone().unwrap_or_default(),
                strangers,
            };
        }
        let owners = table::owners(algorithm, self.cluster_key, &shares, &mut self.scratch);
        let before: Box<[u64]> = match (&placed.table.slots, known) {
            (Some(slots), _) => slots.clone(),
            (None, Some(known)) => {
                let owners = table::owners(algorithm, self.cluster_key, &known, &mut self.scratch);
                owners.iter().map(|owner| alone(*owner)).collect()
            }
            (None, None) => Box::default(),
        };
        let same = before.len() == owners.len()
            && before
                .iter()
                .zip(&owners)
                .all(|(slot, now)| owner(*slot, 0) == *now);
        let slots = (!same).then(|| chained(&owners, &before, &strangers));
        Draft {
            built: count(&shares, &owners),
            given,
            slots,
            strangers,
        }
    }

    /// All or nothing.
    fn take(
        &mut self,
        placed: &Placed,
        mode: Mode,
        wanted: &BTreeMap<MemberKey, &desired::Backend>,
        draft: &Draft,
        group: &desired::Group,
        ops: &mut Vec<Op>,
    ) -> Result<Taken, PlanError> {
        let mut taken = Taken::default();
        let keeps = |member: &&Member| {
            let backend = wanted.get(&member.key);
            backend.is_some_and(|backend| same_element(&member.value, mode, backend))
        };
        let known: BTreeSet<MemberKey> = placed
            .members
            .values()
            .filter(keeps)
            .map(|member| member.key)
            .collect();
        let result = (|| {
            for key in draft.given.values() {
                if !known.contains(key) {
                    let id = self
                        .pools
                        .id("backends", |pools| &mut pools.backends, ops)?;
                    taken.backends.push(id);
                }
            }
            for one in &group.frontends {
                if !self.frontends.contains_key(&one.frontend) {
                    let id = self
                        .pools
                        .id("frontends", |pools| &mut pools.frontends, ops)?;
                    taken.frontends.push(id);
                }
            }
            let ordinals = draft
                .given
                .keys()
                .next_back()
                .map_or(0, |last| u32::from(*last) + 1);
            if ordinals > Region(placed.value.members).size() {
                let log2 = ordinals.next_power_of_two().ilog2() as u8;
                let base = self
                    .pools
                    .region("members", |pools| &mut pools.members, log2, ops)?;
                taken.members = Some((base, log2));
            }
            if let Some(slots) = &draft.slots
                && !slots.is_empty()
            {
                let log2 = slots.len().ilog2() as u8;
                let base = self
                    .pools
                    .region("slots", |pools| &mut pools.slots, log2, ops)?;
                taken.slots = Some((base, log2));
            }
            Ok(())
        })();
        match result {
            Ok(()) => {
                // The lowest id goes to the first.
                taken.backends.reverse();
                taken.frontends.reverse();
                Ok(taken)
            }
            Err(error) => {
                for id in taken.backends.into_iter().rev() {
                    self.pools.backends.untake(id);
                }
                for id in taken.frontends.into_iter().rev() {
                    self.pools.frontends.untake(id);
                }
                if let Some((base, log2)) = taken.members {
                    self.pools.members.untake(base, log2);
                }
                Err(error)
            }
        }
    }

    /// Writes backends that are new, the links of those that are more usable than before, and the words of ordinals
    /// that mean another backend now. Gives back the members that left.
    fn write_members(
        &mut self,
        placed: &mut Placed,
        mode: Mode,
        wanted: &BTreeMap<MemberKey, &desired::Backend>,
        draft: &Draft,
        mut ids: Vec<u32>,
        ops: &mut Vec<Op>,
    ) -> Left {
        let region = Region(placed.value.members);
        let mut before: BTreeMap<MemberKey, (u16, Member)> = std::mem::take(&mut placed.members)
            .into_iter()
            .map(|(ordinal, member)| (member.key, (ordinal, member)))
            .collect();
        let mut lost = Vec::new();
        let mut words = Vec::new();
        for (ordinal, key) in &draft.given {
            let backend = wanted[key];
            let known = before.remove(key);
            let (place, kept) = match known {
                Some((place, member)) if same_element(&member.value, mode, backend) => {
                    (Some(place), Some(member))
                }
                Some((_, member)) => {
                    lost.push(member);
                    (None, None)
                }
                None => (None, None),
            };
            let member = if let Some(mut member) = kept {
                let (next_hop, hop) = self.next_hop(backend, ops);
                if let Some(old) = std::mem::replace(&mut member.hop, hop) {
                    self.next_hops.release(old, &mut self.pools);
                }
                // One that gets no new flows any more is told so when the table no longer names it.
                let state = u32::from(backend.usable()) | member.value.state;
                self.link(&mut member, next_hop, state, ops);
                member
            } else {
                let Some(id) = ids.pop() else { continue };
                let (next_hop, hop) = self.next_hop(backend, ops);
                let generation = self.element(id).generation.wrapping_add(1).max(1);
                let value = Backend {
                    next_hop,
                    generation,
                    state: u32::from(backend.usable()),
                    ..element(mode, backend)
                };
                ops.push(Op::ZeroBackend { id });
                self.write_element(id, value, ops);
                Member {
                    key: *key,
                    id,
                    value,
                    hop,
                }
            };
            if place != Some(*ordinal) {
                words.push((*ordinal, member.id));
            }
            placed.members.insert(*ordinal, member);
        }
        // A larger region is written whole.
        let last = draft.given.keys().next_back();
        if last.is_none_or(|last| u32::from(*last) < region.size()) {
            for (ordinal, id) in words {
                let base = region.base() + u32::from(ordinal);
                self.pools.stale.remove(&base);
                ops.push(Op::Members {
                    base,
                    members: vec![id.into()],
                });
            }
        }
        let gone = before.values();
        let gone = gone.filter(|(ordinal, _)| !placed.members.contains_key(ordinal));
        let words = gone
            .map(|(ordinal, member)| (*ordinal, member.id))
            .collect();
        lost.extend(before.into_values().map(|(_, member)| member));
        Left {
            members: lost,
            words,
        }
    }

    /// What the table no longer names gets no flows, and rests.
    fn retire(
        &mut self,
        placed: &mut Placed,
        wanted: &BTreeMap<MemberKey, &desired::Backend>,
        lost: Vec<Member>,
        ops: &mut Vec<Op>,
    ) {
        for member in placed.members.values_mut() {
            let state = u32::from(wanted[&member.key].usable());
            let next_hop = member.value.next_hop;
            self.link(member, next_hop, state, ops);
        }
        for member in lost {
            self.forget(member, ops);
        }
    }

    fn forget(&mut self, mut member: Member, ops: &mut Vec<Op>) {
        self.link(&mut member, 0, 0, ops);
        if let Some(hop) = member.hop {
            self.next_hops.release(hop, &mut self.pools);
        }
        self.pools.backends.release(member.id);
    }

    fn link(&mut self, member: &mut Member, next_hop: u32, state: u32, ops: &mut Vec<Op>) {
        if (member.value.next_hop, member.value.state) != (next_hop, state) {
            (member.value.next_hop, member.value.state) = (next_hop, state);
            self.elements[member.id as usize] = member.value;
            ops.push(Op::BackendLink {
                id: member.id,
                next_hop,
                state,
            });
        }
    }

    fn next_hop(
        &mut self,
        backend: &desired::Backend,
        ops: &mut Vec<Op>,
    ) -> (u32, Option<super::next_hops::HopKey>) {
        match &backend.path {
            Some(path) => self.next_hops.acquire(path, &mut self.pools, ops),
            None => (0, None),
        }
    }

    fn element(&self, id: u32) -> Backend {
        self.elements.get(id as usize).copied().unwrap_or_default()
    }

    /// Writes a backend over one that rested; replies to its source are ours from before its first flow until the id
    /// is given again.
    fn write_element(&mut self, id: u32, value: Backend, ops: &mut Vec<Op>) {
        let before = self.element(id);
        if value.mode == Mode::Nat as u8 {
            self.filter.add(value.source.to_ip(), ops);
        }
        ops.push(Op::Backend { id, value });
        if before.mode == Mode::Nat as u8 {
            self.filter.remove(before.source.to_ip(), ops);
        }
        if self.elements.len() <= id as usize {
            self.elements.resize(id as usize + 1, Backend::default());
        }
        self.elements[id as usize] = value;
    }

    fn release_members(&mut self, region: Region) {
        if !region.is_empty() {
            self.pools.members.release(region.base(), region.log2());
            let words = region.base()..region.base() + region.size();
            let stale: Vec<_> = self
                .pools
                .stale
                .range(words)
                .map(|(word, _)| *word)
                .collect();
            for word in stale {
                self.pools.stale.remove(&word);
            }
        }
    }
}

/// Makes a value public: members before the table that names them.
fn publish(placed: &mut Placed, value: Service, fresh: bool, ops: &mut Vec<Op>) {
    let service = placed.index;
    if fresh {
        ops.push(Op::Service {
            index: service,
            value,
        });
    } else {
        if value.members != placed.value.members {
            ops.push(Op::MemberRegion {
                service,
                members: value.members,
            });
        }
        if value.table != placed.value.table {
            ops.push(Op::Table {
                service,
                table: value.table,
            });
        }
        if value.flags != placed.value.flags {
            ops.push(Op::ServiceFlags {
                service,
                flags: value.flags,
            });
        }
    }
    placed.value = value;
}

/// Slots that stay are rid of former owners that are strangers now, in place: a slot is one word.
fn remember_table(placed: &mut Placed, draft: Draft, ops: &mut Vec<Op>) {
    if let Some(slots) = draft.slots {
        placed.table.slots = has_history(&slots).then_some(slots);
    } else if let Some(slots) = &placed.table.slots {
        let clean = stripped(slots, &draft.strangers);
        if clean != *slots {
            ops.push(Op::Slots {
                base: Region(placed.value.table).base(),
                slots: clean.to_vec(),
            });
        }
        placed.table.slots = has_history(&clean).then_some(clean);
    }
    placed.table.built = Some(draft.built);
}

fn count(shares: &[Share], owners: &[u16]) -> Vec<(Share, u32)> {
    let mut counted: Vec<_> = shares.iter().map(|share| (*share, 0)).collect();
    for owner in owners {
        if let Ok(at) = shares.binary_search_by_key(owner, |share| share.ordinal) {
            counted[at].1 += 1;
        }
    }
    counted
}

const fn alone(owner: u16) -> u64 {
    slot_of([owner, NO_OWNER, NO_OWNER, NO_OWNER])
}

const fn flag(bit: u64, on: bool) -> u64 {
    if on { bit } else { 0 }
}

/// The parts of a backend that stay as long as its id is named.
fn element(mode: Mode, backend: &desired::Backend) -> Backend {
    Backend {
        address: backend.address.into(),
        source: backend.source.map_or(Addr::UNSPECIFIED, Addr::from),
        port: Be16::new(backend.port),
        mode: mode as u8,
        ..Backend::default()
    }
}

/// Whether a backend may keep its id. One without path keeps the source that it had.
fn same_element(value: &Backend, mode: Mode, backend: &desired::Backend) -> bool {
    let wanted = element(mode, backend);
    (value.address, value.port, value.mode) == (wanted.address, wanted.port, wanted.mode)
        && (value.source == wanted.source || backend.source.is_none() && backend.path.is_none())
}
