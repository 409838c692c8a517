//! Members of a group: elements of `BACKENDS`, the words that name them, and what becomes of those that leave.

use std::collections::BTreeMap;

use lb_common::{
    abi::{Backend, Mode, Region, backend_state},
    bytes::{Addr, Be16},
};

use super::{
    Op, Planner,
    group::Draft,
    next_hops::HopKey,
    placed::{Member, MemberKey, Placed},
    targets::{insert_target, remove_target},
};
use crate::desired;

/// What a change leaves behind.
pub(super) struct Left {
    pub members: Vec<Member>,
    /// Ordinals that go on naming one of them, by its id: the table before may lead there until it is forgotten.
    pub words: BTreeMap<u16, u32>,
}

impl Planner {
    /// Writes backends that are new, the links of those that are more usable than before, and the words of ordinals
    /// that mean another backend now. Gives back the members that left.
    pub(super) fn write_members(
        &mut self,
        placed: &mut Placed,
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
                Some((place, member)) if same_element(&member.value, backend) => {
                    (Some(place), Some(member))
                }
                Some((_, mut member)) => {
                    // A name means one backend.
                    remove_target(placed.index, &mut member, ops);
                    lost.push(member);
                    (None, None)
                }
                None => (None, None),
            };
            let mut member = if let Some(mut member) = kept {
                let (next_hop, hop) = self.next_hop(backend, ops);
                if let Some(old) = std::mem::replace(&mut member.hop, hop) {
                    self.next_hops.release(old, &mut self.pools);
                }
                // One that gets no new flows any more is told so when the table no longer names it.
                let state = match member.value.state {
                    backend_state::USABLE => backend_state::USABLE,
                    _ => backend.state(),
                };
                self.link(&mut member, next_hop, state, ops);
                member
            } else {
                let Some(id) = ids.pop() else { continue };
                let (next_hop, hop) = self.next_hop(backend, ops);
                let generation = self.element(id).generation.wrapping_add(1).max(1);
                let value = Backend {
                    next_hop,
                    generation,
                    state: backend.state(),
                    ..element(backend)
                };
                ops.push(Op::ZeroBackend { id });
                self.write_element(id, value, ops);
                Member {
                    key: *key,
                    id,
                    value,
                    hop,
                    named: false,
                }
            };
            insert_target(placed.index, &mut member, ops);
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
    pub(super) fn retire(
        &mut self,
        placed: &mut Placed,
        wanted: &BTreeMap<MemberKey, &desired::Backend>,
        lost: Vec<Member>,
        ops: &mut Vec<Op>,
    ) {
        for member in placed.members.values_mut() {
            let state = wanted[&member.key].state();
            let next_hop = member.value.next_hop;
            self.link(member, next_hop, state, ops);
        }
        for member in lost {
            self.forget(placed.index, member, ops);
        }
    }

    pub(super) fn forget(&mut self, service: u32, mut member: Member, ops: &mut Vec<Op>) {
        remove_target(service, &mut member, ops);
        self.link(&mut member, 0, backend_state::DOWN, ops);
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

    fn next_hop(&mut self, backend: &desired::Backend, ops: &mut Vec<Op>) -> (u32, Option<HopKey>) {
        match &backend.path {
            // The stack's affair.
            _ if matches!(backend.mode, Mode::Local | Mode::Pass) => (0, None),
            Some(path) => self.next_hops.acquire(path, &mut self.pools, ops),
            None => (0, None),
        }
    }

    fn element(&self, id: u32) -> Backend {
        self.elements.get(id as usize).copied().unwrap_or_default()
    }

    /// Writes a backend over one that rested; its replies are ours from before its first flow until the id is given
    /// again.
    fn write_element(&mut self, id: u32, value: Backend, ops: &mut Vec<Op>) {
        let before = self.element(id);
        self.filter.add_backend(&value, ops);
        ops.push(Op::Backend { id, value });
        self.filter.remove_backend(&before, ops);
        if self.elements.len() <= id as usize {
            self.elements.resize(id as usize + 1, Backend::default());
        }
        self.elements[id as usize] = value;
    }

    pub(super) fn release_members(&mut self, region: Region) {
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

/// The parts of a backend that stay as long as its id is named.
fn element(backend: &desired::Backend) -> Backend {
    let target = backend.node_address.map(|_| backend.address);
    Backend {
        address: backend.node_address.unwrap_or(backend.address).into(),
        source: backend.source.map_or(Addr::UNSPECIFIED, Addr::from),
        target: target.map_or(Addr::UNSPECIFIED, Addr::from),
        port: Be16::new(backend.port),
        mode: backend.mode as u8,
        ..Backend::default()
    }
}

/// Whether a backend may keep its id. One without path keeps the source that it had.
pub(super) fn same_element(value: &Backend, backend: &desired::Backend) -> bool {
    let wanted = element(backend);
    (value.address, value.target, value.port, value.mode)
        == (wanted.address, wanted.target, wanted.port, wanted.mode)
        && (value.source == wanted.source || backend.source.is_none() && backend.path.is_none())
}
