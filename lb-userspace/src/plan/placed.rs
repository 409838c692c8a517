//! A group of frontends as it is in the maps: one index of `SERVICES`, its regions, its members.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::abi::{Backend, NO_OWNER, OWNERS, Service, owner, slot_of};

use super::{next_hops::HopKey, table::Share};
use crate::config::Frontend;

/// What makes a backend the same one within its group: address, and port where it is translated.
pub(super) type MemberKey = (IpAddr, u16);

#[derive(Debug)]
pub(super) struct Placed {
    /// Index into `SERVICES`.
    pub index: u32,
    /// As it is in the map.
    pub value: Service,
    /// Those whose entries name the index.
    pub frontends: BTreeSet<Frontend>,
    /// By ordinal.
    pub members: BTreeMap<u16, Member>,
    pub table: Table,
    pub sources: BTreeSet<IpNet>,
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub key: MemberKey,
    /// Id in `BACKENDS`.
    pub id: u32,
    /// As it is in the map.
    pub value: Backend,
    /// The next hop that `value` names; None where it names none.
    pub hop: Option<HopKey>,
    /// Other nodes may send to it: it is in `TARGETS4` or `TARGETS6`.
    pub named: bool,
}

/// What the slots say.
#[derive(Default, Debug)]
pub(super) struct Table {
    /// The set that the table was built from, with the slots that each share owns. None: another agent built it.
    pub built: Option<Vec<(Share, u32)>>,
    /// The slots' words, where they are more than what the set gives: with former owners, or another agent's.
    pub slots: Option<Box<[u64]>>,
}

impl Table {
    pub(super) fn shares(&self) -> Option<Vec<Share>> {
        let built = self.built.as_ref()?;
        Some(built.iter().map(|(share, _)| *share).collect())
    }
}

/// Ordinals that mean another backend now, and what theirs is now; None where there is none.
pub(super) type Renamed = BTreeMap<u16, Option<u16>>;

/// Slots of a new table: each slot's owner, then who owned it before, without repeats, as they are called now.
pub(super) fn chained(owners: &[u16], before: &[u64], names: &Renamed) -> Box<[u64]> {
    let slot = |(index, current): (usize, &u16)| {
        // The low bits of a flow's hash choose its slot, so this is where its flows were.
        let former = if before.is_empty() {
            u64::MAX
        } else {
            before[index & (before.len() - 1)]
        };
        chain(*current, former, names)
    };
    owners.iter().enumerate().map(slot).collect()
}

/// The same slots, with former owners as they are called now. Who has an owner's ordinal now has its slots.
pub(super) fn renamed(slots: &[u64], names: &Renamed) -> Box<[u64]> {
    let slot = |slot: &u64| chain(owner(*slot, 0), *slot, names);
    slots.iter().map(slot).collect()
}

fn chain(current: u16, former: u64, names: &Renamed) -> u64 {
    let mut chain = [NO_OWNER; OWNERS];
    let mut length = 0;
    let former = (0..OWNERS as u32).map(|position| owner(former, position));
    let former = former.filter_map(|ordinal| names.get(&ordinal).map_or(Some(ordinal), |now| *now));
    for ordinal in std::iter::once(current).chain(former) {
        if ordinal != NO_OWNER && length < OWNERS && !chain[..length].contains(&ordinal) {
            chain[length] = ordinal;
            length += 1;
        }
    }
    slot_of(chain)
}

/// Whether any slot has a former owner.
pub(super) fn has_history(slots: &[u64]) -> bool {
    slots.iter().any(|slot| owner(*slot, 1) != NO_OWNER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: u16 = NO_OWNER;

    #[test]
    fn a_chain_has_no_repeats_and_calls_former_owners_by_what_they_are_now() {
        let before = [slot_of([1, 2, 3, 4]), slot_of([5, NO, NO, NO])];
        let slots = chained(&[2, 5, 6, 7], &before, &Renamed::from([(4, None)]));
        assert_eq!(
            *slots,
            [
                slot_of([2, 1, 3, NO]),
                slot_of([5, NO, NO, NO]),
                slot_of([6, 1, 2, 3]),
                slot_of([7, 5, NO, NO])
            ]
        );
        assert!(has_history(&slots));
        // Another backend has 5, whose own is 8 now.
        let moved = renamed(&slots, &Renamed::from([(5, Some(8)), (1, None)]));
        assert_eq!(
            *moved,
            [
                slot_of([2, 3, NO, NO]),
                slot_of([5, 8, NO, NO]),
                slot_of([6, 2, 3, NO]),
                slot_of([7, 8, NO, NO])
            ]
        );
        let none = Renamed::from([1, 2, 3, 5].map(|ordinal| (ordinal, None)));
        let slots = renamed(&slots, &none);
        assert_eq!(owner(slots[0], 0), 2, "a current owner stays");
        assert!(!has_history(&slots));
        assert_eq!(
            *chained(&[9], &[], &Renamed::new()),
            [slot_of([9, NO, NO, NO])]
        );
    }
}
