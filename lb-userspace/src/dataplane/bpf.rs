//! Ops on the real maps, while the program reads them.
//!
//! Arrays are written through mapped memory, a word at a time, every store a release: what an op before has written is
//! there for whoever sees the word. Entries of hash maps are inserted as new or deleted, never changed in place
//! (measured: a reader may get another key's value). An insert whose entry is there already, and a removal whose entry
//! is gone, are what a retried plan meets: both succeed.

use std::{fmt, io, mem::offset_of, path::Path};

use aya::{
    Pod,
    maps::{DevMapHash, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key, xdp::XdpMapError},
};
use lb_common::{
    abi::{
        Backend, Frontend, FrontendKey, NextHop, Reason, Segment, Service, Settings, SourceKey,
        TargetKey,
    },
    bytes::{V4, V6},
};

use super::{
    AnnouncedMaps, Cause, Dataplane, DumpError, OpenError,
    error::fix,
    grace, open,
    per_cpu::PerCpu,
    window::{Fault, Words},
};
use crate::plan::{Dump, Op};

/// `BPF_NOEXIST`
pub(super) const NEW_ONLY: u64 = 1;
/// Bits of the service index in front of the client's address in a source range.
pub(super) const SERVICE_BITS: u32 = 32;

/// The maps of one pin folder.
pub struct Bpf {
    pub(super) settings: Words,
    pub(super) addresses: Words,
    pub(super) services: Words,
    pub(super) slots: Words,
    pub(super) members: Words,
    pub(super) backends: Words,
    pub(super) next_hops: Words,
    pub(super) frontends4: Entries<FrontendKey<V4>>,
    pub(super) frontends6: Entries<FrontendKey<V6>>,
    pub(super) sources4: Sources<SourceKey<V4>>,
    pub(super) sources6: Sources<SourceKey<V6>>,
    pub(super) targets4: Entries<TargetKey<V4>, u32>,
    pub(super) targets6: Entries<TargetKey<V6>, u32>,
    pub(super) devices: DevMapHash<MapData>,
    pub(super) interfaces: Entries<Segment, u32>,
    pub(super) segments: Entries<u32, Segment>,
    pub(super) announced: AnnouncedMaps,
    frontend_stats: PerCpu<4>,
    backend_stats: PerCpu<2>,
    reasons: PerCpu<1>,
}

/// A hash map of immutable entries.
pub(super) struct Entries<K: Pod, V: Pod = Frontend> {
    pub(super) name: &'static str,
    max: u32,
    pub(super) map: HashMap<MapData, K, V>,
}

/// A trie whose values mean nothing.
pub(super) struct Sources<K: Pod> {
    pub(super) name: &'static str,
    max: u32,
    pub(super) map: LpmTrie<MapData, K, u32>,
}

impl Bpf {
    /// `folder` is that of the pinned maps.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            settings: Words::open::<Settings>(folder, "SETTINGS")?,
            addresses: Words::open::<u64>(folder, "ADDRESSES")?,
            services: Words::open::<Service>(folder, "SERVICES")?,
            slots: Words::open::<u64>(folder, "SLOTS")?,
            members: Words::open::<u64>(folder, "MEMBERS")?,
            backends: Words::open::<Backend>(folder, "BACKENDS")?,
            next_hops: Words::open::<NextHop>(folder, "NEXT_HOPS")?,
            frontends4: Entries::open(folder, "FRONTENDS4")?,
            frontends6: Entries::open(folder, "FRONTENDS6")?,
            sources4: Sources::open(folder, "SOURCES4")?,
            sources6: Sources::open(folder, "SOURCES6")?,
            targets4: Entries::open(folder, "TARGETS4")?,
            targets6: Entries::open(folder, "TARGETS6")?,
            devices: open::devices(folder, "DEVICES")?,
            interfaces: Entries::open(folder, "INTERFACES")?,
            segments: Entries::open(folder, "SEGMENTS")?,
            announced: AnnouncedMaps::open(folder)?,
            frontend_stats: PerCpu::open(folder, "FRONTEND_STATS")?,
            backend_stats: PerCpu::open(folder, "BACKEND_STATS")?,
            reasons: PerCpu::open(folder, "REASONS")?,
        })
    }

    /// A device that went after it was seen (a pod's) is left out, as the kernel takes out those that go later: nothing is
    /// sent on it any more. `EINVAL` says so (`dev_get_by_index` in kernel/bpf/devmap.c).
    fn insert_device(&mut self, ifindex: u32) -> Result<(), Cause> {
        let source = match self.devices.insert(ifindex, ifindex, None, 0) {
            Ok(()) => return Ok(()),
            Err(XdpMapError::MapError(error)) => open::io_error(error),
            Err(error @ XdpMapError::ChainedProgramNotSupported) => io::Error::other(error),
        };
        if source.raw_os_error() == Some(libc::EINVAL) {
            return Ok(());
        }
        Err(Cause::Kernel {
            map: "DEVICES",
            source,
        })
    }
}

impl Dataplane for Bpf {
    fn apply_one(&mut self, op: &Op) -> Result<(), Cause> {
        match op {
            Op::Settings(value) => element(&mut self.settings, 0, value),
            Op::Lease(value) => on(&mut self.settings, |map| {
                map.store(0, offset_of!(Settings, heartbeat), value.heartbeat)?;
                map.store(0, offset_of!(Settings, expires), value.expires)?;
                map.store_half(0, offset_of!(Settings, flags), value.flags)
            }),
            Op::Address { index, word } => {
                on(&mut self.addresses, |map| map.store(*index, 0, *word))
            }
            Op::Backend { id, value } => element(&mut self.backends, *id, value),
            Op::BackendLink {
                id,
                next_hop,
                state,
            } => on(&mut self.backends, |map| {
                map.store_half(*id, offset_of!(Backend, next_hop), *next_hop)?;
                map.store_half(*id, offset_of!(Backend, state), *state)
            }),
            Op::NextHop { id, value } => element(&mut self.next_hops, *id, value),
            Op::Neighbour { id, destination } => on(&mut self.next_hops, |map| {
                map.store(*id, offset_of!(NextHop, destination), *destination)
            }),
            Op::Slots { base, slots } => on(&mut self.slots, |map| map.store_run(*base, slots)),
            Op::Members { base, members } => {
                on(&mut self.members, |map| map.store_run(*base, members))
            }
            Op::Service { index, value } => element(&mut self.services, *index, value),
            Op::Table { service, table } => on(&mut self.services, |map| {
                map.store(*service, offset_of!(Service, table), *table)
            }),
            Op::MemberRegion { service, members } => on(&mut self.services, |map| {
                map.store(*service, offset_of!(Service, members), *members)
            }),
            Op::ServiceFlags { service, flags } => on(&mut self.services, |map| {
                map.store(*service, offset_of!(Service, flags), *flags)
            }),
            Op::InsertFrontend4 { key, value } => self.frontends4.insert(key, *value),
            Op::InsertFrontend6 { key, value } => self.frontends6.insert(key, *value),
            Op::RemoveFrontend4 { key } => self.frontends4.remove(key),
            Op::RemoveFrontend6 { key } => self.frontends6.remove(key),
            Op::InsertSource4 { key, bits } => self.sources4.insert(key, *bits),
            Op::InsertSource6 { key, bits } => self.sources6.insert(key, *bits),
            Op::RemoveSource4 { key, bits } => self.sources4.remove(key, *bits),
            Op::RemoveSource6 { key, bits } => self.sources6.remove(key, *bits),
            Op::InsertTarget4 { key, id } => self.targets4.insert(key, *id),
            Op::InsertTarget6 { key, id } => self.targets6.insert(key, *id),
            Op::RemoveTarget4 { key } => self.targets4.remove(key),
            Op::RemoveTarget6 { key } => self.targets6.remove(key),
            Op::ZeroFrontend { id } => {
                zero(&self.frontend_stats, *id, 1)?;
                zero(
                    &self.reasons,
                    id.saturating_mul(Reason::COUNT),
                    Reason::COUNT,
                )
            }
            Op::ZeroBackend { id } => zero(&self.backend_stats, *id, 1),
            Op::InsertDevice { ifindex } => self.insert_device(*ifindex),
            Op::RemoveDevice { ifindex } => gone_is_fine("DEVICES", self.devices.remove(*ifindex)),
            Op::InsertInterface { segment, ifindex } => self.interfaces.insert(segment, *ifindex),
            Op::RemoveInterface { segment } => self.interfaces.remove(segment),
            Op::InsertSegment { ifindex, segment } => self.segments.insert(ifindex, *segment),
            Op::RemoveSegment { ifindex } => self.segments.remove(ifindex),
            Op::InsertAnnounced {
                ifindex,
                address,
                mac,
            } => self.announced.insert(*ifindex, *address, *mac),
            Op::RemoveAnnounced { ifindex, address } => self.announced.remove(*ifindex, *address),
            Op::Grace => grace::wait().map_err(Cause::Grace),
        }
    }

    fn dump(&mut self) -> Result<Dump, DumpError> {
        self.read_all()
    }
}

impl fmt::Debug for Bpf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bpf").finish_non_exhaustive()
    }
}

impl<K: Pod, V: Pod + PartialEq> Entries<K, V> {
    fn open(folder: &Path, name: &'static str) -> Result<Self, OpenError> {
        let (_, info) = open::map(folder, name)?;
        Ok(Self {
            name,
            max: info.max_entries(),
            map: open::hash(folder, name)?,
        })
    }

    fn insert(&mut self, key: &K, value: V) -> Result<(), Cause> {
        let Err(error) = self.map.insert(key, value, NEW_ONLY) else {
            return Ok(());
        };
        let error = open::io_error(error);
        match error.raw_os_error() {
            Some(libc::EEXIST) if self.map.get(key, 0).is_ok_and(|found| found == value) => Ok(()),
            Some(libc::EEXIST) => Err(Cause::Exists { map: self.name }),
            _ => Err(refused(self.name, self.max, error)),
        }
    }

    fn remove(&mut self, key: &K) -> Result<(), Cause> {
        gone_is_fine(self.name, self.map.remove(key))
    }
}

impl<K: Pod> Sources<K> {
    fn open(folder: &Path, name: &'static str) -> Result<Self, OpenError> {
        let (_, info) = open::map(folder, name)?;
        Ok(Self {
            name,
            max: info.max_entries(),
            map: open::trie(folder, name)?,
        })
    }

    fn insert(&mut self, key: &K, bits: u32) -> Result<(), Cause> {
        self.map
            .insert(&Key::new(SERVICE_BITS + bits, *key), 0, 0)
            .map_err(|error| refused(self.name, self.max, open::io_error(error)))
    }

    fn remove(&mut self, key: &K, bits: u32) -> Result<(), Cause> {
        gone_is_fine(
            self.name,
            self.map.remove(&Key::new(SERVICE_BITS + bits, *key)),
        )
    }
}

fn element<T: Pod>(map: &mut Words, index: u32, value: &T) -> Result<(), Cause> {
    on(map, |map| map.store_element(index, value))
}

fn on(map: &mut Words, work: impl FnOnce(&mut Words) -> Result<(), Fault>) -> Result<(), Cause> {
    let name = map.name();
    work(map).map_err(|fault| match fault {
        Fault::Outside { index, elements } => outside(name, index, elements),
        Fault::Mapping(source) => Cause::Kernel { map: name, source },
    })
}

fn zero<const W: usize>(map: &PerCpu<W>, first: u32, count: u32) -> Result<(), Cause> {
    if u64::from(first) + u64::from(count) > u64::from(map.elements()) {
        return Err(outside(map.name(), first, map.elements()));
    }
    map.zero(&(first..first + count))
        .map_err(|source| Cause::Kernel {
            map: map.name(),
            source,
        })
}

fn outside(map: &'static str, index: u32, max: u32) -> Cause {
    Cause::Outside {
        map,
        index,
        max,
        fix: fix(map),
    }
}

/// The kernel's two ways to say "full": E2BIG of hash maps, ENOSPC of tries.
pub(super) fn refused(map: &'static str, max: u32, source: io::Error) -> Cause {
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => Cause::Full {
            map,
            max,
            fix: fix(map),
        },
        _ => Cause::Kernel { map, source },
    }
}

pub(super) fn gone_is_fine(map: &'static str, removed: Result<(), MapError>) -> Result<(), Cause> {
    match removed.map_err(open::io_error) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(source) => Err(Cause::Kernel { map, source }),
        Ok(()) => Ok(()),
    }
}
