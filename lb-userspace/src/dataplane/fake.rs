//! The maps in memory: the same contents without a kernel, comparable and readable.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use lb_common::{
    abi::{
        Backend, FILTER_WORDS, Frontend, FrontendKey, NextHop, Reason, Service, Settings, SourceKey,
    },
    bytes::Address,
};

use super::{
    ApplyError, Cause, Dataplane, MapSizes,
    error::{describe, fix},
};
use crate::plan::op::Op;

/// Map contents. What was never written, and what was zeroed, is absent. `Display` gives one line an entry, sorted, for
/// golden tests; equality compares contents and sizes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fake {
    pub sizes: MapSizes,
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
    pub devices: BTreeSet<u32>,
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
    pub fn new(sizes: MapSizes) -> Self {
        Self {
            sizes,
            ..Self::default()
        }
    }

    fn one(&mut self, op: &Op) -> Result<(), Cause> {
        let sizes = self.sizes;
        match op {
            Op::Settings(value) => self.settings = *value,
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
                put(&mut self.backends, "BACKENDS", sizes.backends, *id, *value)?;
            }
            Op::BackendLink {
                id,
                next_hop,
                state,
            } => {
                let mut value = self.backends.get(id).copied().unwrap_or_default();
                (value.next_hop, value.state) = (*next_hop, *state);
                put(&mut self.backends, "BACKENDS", sizes.backends, *id, value)?;
            }
            Op::NextHop { id, value } => {
                put(
                    &mut self.next_hops,
                    "NEXT_HOPS",
                    sizes.next_hops,
                    *id,
                    *value,
                )?;
            }
            Op::Neighbour { id, destination } => {
                let mut value = self.next_hops.get(id).copied().unwrap_or_default();
                value.destination = *destination;
                put(
                    &mut self.next_hops,
                    "NEXT_HOPS",
                    sizes.next_hops,
                    *id,
                    value,
                )?;
            }
            Op::Slots { base, slots } => {
                for (index, word) in (*base..).zip(slots) {
                    put(&mut self.slots, "SLOTS", sizes.slots, index, *word)?;
                }
            }
            Op::Members { base, members } => {
                for (index, word) in (*base..).zip(members) {
                    put(&mut self.members, "MEMBERS", sizes.members, index, *word)?;
                }
            }
            Op::Service { index, value } => {
                put(
                    &mut self.services,
                    "SERVICES",
                    sizes.services,
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
            Op::ZeroFrontend { id } => {
                inside("FRONTEND_STATS", sizes.frontend_ids, *id)?;
                inside(
                    "REASONS",
                    sizes.frontend_ids * Reason::COUNT,
                    id * Reason::COUNT,
                )?;
            }
            Op::ZeroBackend { id } => inside("BACKEND_STATS", sizes.backends, *id)?,
            Op::InsertDevice { ifindex } => {
                self.devices.insert(*ifindex);
            }
            Op::RemoveDevice { ifindex } => {
                self.devices.remove(ifindex);
            }
            Op::Grace => self.graces += 1,
        }
        Ok(())
    }

    fn service(&mut self, index: u32, change: impl FnOnce(&mut Service)) -> Result<(), Cause> {
        let mut value = self.services.get(&index).copied().unwrap_or_default();
        change(&mut value);
        put(
            &mut self.services,
            "SERVICES",
            self.sizes.services,
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
        room(map, used, self.sizes.frontends)?;
        self.frontends.insert(name, value);
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
            room(map, used, self.sizes.sources)?;
        }
        self.sources.insert(key);
        Ok(())
    }
}

impl Dataplane for Fake {
    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        for (at, op) in ops.iter().enumerate() {
            self.one(op).map_err(|cause| ApplyError {
                at,
                op: describe(op),
                cause,
            })?;
        }
        Ok(())
    }
}

impl fmt::Display for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.settings != Settings::default() {
            writeln!(f, "settings {:?}", self.settings)?;
        }
        for (key, value) in &self.frontends {
            let FrontendName {
                address,
                port,
                protocol,
            } = key;
            writeln!(
                f,
                "frontend {address} port {port} protocol {protocol}: service {} id {}",
                value.service, value.id
            )?;
        }
        for (index, word) in &self.addresses {
            writeln!(f, "address word {index}: {word:016x}")?;
        }
        for SourceName {
            service,
            client,
            bits,
        } in &self.sources
        {
            writeln!(f, "source of service {service}: {client}/{bits}")?;
        }
        for (index, value) in &self.services {
            writeln!(
                f,
                "service {index}: table {:x} members {:x} flags {:x}",
                value.table, value.members, value.flags
            )?;
        }
        for (index, word) in &self.slots {
            writeln!(f, "slot {index}: {word:016x}")?;
        }
        for (index, word) in &self.members {
            writeln!(f, "member {index}: {word}")?;
        }
        for (id, value) in &self.backends {
            writeln!(f, "backend {id}: {value:?}")?;
        }
        for (id, value) in &self.next_hops {
            writeln!(f, "next hop {id}: {value:?}")?;
        }
        for ifindex in &self.devices {
            writeln!(f, "device {ifindex}")?;
        }
        Ok(())
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
