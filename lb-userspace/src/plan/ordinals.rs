//! Which backend gets which ordinal.

use std::collections::{BTreeMap, BTreeSet};

use super::placed::{Member, MemberKey};

/// A backend that asks for an ordinal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Asking {
    pub key: MemberKey,
    /// Gets new flows.
    pub usable: bool,
    /// Gets no new flows because someone wants it to end.
    pub drain: bool,
}

/// Ordinals of all `asking`, given those of `members`.
///
/// A known backend keeps its own. A new one takes that of one that left in the same change, so that a replacement moves
/// no slot, else that of one that drains (which takes another), else the lowest free one; in order of addresses, so that
/// the order in a file does not matter. Only a usable one takes an ordinal that may own slots now (`owning`).
pub(super) fn assign(
    members: &BTreeMap<u16, Member>,
    asking: &[Asking],
    owning: &BTreeSet<u16>,
) -> BTreeMap<u16, MemberKey> {
    let known: BTreeMap<MemberKey, u16> = members
        .iter()
        .map(|(ordinal, member)| (member.key, *ordinal))
        .collect();
    let asked: BTreeMap<MemberKey, Asking> = asking.iter().map(|one| (one.key, *one)).collect();
    let mut given: BTreeMap<u16, MemberKey> = BTreeMap::new();
    let mut left = BTreeSet::new();
    let mut draining = BTreeSet::new();
    for (ordinal, member) in members {
        match asked.get(&member.key) {
            Some(one) => {
                given.insert(*ordinal, member.key);
                if one.drain {
                    draining.insert(*ordinal);
                }
            }
            None => {
                left.insert(*ordinal);
            }
        }
    }
    let new = asked.values().filter(|one| !known.contains_key(&one.key));
    let (usable, others): (Vec<&Asking>, Vec<&Asking>) = new.partition(|one| one.usable);
    let nothing = BTreeSet::new();
    let (mut any, mut idle) = (Lowest::new(&nothing), Lowest::new(owning));
    for one in usable {
        if let Some(ordinal) = left.pop_first() {
            given.insert(ordinal, one.key);
        } else if let Some(ordinal) = draining.pop_first() {
            let displaced = given.insert(ordinal, one.key);
            let free = idle.free(&given);
            given.extend(displaced.map(|displaced| (free, displaced)));
        } else {
            given.insert(any.free(&given), one.key);
        }
    }
    for one in others {
        given.insert(idle.free(&given), one.key);
    }
    given
}

/// The lowest ordinal that is neither given nor among `besides`.
struct Lowest<'a> {
    besides: &'a BTreeSet<u16>,
    /// None below is free.
    next: u16,
}

impl<'a> Lowest<'a> {
    const fn new(besides: &'a BTreeSet<u16>) -> Self {
        Self { besides, next: 0 }
    }

    fn free(&mut self, given: &BTreeMap<u16, MemberKey>) -> u16 {
        // A service has far fewer backends than there are ordinals.
        while given.contains_key(&self.next) || self.besides.contains(&self.next) {
            self.next += 1;
        }
        self.next
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_common::abi::Backend;

    use super::*;

    fn key(last: u8) -> MemberKey {
        (IpAddr::from([10, 0, 0, last]), 80)
    }

    fn members(of: &[(u16, u8)]) -> BTreeMap<u16, Member> {
        let member = |(ordinal, last): &(u16, u8)| {
            let member = Member {
                key: key(*last),
                id: 1,
                value: Backend::default(),
                hop: None,
                named: false,
            };
            (*ordinal, member)
        };
        of.iter().map(member).collect()
    }

    fn asking(of: &[(u8, bool, bool)]) -> Vec<Asking> {
        let one = |(last, usable, drain): &(u8, bool, bool)| Asking {
            key: key(*last),
            usable: *usable,
            drain: *drain,
        };
        of.iter().map(one).collect()
    }

    fn given(
        known: &[(u16, u8)],
        of: &[(u8, bool, bool)],
        owning: &[u16],
    ) -> Vec<(u16, MemberKey)> {
        let owning = owning.iter().copied().collect();
        assign(&members(known), &asking(of), &owning)
            .into_iter()
            .collect()
    }

    #[test]
    fn the_order_in_a_file_does_not_matter() {
        let of = [(3, true, false), (1, true, false), (2, true, false)];
        assert_eq!(
            given(&[], &of, &[]),
            [(0, key(1)), (1, key(2)), (2, key(3))]
        );
    }

    #[test]
    fn a_new_backend_takes_the_place_of_one_that_left_or_drains() {
        assert_eq!(
            given(
                &[(0, 1), (1, 2)],
                &[(2, true, false), (9, true, false)],
                &[0, 1]
            ),
            [(0, key(9)), (1, key(2))]
        );
        assert_eq!(
            given(
                &[(0, 1), (1, 2)],
                &[(1, false, true), (2, true, false), (9, true, false)],
                &[0, 1]
            ),
            [(0, key(9)), (1, key(2)), (2, key(1))]
        );
        // One that is merely down comes back to its own.
        assert_eq!(
            given(
                &[(0, 1), (1, 2)],
                &[(1, false, false), (2, true, false), (9, true, false)],
                &[0, 1]
            ),
            [(0, key(1)), (1, key(2)), (2, key(9))]
        );
    }

    #[test]
    fn one_that_gets_no_flows_takes_no_place_that_has_some() {
        assert_eq!(
            given(
                &[(0, 1), (1, 2)],
                &[(2, true, false), (9, false, false)],
                &[0, 1]
            ),
            [(1, key(2)), (2, key(9))]
        );
    }
}
