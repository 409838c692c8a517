//! Where XDP meets the frames of VLAN devices and bonds.

use std::collections::BTreeMap;

use super::{Op, Planner};
use crate::net::Segments;

impl Planner {
    /// Brings them up to date.
    pub fn segments(&mut self, segments: Segments, ops: &mut Vec<Op>) {
        let Segments { interfaces, below } = &segments;
        let before = &self.segments;
        // What leads elsewhere now goes before anything comes.
        for (segment, _) in only_in(&before.interfaces, interfaces) {
            ops.push(Op::RemoveInterface { segment });
        }
        for (ifindex, _) in only_in(&before.below, below) {
            ops.push(Op::RemoveSegment { ifindex });
        }
        for (segment, ifindex) in only_in(interfaces, &before.interfaces) {
            ops.push(Op::InsertInterface { segment, ifindex });
        }
        for (ifindex, segment) in only_in(below, &before.below) {
            ops.push(Op::InsertSegment { ifindex, segment });
        }
        self.segments = segments;
    }
}

/// Entries that the other map has not, or not with this value.
fn only_in<K: Ord + Copy, V: PartialEq + Copy>(
    map: &BTreeMap<K, V>,
    other: &BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> {
    map.iter()
        .filter(|(key, value)| other.get(key) != Some(value))
        .map(|(key, value)| (*key, *value))
}
