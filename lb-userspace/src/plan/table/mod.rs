//! Slot tables: which backend owns each slot. A table is a pure function of the cluster key and the *set* of ordinals
//! with weights, equal on every machine whatever the order of events.

mod log;
mod rendezvous;
#[cfg(test)]
mod tests;

use super::limits::MAX_SLOTS;
use crate::config::Algorithm;

pub use rendezvous::Scratch;

/// A backend that gets new flows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Share {
    /// Unique in its set.
    pub ordinal: u16,
    /// Never 0.
    pub weight: u16,
}

/// Slots for each backend, at least; up to twice as many, since their number is a power of two.
const SLOTS_PER_BACKEND: u32 = 64;

/// Number of slots for `backends` usable backends: a power of two, or 0 without any. One backend needs no choice; two
/// have as many as four, so that a service that grows from two to four doubles nothing.
pub const fn slot_count(backends: usize) -> u32 {
    match backends {
        0 => 0,
        1 => 1,
        2 => 4 * SLOTS_PER_BACKEND,
        _ if backends >= (MAX_SLOTS / SLOTS_PER_BACKEND) as usize => MAX_SLOTS,
        _ => (backends as u32 * SLOTS_PER_BACKEND).next_power_of_two(),
    }
}

/// The owner of each slot. `set` is in order of ordinals; `scratch` is memory to work in, without meaning.
pub fn owners(
    algorithm: Algorithm,
    cluster_key: [u64; 2],
    set: &[Share],
    scratch: &mut Scratch,
) -> Vec<u16> {
    let slots = slot_count(set.len());
    if let [only] = set {
        return vec![only.ordinal];
    }
    match algorithm {
        Algorithm::Rendezvous => rendezvous::owners(cluster_key, set, slots, scratch),
    }
}
