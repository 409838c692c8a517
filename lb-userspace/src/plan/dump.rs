//! What the maps hold, as far as a new agent needs it to go on from there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    abi::{Backend, Frontend, FrontendKey, NextHop, Service, Settings, SourceKey, TargetKey},
    bytes::{Mac, V4, V6},
};

use crate::net::Segments;

/// Contents of the maps that the agent writes. The default is that of new maps.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Dump {
    pub settings: Settings,
    /// Words of `ADDRESSES` that are not zero, by index.
    pub addresses: BTreeMap<u32, u64>,
    /// All entries, the VIPs' markers included.
    pub frontends4: Vec<(FrontendKey<V4>, Frontend)>,
    pub frontends6: Vec<(FrontendKey<V6>, Frontend)>,
    /// Elements of `SERVICES` that are not zero, by index.
    pub services: BTreeMap<u32, DumpedService>,
    /// Elements of `BACKENDS` whose generation is not zero, by id: live ones and those that only flows remember.
    pub backends: BTreeMap<u32, Backend>,
    /// Elements of `NEXT_HOPS` whose interface index is not zero, by id.
    pub next_hops: BTreeMap<u32, NextHop>,
    /// Entries of `SOURCES4` and `SOURCES6` with the bits of the client's prefix (the trie's length less 32).
    pub sources4: Vec<(SourceKey<V4>, u32)>,
    pub sources6: Vec<(SourceKey<V6>, u32)>,
    /// All entries of `TARGETS4` and `TARGETS6`.
    pub targets4: Vec<(TargetKey<V4>, u32)>,
    pub targets6: Vec<(TargetKey<V6>, u32)>,
    pub devices: BTreeSet<u32>,
    pub segments: Segments,
    /// Entries of `ANNOUNCED4` and `ANNOUNCED6`, by interface index and VIP.
    pub announced: BTreeMap<(u32, IpAddr), Mac>,
}

/// A service and what its regions hold. A region that lies outside its map is taken as empty.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DumpedService {
    pub value: Service,
    /// Elements of `SLOTS` in the region of `value.table`.
    pub slots: Vec<u64>,
    /// Elements of `MEMBERS` in the region of `value.members`.
    pub members: Vec<u64>,
}
