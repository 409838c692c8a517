//! What the planner can tell of its plans: for status, metrics and tables.

use std::net::IpAddr;

use lb_common::abi::Region;

use super::Planner;
use crate::config::{Frontend, ServiceName};

/// A group of frontends as it is in the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacedGroup {
    /// Index into `SERVICES`.
    pub service: u32,
    /// With their ids, in order.
    pub frontends: Vec<(Frontend, u32)>,
    /// In order of ordinals.
    pub backends: Vec<PlacedBackend>,
    /// Slots of its table.
    pub slots: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlacedBackend {
    pub address: IpAddr,
    /// As in [`crate::desired::Backend`]: 0 where nothing is translated.
    pub port: u16,
    pub ordinal: u16,
    /// Index into `BACKENDS` and `BACKEND_STATS`.
    pub id: u32,
    /// Slots that it owns.
    pub slots: u32,
}

/// How much of a map is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// `frontends`, `services`, `backends`, `nextHops`, `slots`, `members`.
    pub name: &'static str,
    pub used: u64,
    pub max: u64,
}

impl Planner {
    /// The groups of a service, in order of their index; empty if it has none.
    pub fn placed(&self, name: &ServiceName) -> Vec<PlacedGroup> {
        let placed = self.services.get(name).map(Vec::as_slice);
        let mut groups: Vec<_> = placed
            .unwrap_or_default()
            .iter()
            .map(|placed| PlacedGroup {
                service: placed.index,
                frontends: placed
                    .frontends
                    .iter()
                    .filter_map(|frontend| Some((*frontend, self.frontends.get(frontend)?.id)))
                    .collect(),
                backends: placed
                    .members
                    .iter()
                    .map(|(ordinal, member)| PlacedBackend {
                        address: member.key.0,
                        port: member.key.1,
                        ordinal: *ordinal,
                        id: member.id,
                        slots: owned(placed.table.built.as_deref(), *ordinal),
                    })
                    .collect(),
                slots: Region(placed.value.table).size(),
            })
            .collect();
        groups.sort_by_key(|group| group.service);
        groups
    }

    /// Against the limits where one is set, else against the map.
    pub fn usage(&self) -> [Usage; 6] {
        let of = |name, used: u32, max: u32| Usage {
            name,
            used: used.into(),
            max: max.into(),
        };
        let pools = &self.pools;
        [
            of(
                "frontends",
                self.frontends.len() as u32,
                self.limits.frontends,
            ),
            of("services", pools.services.used(), pools.services.capacity()),
            of("backends", pools.backends.used(), self.limits.backends),
            of(
                "nextHops",
                pools.next_hops.used(),
                pools.next_hops.capacity(),
            ),
            of("slots", pools.slots.used(), pools.slots.capacity()),
            of("members", pools.members.used(), pools.members.capacity()),
        ]
    }
}

fn owned(built: Option<&[(super::table::Share, u32)]>, ordinal: u16) -> u32 {
    let built = built.unwrap_or_default();
    built
        .binary_search_by_key(&ordinal, |(share, _)| share.ordinal)
        .map_or(0, |at| built[at].1)
}
