//! One group of frontends: from what is in the maps to what is desired, in an order in which every packet between two
//! ops meets a whole state.
//!
//! Counters, next hops and backends that nothing names yet; the words that name them; slots; the table, in one store;
//! then what lost its use. Everything is allocated before the first op, so that a full map changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{Mode, NO_OWNER, Region, Service, owner, service_flag, slot_of};

use super::{
    Op, PlanError, Planner,
    members::same_element,
    ordinals::{self, Asking},
    placed::{Member, MemberKey, Placed, Renamed, Table, chained, has_history, renamed},
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

/// What a change will make of the members and the table.
pub(super) struct Draft {
    pub given: BTreeMap<u16, MemberKey>,
    slots: Slots,
    built: Vec<(Share, u32)>,
}

/// What becomes of the table.
enum Slots {
    /// Its owners stay: the words, with whom former owners' ordinals mean now.
    Kept(Option<Box<[u64]>>),
    New(Box<[u64]>),
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
        let ranges = group.source_ranges.as_deref();
        self.check_sources(placed, ranges.unwrap_or_default())?;
        let taken = self.take(placed, &wanted, &draft, group, ops)?;
        let Taken {
            backends,
            frontends,
            members,
            slots,
        } = taken;

        let fresh = placed.value == Service::default();
        self.insert_sources(placed, ranges.unwrap_or_default(), ops);
        let old = placed.value;
        let left = self.write_members(placed, &wanted, &draft, backends, ops);
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
        value.flags = flags(service, group);
        let old_table = Region(old.table);
        if let Slots::New(words) = &draft.slots {
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
        self.remove_sources(placed, ranges.unwrap_or_default(), ops);
        if matches!(draft.slots, Slots::New(_)) && !old_table.is_empty() {
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
            self.forget(placed.index, member, ops);
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
        let others = renamed_ordinals(&placed.members, &given);
        let known = placed.table.shares();
        let moved = others.values().any(Option::is_some);
        if known.as_ref() == Some(&shares) && !moved {
            return Draft {
                given,
                slots: Slots::Kept(
                    placed
                        .table
                        .slots
                        .as_ref()
                        .map(|slots| renamed(slots, &others)),
                ),
                built: placed.table.built.clone().unwrap_or_default(),
            };
        }
        let owners = table::owners(algorithm, self.cluster_key, &shares, &mut self.scratch);
        let alone = |owners: &[u16]| owners.iter().map(|owner| alone(*owner)).collect();
        let before: Box<[u64]> = match (&placed.table.slots, known) {
            (Some(slots), _) => slots.clone(),
            (None, Some(known)) if known == shares => alone(&owners),
            (None, Some(known)) => {
                let (key, scratch) = (self.cluster_key, &mut self.scratch);
                alone(&table::owners(algorithm, key, &known, scratch))
            }
            (None, None) => Box::default(),
        };
        let same = before.len() == owners.len()
            && before
                .iter()
                .zip(&owners)
                .all(|(slot, now)| owner(*slot, 0) == *now);
        Draft {
            built: count(&shares, &owners),
            given,
            slots: if same {
                Slots::Kept(Some(renamed(&before, &others)))
            } else {
                Slots::New(chained(&owners, &before, &others))
            },
        }
    }

    /// All or nothing.
    fn take(
        &mut self,
        placed: &Placed,
        wanted: &BTreeMap<MemberKey, &desired::Backend>,
        draft: &Draft,
        group: &desired::Group,
        ops: &mut Vec<Op>,
    ) -> Result<Taken, PlanError> {
        let mut taken = Taken::default();
        let keeps = |member: &&Member| {
            let backend = wanted.get(&member.key);
            backend.is_some_and(|backend| same_element(&member.value, backend))
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
            if let Slots::New(slots) = &draft.slots
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
}

fn flags(service: &desired::Service, group: &desired::Group) -> u64 {
    let ranges = group.source_ranges.is_some();
    let always = service_flag::LIVE | flag(service_flag::SOURCE_RANGES, ranges);
    if service.is_tunnel_end {
        return always | service_flag::TUNNEL;
    }
    // By the service's own mode, too: flows outlive the last of its backends.
    let has = |modes: &[Mode]| {
        let mut all = group.backends.iter().map(|backend| backend.mode);
        modes.contains(&service.mode) || all.any(|mode| modes.contains(&mode))
    };
    // What kube-proxy serves as well is looked for, whatever its backends are now: connections that passed while a node was
    // away, or that a backend keeps while it drains, are known by their entries alone.
    let shared = has(&[Mode::Local, Mode::Pass, Mode::Dsr]);
    always
        | flag(service_flag::FLOWS, shared || has(&[Mode::Nat]))
        | flag(service_flag::SHARED, shared)
        | flag(service_flag::DSR, has(&[Mode::Dsr]))
        | flag(service_flag::AFFINITY, service.affinity.is_some())
        | flag(service_flag::DROP, group.drop)
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

/// Former owners of slots that stay are called by what their ordinals are now, in place: a slot is one word.
fn remember_table(placed: &mut Placed, draft: Draft, ops: &mut Vec<Op>) {
    let slots = match draft.slots {
        Slots::New(slots) => Some(slots),
        Slots::Kept(slots) => {
            if let Some(slots) = &slots
                && placed
                    .table
                    .slots
                    .as_ref()
                    .map_or_else(|| has_history(slots), |before| before != slots)
            {
                ops.push(Op::Slots {
                    base: Region(placed.value.table).base(),
                    slots: slots.to_vec(),
                });
            }
            slots
        }
    };
    placed.table.slots = slots.filter(|slots| has_history(slots));
    placed.table.built = Some(draft.built);
}

/// Ordinals that mean another backend in `given`, or none; and the one that theirs has there, if it is.
fn renamed_ordinals(members: &BTreeMap<u16, Member>, given: &BTreeMap<u16, MemberKey>) -> Renamed {
    let others = members
        .iter()
        .filter(|(ordinal, member)| given.get(ordinal) != Some(&member.key));
    let place = |key: MemberKey| given.iter().find(|(_, given)| **given == key);
    others
        .map(|(ordinal, member)| (*ordinal, place(member.key).map(|(ordinal, _)| *ordinal)))
        .collect()
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
