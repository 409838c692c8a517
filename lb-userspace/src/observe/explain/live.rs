//! The live maps, for reading: one look-up a need. Look-ups by system call leave no trace, not even in the LRU's order.

use std::{io, path::Path};

use aya::{
    Pod,
    maps::{
        Array, DevMapHash, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap,
        lpm_trie::Key,
    },
};
use lb_common::{
    abi::{
        Announced, AnnouncedKey, Backend, Bucket, Flow, Fragment, FragmentKey, Frontend,
        FrontendKey, NextHop, Segment, Service, Settings, SourceKey, TargetKey, Tuple,
    },
    bytes::{V4, V6},
    tables::FlowTable,
};

use crate::dataplane::OpenError;

/// Maps of one family.
pub(super) struct Family<A: 'static>
where
    AnnouncedKey<A>: Pod,
    FrontendKey<A>: Pod,
    SourceKey<A>: Pod,
    Tuple<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
    Fragment<A>: Pod,
    TargetKey<A>: Pod,
{
    pub(super) frontends: HashMap<MapData, FrontendKey<A>, Frontend>,
    sources: LpmTrie<MapData, SourceKey<A>, u32>,
    established: HashMap<MapData, Tuple<A>, Flow<A>>,
    half_open: HashMap<MapData, Tuple<A>, Flow<A>>,
    announced: PerCpuHashMap<MapData, AnnouncedKey<A>, Announced>,
    fragments: HashMap<MapData, FragmentKey<A>, Fragment<A>>,
    pub(super) targets: HashMap<MapData, TargetKey<A>, u32>,
}

impl<A: 'static> Family<A>
where
    AnnouncedKey<A>: Pod,
    FrontendKey<A>: Pod,
    SourceKey<A>: Pod,
    Tuple<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
    Fragment<A>: Pod,
    TargetKey<A>: Pod,
{
    fn open(folder: &Path, version: u8) -> Result<Self, OpenError> {
        let open = |name: &str| format!("{name}{version}");
        Ok(Self {
            frontends: typed(folder, &open("FRONTENDS"))?,
            sources: typed(folder, &open("SOURCES"))?,
            established: typed(folder, &open("FLOWS"))?,
            half_open: typed(folder, &open("HALF_OPEN"))?,
            announced: typed(folder, &open("ANNOUNCED"))?,
            fragments: typed(folder, &open("FRAGMENTS"))?,
            targets: typed(folder, &open("TARGETS"))?,
        })
    }

    pub(super) fn source(&self, service: u32, client: A) -> io::Result<Option<u32>> {
        let bits = 8 * size_of::<SourceKey<A>>() as u32;
        let service_be = service.to_be();
        let key = Key::new(bits, SourceKey { service_be, client });
        found(self.sources.get(&key, 0))
    }

    pub(super) fn announced(&self, key: &AnnouncedKey<A>) -> io::Result<Option<Announced>> {
        let values = found(self.announced.get(key, 0))?;
        Ok(values.and_then(|values| values.first().copied()))
    }

    pub(super) fn flow(&self, table: FlowTable, key: &Tuple<A>) -> io::Result<Option<Flow<A>>> {
        let map = match table {
            FlowTable::Established => &self.established,
            FlowTable::HalfOpen => &self.half_open,
        };
        found(map.get(key, 0))
    }

    pub(super) fn fragment(&self, key: &FragmentKey<A>) -> io::Result<Option<Fragment<A>>> {
        found(self.fragments.get(key, 0))
    }
}

/// Every map that the pipeline reads.
pub(super) struct Live {
    pub(super) v4: Family<V4>,
    pub(super) v6: Family<V6>,
    settings: Array<MapData, Settings>,
    pub(super) addresses: Array<MapData, u64>,
    pub(super) services: Array<MapData, Service>,
    pub(super) slots: Array<MapData, u64>,
    pub(super) members: Array<MapData, u64>,
    pub(super) moved: Array<MapData, u64>,
    pub(super) backends: Array<MapData, Backend>,
    pub(super) next_hops: Array<MapData, NextHop>,
    buckets: PerCpuArray<MapData, Bucket>,
    devices: DevMapHash<MapData>,
    pub(super) interfaces: HashMap<MapData, Segment, u32>,
}

impl Live {
    /// `folder` is that of the pinned maps.
    pub(super) fn open(folder: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            v4: Family::open(folder, 4)?,
            v6: Family::open(folder, 6)?,
            settings: typed(folder, "SETTINGS")?,
            addresses: typed(folder, "ADDRESSES")?,
            services: typed(folder, "SERVICES")?,
            slots: typed(folder, "SLOTS")?,
            members: typed(folder, "MEMBERS")?,
            moved: typed(folder, "MOVED")?,
            backends: typed(folder, "BACKENDS")?,
            next_hops: typed(folder, "NEXT_HOPS")?,
            buckets: typed(folder, "BUCKETS")?,
            devices: typed(folder, "DEVICES")?,
            interfaces: typed(folder, "INTERFACES")?,
        })
    }

    pub(super) fn settings(&self) -> io::Result<Settings> {
        Ok(element(&self.settings, 0)?.unwrap_or_default())
    }

    /// The bucket of one CPU: the one that explains.
    pub(super) fn bucket(&self, index: u32, cpu: usize) -> io::Result<Bucket> {
        let all = self.buckets.get(&index, 0).map_err(other)?;
        Ok(all.get(cpu).copied().unwrap_or_default())
    }

    /// Whether XDP may send on a device.
    pub(super) fn sends_on(&self, ifindex: u32) -> io::Result<bool> {
        Ok(found(self.devices.get(ifindex, 0))?.is_some())
    }
}

/// An element of an array; `None` beyond its end.
pub(super) fn element<T: Pod>(array: &Array<MapData, T>, index: u32) -> io::Result<Option<T>> {
    match array.get(&index, 0) {
        Err(MapError::OutOfBounds { .. }) => Ok(None),
        element => found(element),
    }
}

pub(super) fn found<T>(value: Result<T, MapError>) -> io::Result<Option<T>> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(other(error)),
    }
}

fn other(error: MapError) -> io::Error {
    io::Error::other(error)
}

fn typed<T: TryFrom<Map, Error = MapError>>(folder: &Path, name: &str) -> Result<T, OpenError> {
    let path = folder.join(name);
    MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(|source| OpenError::Pin {
            path: path.display().to_string(),
            source,
        })
}
