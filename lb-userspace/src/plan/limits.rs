//! How large each map must be for given limits.

use lb_common::abi::Reason;

pub use crate::config::Limits;
use crate::config::{MAX_BACKENDS_PER_SERVICE, MAX_SOURCE_RANGES};

/// Slots of the largest table.
pub const MAX_SLOTS: u32 = 65_536;

/// Next hops that are kept at once; a backend beyond is resolved by `bpf_fib_lookup` for each flow.
pub const NEXT_HOPS: u32 = 65_536;

/// Prefixes of source ranges, each family.
pub const SOURCES: u32 = MAX_SOURCE_RANGES;

/// Half-open flows, each family.
const HALF_OPEN: u32 = 65_536;

/// Interfaces that XDP may send on.
const DEVICES: u32 = 1024;

impl Limits {
    /// Name and `max_entries` of every map whose size follows from the limits; the others keep the size that the
    /// object names.
    ///
    /// Arrays have room beyond the limits, so that a change can be built beside what it replaces. The kernel takes the
    /// memory of all but the frontends, sources and targets when the maps are made: with the default limits 65 MiB for slots,
    /// 64 + 88 MiB for flows (IPv4, IPv6), 19 MiB for half-open flows, 7 MiB for backends and next hops, 3 MiB of
    /// counters for each CPU.
    pub fn map_sizes(&self) -> [(&'static str, u32); 21] {
        [
            ("FRONTENDS4", self.frontend_entries()),
            ("FRONTENDS6", self.frontend_entries()),
            ("SOURCES4", SOURCES),
            ("SOURCES6", SOURCES),
            ("SERVICES", self.services()),
            ("SLOTS", self.slots()),
            ("MEMBERS", self.members()),
            ("BACKENDS", self.backend_ids()),
            ("NEXT_HOPS", NEXT_HOPS),
            ("FLOWS4", 2 * self.flows),
            ("FLOWS6", 2 * self.flows),
            ("HALF_OPEN4", HALF_OPEN),
            ("HALF_OPEN6", HALF_OPEN),
            ("DEVICES", DEVICES),
            ("FRONTEND_STATS", self.frontend_ids()),
            ("BACKEND_STATS", self.backend_ids()),
            ("REASONS", self.frontend_ids() * Reason::COUNT),
            ("ANNOUNCED4", self.announced()),
            ("ANNOUNCED6", self.announced()),
            // Each names a backend.
            ("TARGETS4", self.backend_ids()),
            ("TARGETS6", self.backend_ids()),
        ]
    }

    /// Elements of `FRONTENDS4` and `FRONTENDS6`: each frontend may bring the marker of its own VIP.
    pub const fn frontend_entries(&self) -> u32 {
        2 * self.frontend_ids()
    }

    /// Ids of frontends: 0 is none, and 64 more let some be replaced at once.
    pub const fn frontend_ids(&self) -> u32 {
        self.frontends + 65
    }

    /// Elements of `SERVICES`: one has a frontend at least; 64 more let some be regrouped at once.
    pub const fn services(&self) -> u32 {
        self.frontends + 64
    }

    /// Ids of backends: 0 is none, and those of the largest service can be replaced at once.
    pub const fn backend_ids(&self) -> u32 {
        self.backends + MAX_BACKENDS_PER_SERVICE as u32 + 1
    }

    /// Elements of `ANNOUNCED4` and `ANNOUNCED6`: each frontend may bring a VIP, which several interfaces announce.
    pub const fn announced(&self) -> u32 {
        4 * self.frontend_ids()
    }

    /// Elements of `MEMBERS`: a region has less than twice as many as its service has backends; and one of the largest.
    pub const fn members(&self) -> u32 {
        (2 * self.backends).next_multiple_of(MAX_SLOTS) + MAX_SLOTS
    }

    /// Elements of `SLOTS`: a table has less than 128 for each of its backends; and two of the largest.
    pub const fn slots(&self) -> u32 {
        (128 * self.backends).next_multiple_of(MAX_SLOTS) + 2 * MAX_SLOTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_limits_fit_the_maps() {
        let largest = Limits {
            frontends: 262_144,
            backends: 1 << 20,
            flows: 1 << 26,
        };
        assert!(largest.map_sizes().iter().all(|(_, size)| *size < 1 << 28));
        assert_eq!(largest.slots() % MAX_SLOTS, 0);
    }

    #[test]
    fn the_default_limits_take_the_documented_memory() {
        const MIB: u32 = 1 << 20;
        let limits = Limits::default();
        assert_eq!(limits.slots() * 8 / MIB, 65);
        assert!((limits.backend_ids() * 64 + NEXT_HOPS * 40) / MIB <= 7);
        let counters = limits.frontend_ids() * (32 + 8 * Reason::COUNT) + limits.backend_ids() * 16;
        assert!(counters <= 3 * MIB, "{counters}");
    }
}
