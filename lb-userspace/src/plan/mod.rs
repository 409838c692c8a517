//! Plan: pure. Ids, ordinals, regions and slot tables, and the ordered ops that lead from one state to the next.
//!
//! A [`Planner`] believes that its ops are applied, all and in order. Where that failed, a new one goes on from what the
//! maps hold ([`Planner::restore`]).

mod addresses;
mod announced;
pub mod dump;
mod error;
mod group;
mod ids;
pub mod limits;
mod listing;
mod members;
mod next_hops;
pub mod op;
mod ordinals;
mod placed;
mod pools;
mod regions;
mod restore;
mod segments;
mod sources;
pub mod table;
mod targets;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use lb_common::abi::{Backend, Settings};

use crate::{
    config::{Frontend, ServiceName},
    desired::{self, Desired},
    net::Segments,
};

pub use announced::Announced;
pub use dump::{Dump, DumpedService};
pub use error::PlanError;
pub use limits::Limits;
pub use op::Op;
pub use view::{PlacedBackend, PlacedGroup, Usage};

use addresses::Filter;
use listing::{Listed, Vip};
use next_hops::NextHops;
use placed::Placed;
use pools::Pools;

/// What the maps hold, as its ops made it.
#[derive(Debug)]
pub struct Planner {
    limits: Limits,
    cluster_key: [u64; 2],
    services: BTreeMap<ServiceName, Vec<Placed>>,
    /// By address, port and protocol, over all services.
    frontends: HashMap<Frontend, Listed>,
    vips: HashMap<IpAddr, Vip>,
    filter: Filter,
    /// Entries of the source tries: IPv6, IPv4.
    sources: [u32; 2],
    next_hops: NextHops,
    /// `BACKENDS`, those included that only flows remember.
    elements: Vec<Backend>,
    pools: Pools,
    /// None: not known.
    settings: Option<Settings>,
    devices: BTreeSet<u32>,
    segments: Segments,
    announced: Announced,
    /// What a dump held and nothing wants.
    orphans: restore::Orphans,
    scratch: table::Scratch,
}

impl Planner {
    /// For new maps, all zero and empty. `cluster_key` decides the slot tables.
    pub fn new(limits: Limits, cluster_key: [u64; 2]) -> Self {
        Self {
            limits,
            cluster_key,
            services: BTreeMap::new(),
            frontends: HashMap::new(),
            vips: HashMap::new(),
            filter: Filter::default(),
            sources: [0; 2],
            next_hops: NextHops::default(),
            elements: Vec::new(),
            pools: Pools::new(&limits),
            settings: None,
            devices: BTreeSet::new(),
            segments: Segments::default(),
            announced: Announced::new(),
            orphans: restore::Orphans::default(),
            scratch: table::Scratch::default(),
        }
    }

    /// Plans one service: `desired` is what it is to be, None if it is to go. The cost is that of the service, whatever
    /// else there is.
    ///
    /// A frontend that another service has goes over to this one.
    ///
    /// # Errors
    /// A map is full. Ops that were added are whole and to be applied; groups of the service after the one that did not
    /// fit are as they were.
    pub fn service(
        &mut self,
        name: &ServiceName,
        desired: Option<&desired::Service>,
        ops: &mut Vec<Op>,
    ) -> Result<(), PlanError> {
        self.sweep(ops);
        let mut placed = self.services.remove(name).unwrap_or_default();
        let result = self.groups(&mut placed, desired, ops);
        if !placed.is_empty() {
            self.services.insert(name.clone(), placed);
        }
        result
    }

    /// Plans everything: what is new or changed first, then what is to go. Where only the other order fits, it is that.
    ///
    /// # Errors
    /// As [`Self::service`]; the services before it are planned.
    pub fn all(&mut self, desired: &Desired, ops: &mut Vec<Op>) -> Result<(), PlanError> {
        let gone = |planner: &Self| -> Vec<ServiceName> {
            let gone = planner.services.keys();
            gone.filter(|name| !desired.services.contains_key(*name))
                .cloned()
                .collect()
        };
        for (name, service) in &desired.services {
            if self.service(name, Some(service), ops).is_err() {
                for name in gone(self) {
                    self.service(&name, None, ops)?;
                }
                self.service(name, Some(service), ops)?;
            }
        }
        for name in gone(self) {
            self.service(&name, None, ops)?;
        }
        Ok(())
    }

    /// Brings the settings up to date. A tag's key is replaced while no packet is taken for its.
    pub fn settings(&mut self, settings: Settings, ops: &mut Vec<Op>) {
        if self.settings == Some(settings) {
            return;
        }
        if let Some(before) = self.settings.replace(settings) {
            let replaced = |at: &usize| before.tag_keys[*at] != settings.tag_keys[*at];
            let replaced = (0..before.tag_keys.len()).filter(replaced);
            let tag_ids = replaced.fold(before.tag_ids, |ids, at| ids & !(0xffff << (16 * at)));
            if tag_ids != before.tag_ids {
                ops.push(Op::Settings(Settings {
                    tunnel: before.tunnel,
                    tag_keys: before.tag_keys,
                    tag_ids,
                    ..settings
                }));
                ops.push(Op::Grace);
            }
        }
        ops.push(Op::Settings(settings));
    }

    /// Brings the devices that XDP may send on up to date, by interface index.
    pub fn devices(&mut self, devices: BTreeSet<u32>, ops: &mut Vec<Op>) {
        for ifindex in devices.difference(&self.devices) {
            ops.push(Op::InsertDevice { ifindex: *ifindex });
        }
        for ifindex in self.devices.difference(&devices) {
            ops.push(Op::RemoveDevice { ifindex: *ifindex });
        }
        self.devices = devices;
    }

    fn groups(
        &mut self,
        placed: &mut Vec<Placed>,
        desired: Option<&desired::Service>,
        ops: &mut Vec<Op>,
    ) -> Result<(), PlanError> {
        let mut free: Vec<Placed> = std::mem::take(placed);
        let Some(service) = desired else {
            for old in free {
                self.remove(old, ops);
            }
            return Ok(());
        };
        for group in &service.groups {
            let planned = match nearest(&free, group) {
                Some(at) => {
                    let mut old = free.swap_remove(at);
                    let result = self.change(&mut old, service, group, ops);
                    placed.push(old);
                    result
                }
                None => self
                    .create(service, group, ops)
                    .map(|created| placed.push(created)),
            };
            if let Err(error) = planned {
                placed.extend(free);
                return Err(error);
            }
        }
        for old in free {
            self.remove(old, ops);
        }
        Ok(())
    }
}

/// The group that has most of the frontends already, so that as few as can be go from one to another.
fn nearest(placed: &[Placed], group: &desired::Group) -> Option<usize> {
    let shared = |placed: &Placed| {
        let has = |one: &&desired::GroupFrontend| placed.frontends.contains(&one.frontend);
        group.frontends.iter().filter(has).count()
    };
    let best = placed
        .iter()
        .enumerate()
        .map(|(at, placed)| (shared(placed), std::cmp::Reverse(placed.index), at))
        .max()?;
    (best.0 > 0).then_some(best.2)
}
