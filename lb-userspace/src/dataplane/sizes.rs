//! How many entries each map has: the limits of the config in the terms of the maps.

use lb_common::abi::Reason;

/// Entries of the maps whose size a setting decides. The default is that of the default limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSizes {
    /// `FRONTENDS4` and `FRONTENDS6` each, the markers of VIPs included.
    pub frontends: u32,
    pub services: u32,
    /// Frontend ids: `FRONTEND_STATS`, and times [`Reason::COUNT`] `REASONS`.
    pub frontend_ids: u32,
    pub slots: u32,
    pub members: u32,
    /// Backend ids: `BACKENDS` and `BACKEND_STATS`.
    pub backends: u32,
    pub next_hops: u32,
    /// `SOURCES4` and `SOURCES6` each.
    pub sources: u32,
    /// `FLOWS4` and `FLOWS6` each; a flow takes two.
    pub flows: u32,
    /// `HALF_OPEN4` and `HALF_OPEN6` each.
    pub half_open: u32,
}

impl MapSizes {
    /// Sizes with which the limits of the config hold. A table has up to 128 slots for each of its backends, a member
    /// region up to twice as many elements as members; ids start at 1.
    pub const fn of_limits(frontends: u32, backends: u32, flows: u32) -> Self {
        let half_open = flows / 16;
        Self {
            frontends: frontends.saturating_mul(2),
            services: frontends,
            frontend_ids: frontends.saturating_add(1),
            slots: backends.saturating_mul(128),
            members: backends.saturating_mul(2),
            backends: backends.saturating_add(1),
            next_hops: backends.saturating_add(1),
            sources: 65_536,
            flows: flows / 2,
            half_open: if half_open < 1024 { 1024 } else { half_open },
        }
    }

    /// By name of the map. A map that is not listed keeps the size that the object gives it.
    pub const fn entries(&self) -> [(&'static str, u32); 16] {
        [
            ("FRONTENDS4", self.frontends),
            ("FRONTENDS6", self.frontends),
            ("SERVICES", self.services),
            ("FRONTEND_STATS", self.frontend_ids),
            ("REASONS", self.frontend_ids.saturating_mul(Reason::COUNT)),
            ("SLOTS", self.slots),
            ("MEMBERS", self.members),
            ("BACKENDS", self.backends),
            ("BACKEND_STATS", self.backends),
            ("NEXT_HOPS", self.next_hops),
            ("SOURCES4", self.sources),
            ("SOURCES6", self.sources),
            ("FLOWS4", self.flows),
            ("FLOWS6", self.flows),
            ("HALF_OPEN4", self.half_open),
            ("HALF_OPEN6", self.half_open),
        ]
    }
}

impl Default for MapSizes {
    fn default() -> Self {
        Self::of_limits(4096, 65_536, 1_048_576)
    }
}
