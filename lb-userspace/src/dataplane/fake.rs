//! The maps in memory: the same contents without a kernel, comparable and readable.

mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    abi::{
        Backend, FILTER_WORDS, Frontend, FrontendKey, NextHop, Reason, Region, Service, Settings,
        SourceKey, TargetKey,
    },
    bytes::{Address, Be16, Mac, V4, V6},
};

use super::{Cause, Dataplane, DumpError, error::fix};
use crate::{
    net::Segments,
    plan::{
        Dump, DumpedService, Limits, Op,
        limits::{NEXT_HOPS, SOURCES},
    },
};

/// Map contents. What was never written, and what was zeroed, is absent. `Display` gives one line an entry, sorted, for
/// golden tests; equality compares contents and sizes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fake {
    pub limits: Limits,
    pub settings: Settings,
    pub addresses: BTreeMap<u32, u64>,
    pub services: BTreeMap<u32, Service>,
    pub slots: BTreeMap<u32, u64>,
    pub members: BTreeMap<u32, u64>,
    pub backends: BTreeMap<u32, Backend>,
    pub next_hops: BTreeMap<u32, NextHop>,
    /// By address bytes (4 or 16), port and protocol.
    pub frontends: BTreeMap<FrontendName, Frontend>,
    pub sources: BTreeSet<SourceName>,
    /// By service, address and port: ids of backends.
    pub targets: BTreeMap<(u32, IpAddr, u16), u32>,
    pub devices: BTreeSet<u32>,
    pub segments: Segments,
    /// By interface index and VIP.
    pub announced: BTreeMap<(u32, IpAddr), Mac>,
    /// Grace periods waited for.
    pub graces: usize,
}

/// Key of a frontend in an order that people expect.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FrontendName {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: u8,
}

/// Key of a source range: service, client prefix and its length in bits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SourceName {
    pub service: u32,
    pub client: IpAddr,
    pub bits: u32,
}

impl Fake {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    fn service(&mut self, index: u32, change: impl FnOnce(&mut Service)) -> Result<(), Cause> {
        let mut value = self.services.get(&index).copied().unwrap_or_default();
        change(&mut value);
        put(
            &mut self.services,
            "SERVICES",
            self.limits.services(),
            index,
            value,
        )
    }

    fn insert_frontend<A: Address>(
        &mut self,
        key: &FrontendKey<A>,
        map: &'static str,
        value: Frontend,
    ) -> Result<(), Cause> {
        let name = FrontendName::of(key);
        match self.frontends.get(&name) {
            Some(found) if *found == value => return Ok(()),
            Some(_) => return Err(Cause::Exists { map }),
            None => {}
        }
        let same_family = |other: &&FrontendName| other.address.is_ipv4() == name.address.is_ipv4();
        let used = self.frontends.keys().filter(same_family).count();
        room(map, used, self.limits.frontend_entries())?;
        self.frontends.insert(name, value);
        Ok(())
    }

    fn announce(&mut self, ifindex: u32, address: IpAddr, mac: Mac) -> Result<(), Cause> {
        let map = if address.is_ipv4() {
            "ANNOUNCED4"
        } else {
            "ANNOUNCED6"
        };
        match self.announced.get(&(ifindex, address)) {
            Some(found) if *found == mac => return Ok(()),
            Some(_) => return Err(Cause::Exists { map }),
            None => {}
        }
        let same_family = |(_, other): &&(u32, IpAddr)| other.is_ipv4() == address.is_ipv4();
        let used = self.announced.keys().filter(same_family).count();
        room(map, used, self.limits.announced())?;
        self.announced.insert((ifindex, address), mac);
        Ok(())
    }

    fn insert_target<A: Address>(&mut self, key: &TargetKey<A>, id: u32) -> Result<(), Cause> {
        let name = target_name(key);
        let v4 = name.1.is_ipv4();
        let map = if v4 { "TARGETS4" } else { "TARGETS6" };
        match self.targets.get(&name) {
            Some(found) if *found == id => return Ok(()),
            Some(_) => return Err(Cause::Exists { map }),
            None => {}
        }
        let same_family = |(_, other, _): &&(u32, IpAddr, u16)| other.is_ipv4() == v4;
        let used = self.targets.keys().filter(same_family).count();
        room(map, used, self.limits.backend_ids())?;
        self.targets.insert(name, id);
        Ok(())
    }

    fn insert_source(&mut self, key: SourceName) -> Result<(), Cause> {
        let of_family = |other: &&SourceName| other.client.is_ipv4() == key.client.is_ipv4();
        let used = self.sources.iter().filter(of_family).count();
        let map = if key.client.is_ipv4() {
            "SOURCES4"
        } else {
            "SOURCES6"
        };
        if !self.sources.contains(&key) {
            room(map, used, SOURCES)?;
        }
        self.sources.insert(key);
        Ok(())
    }
}

impl Dataplane for Fake {
    fn apply_one(&mut self, op: &Op) -> Result<(), Cause> {
        let limits = self.limits;
        match op {
            Op::Settings(value) => self.settings = *value,
            Op::Lease(value) => {
                self.settings = Settings {
                    flags: value.flags,
                    expires: value.expires,
                    heartbeat: value.heartbeat,
                    ..self.settings
                }
            }
            Op::Address { index, word } => {
                put(
                    &mut self.addresses,
                    "ADDRESSES",
                    FILTER_WORDS,
                    *index,
                    *word,
                )?;
            }
            Op::Backend { id, value } => {
                put(
                    &mut self.backends,
                    "BACKENDS",
                    limits.backend_ids(),
                    *id,
                    *value,
                )?;
            }
            Op::BackendLink {
                id,
                next_hop,
                state,
            } => {
                let mut value = self.backends.get(id).copied().unwrap_or_default();
                (value.next_hop, value.state) = (*next_hop, *state);
                put(
                    &mut self.backends,
                    "BACKENDS",
                    limits.backend_ids(),
                    *id,
                    value,
                )?;
            }
            Op::NextHop { id, value } => {
                put(&mut self.next_hops, "NEXT_HOPS", NEXT_HOPS, *id, *value)?;
            }
            Op::Neighbour { id, destination } => {
                let mut value = self.next_hops.get(id).copied().unwrap_or_default();
                value.destination = *destination;
                put(&mut self.next_hops, "NEXT_HOPS", NEXT_HOPS, *id, value)?;
            }
            Op::Slots { base, slots } => {
                for (index, word) in (*base..).zip(slots) {
                    put(&mut self.slots, "SLOTS", limits.slots(), index, *word)?;
                }
            }
            Op::Members { base, members } => {
                for (index, word) in (*base..).zip(members) {
                    put(&mut self.members, "MEMBERS", limits.members(), index, *word)?;
                }
            }
            Op::Service { index, value } => {
                put(
                    &mut self.services,
                    "SERVICES",
                    limits.services(),
                    *index,
                    *value,
                )?;
            }
            Op::Table { service, table } => self.service(*service, |value| value.table = *table)?,
            Op::MemberRegion { service, members } => {
                self.service(*service, |value| value.members = *members)?;
            }
            Op::ServiceFlags { service, flags } => {
                self.service(*service, |value| value.flags = *flags)?;
            }
            Op::InsertFrontend4 { key, value } => {
                self.insert_frontend(key, "FRONTENDS4", *value)?;
            }
            Op::InsertFrontend6 { key, value } => {
                self.insert_frontend(key, "FRONTENDS6", *value)?;
            }
            Op::RemoveFrontend4 { key } => drop(self.frontends.remove(&FrontendName::of(key))),
            Op::RemoveFrontend6 { key } => drop(self.frontends.remove(&FrontendName::of(key))),
            Op::InsertSource4 { key, bits } => self.insert_source(SourceName::of(key, *bits))?,
            Op::InsertSource6 { key, bits } => self.insert_source(SourceName::of(key, *bits))?,
            Op::RemoveSource4 { key, bits } => {
                self.sources.remove(&SourceName::of(key, *bits));
            }
            Op::RemoveSource6 { key, bits } => {
                self.sources.remove(&SourceName::of(key, *bits));
            }
            Op::InsertTarget4 { key, id } => self.insert_target(key, *id)?,
            Op::InsertTarget6 { key, id } => self.insert_target(key, *id)?,
            Op::RemoveTarget4 { key } => drop(self.targets.remove(&target_name(key))),
            Op::RemoveTarget6 { key } => drop(self.targets.remove(&target_name(key))),
            Op::ZeroFrontend { id } => {
                inside("FRONTEND_STATS", limits.frontend_ids(), *id)?;
                inside(
                    "REASONS",
                    limits.frontend_ids() * Reason::COUNT,
                    id * Reason::COUNT,
                )?;
            }
            Op::ZeroBackend { id } => inside("BACKEND_STATS", limits.backend_ids(), *id)?,
            Op::InsertDevice { ifindex } => {
                self.devices.insert(*ifindex);
            }
            Op::RemoveDevice { ifindex } => {
                self.devices.remove(ifindex);
            }
            Op::InsertInterface { segment, ifindex } => {
                self.segments.interfaces.insert(*segment, *ifindex);
            }
            Op::RemoveInterface { segment } => {
                self.segments.interfaces.remove(segment);
            }
            Op::InsertSegment { ifindex, segment } => {
                self.segments.below.insert(*ifindex, *segment);
            }
            Op::RemoveSegment { ifindex } => {
                self.segments.below.remove(ifindex);
            }
            Op::InsertAnnounced {
                ifindex,
                address,
                mac,
            } => self.announce(*ifindex, *address, *mac)?,
            Op::RemoveAnnounced { ifindex, address } => {
                self.announced.remove(&(*ifindex, *address));
            }
            Op::Grace => self.graces += 1,
        }
        Ok(())
    }

    fn dump(&mut self) -> Result<Dump, DumpError> {
        let mut dump = Dump {
            settings: self.settings,
            addresses: self.addresses.clone(),
            next_hops: self.next_hops.clone(),
            devices: self.devices.clone(),
            segments: self.segments.clone(),
            announced: self.announced.clone(),
            ..Dump::default()
        };
        for (name, value) in &self.frontends {
            let port = Be16::new(name.port);
            match name.address {
                IpAddr::V4(ip) => {
                    let key = FrontendKey::new(V4::from(ip), port, name.protocol);
                    dump.frontends4.push((key, *value));
                }
                IpAddr::V6(ip) => {
                    let key = FrontendKey::new(V6::from(ip), port, name.protocol);
                    dump.frontends6.push((key, *value));
                }
            }
        }
        for source in &self.sources {
            let service_be = source.service.to_be();
            match source.client {
                IpAddr::V4(ip) => {
                    let client = V4::from(ip);
                    dump.sources4
                        .push((SourceKey { service_be, client }, source.bits));
                }
                IpAddr::V6(ip) => {
                    let client = V6::from(ip);
                    dump.sources6
                        .push((SourceKey { service_be, client }, source.bits));
                }
            }
        }
        for ((service, address, port), id) in &self.targets {
            let port = Be16::new(*port);
            match *address {
                IpAddr::V4(ip) => {
                    let key = TargetKey::new(*service, V4::from(ip), port);
                    dump.targets4.push((key, *id));
                }
                IpAddr::V6(ip) => {
                    let key = TargetKey::new(*service, V6::from(ip), port);
                    dump.targets6.push((key, *id));
                }
            }
        }
        for (index, value) in &self.services {
            let service = DumpedService {
                value: *value,
                slots: region(&self.slots, self.limits.slots(), Region(value.table)),
                members: region(&self.members, self.limits.members(), Region(value.members)),
            };
            dump.services.insert(*index, service);
        }
        let live = |(_, value): &(&u32, &Backend)| value.generation != 0;
        dump.backends = self
            .backends
            .iter()
            .filter(live)
            .map(|(id, value)| (*id, *value))
            .collect();
        Ok(dump)
    }
}

impl SourceName {
    fn of<A: Address>(key: &SourceKey<A>, bits: u32) -> Self {
        Self {
            service: u32::from_be(key.service_be),
            client: key.client.to_addr().to_ip(),
            bits,
        }
    }
}

impl FrontendName {
    fn of<A: Address>(key: &FrontendKey<A>) -> Self {
        Self {
            address: key.address.to_addr().to_ip(),
            port: key.port.to_host(),
            protocol: key.protocol,
        }
    }
}

fn target_name<A: Address>(key: &TargetKey<A>) -> (u32, IpAddr, u16) {
    (
        key.service,
        key.address.to_addr().to_ip(),
        key.port.to_host(),
    )
}

/// Contents of a region; empty if it is not within the map.
fn region(map: &BTreeMap<u32, u64>, elements: u32, region: Region) -> Vec<u64> {
    let end = u64::from(region.base()) + u64::from(region.size());
    if end > u64::from(elements) {
        return Vec::new();
    }
    (region.base()..end as u32)
        .map(|index| map.get(&index).copied().unwrap_or_default())
        .collect()
}

/// Writes an array element; a zero value is what a fresh array has.
fn put<V: Default + PartialEq>(
    map: &mut BTreeMap<u32, V>,
    name: &'static str,
    max: u32,
    index: u32,
    value: V,
) -> Result<(), Cause> {
    inside(name, max, index)?;
    if value == V::default() {
        map.remove(&index);
    } else {
        map.insert(index, value);
    }
    Ok(())
}

fn inside(map: &'static str, max: u32, index: u32) -> Result<(), Cause> {
    if index < max {
        return Ok(());
    }
    Err(Cause::Outside {
        map,
        index,
        max,
        fix: fix(map),
    })
}

fn room(map: &'static str, used: usize, max: u32) -> Result<(), Cause> {
    if used < max as usize {
        return Ok(());
    }
    Err(Cause::Full {
        map,
        max,
        fix: fix(map),
    })
}
