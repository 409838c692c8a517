//! One step of a plan: a change of map contents, in the terms of `lb_common::abi`. Ops are applied in order.

use std::net::IpAddr;

use lb_common::{
    abi::{
        Backend, Frontend, FrontendKey, NextHop, Segment, Service, Settings, SourceKey, TargetKey,
    },
    bytes::{Mac, V4, V6},
};

/// A change of one map, or a wait between two.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    Settings(Settings),
    /// `flags`, `expires` and `heartbeat` of the settings, and nothing else of them.
    Lease(Settings),
    /// Word `index` of the address filter.
    Address {
        index: u32,
        word: u64,
    },
    /// A whole backend, at an id that nothing names yet.
    Backend {
        id: u32,
        value: Backend,
    },
    /// `Backend::next_hop` and `Backend::state` of a backend in use.
    BackendLink {
        id: u32,
        next_hop: u32,
        state: u32,
    },
    /// A whole next hop, at an id that nothing names yet.
    NextHop {
        id: u32,
        value: NextHop,
    },
    /// `NextHop::destination` of a next hop in use.
    Neighbour {
        id: u32,
        destination: u64,
    },
    /// Consecutive elements of `SLOTS` from `base`. In a table in use only what follows the owner changes, word by word.
    Slots {
        base: u32,
        slots: Vec<u64>,
    },
    /// Consecutive elements of `MEMBERS` from `base`, word by word.
    Members {
        base: u32,
        members: Vec<u64>,
    },
    /// A whole service, at an index that no frontend names.
    Service {
        index: u32,
        value: Service,
    },
    /// Publishes the table of a service in use, in one store.
    Table {
        service: u32,
        table: u64,
    },
    /// Publishes the member region of a service in use, in one store.
    MemberRegion {
        service: u32,
        members: u64,
    },
    /// `Service::flags` of a service in use, in one store.
    ServiceFlags {
        service: u32,
        flags: u64,
    },
    InsertFrontend4 {
        key: FrontendKey<V4>,
        value: Frontend,
    },
    InsertFrontend6 {
        key: FrontendKey<V6>,
        value: Frontend,
    },
    RemoveFrontend4 {
        key: FrontendKey<V4>,
    },
    RemoveFrontend6 {
        key: FrontendKey<V6>,
    },
    /// `bits` of the client's prefix (0–32), without the service's 32.
    InsertSource4 {
        key: SourceKey<V4>,
        bits: u32,
    },
    InsertSource6 {
        key: SourceKey<V6>,
        bits: u32,
    },
    RemoveSource4 {
        key: SourceKey<V4>,
        bits: u32,
    },
    RemoveSource6 {
        key: SourceKey<V6>,
        bits: u32,
    },
    /// A backend of this node, as other nodes name it, with its id.
    InsertTarget4 {
        key: TargetKey<V4>,
        id: u32,
    },
    InsertTarget6 {
        key: TargetKey<V6>,
        id: u32,
    },
    RemoveTarget4 {
        key: TargetKey<V4>,
    },
    RemoveTarget6 {
        key: TargetKey<V6>,
    },
    /// Zeroes the counters of a frontend id (stats and reasons) before its first use.
    ZeroFrontend {
        id: u32,
    },
    /// Zeroes the counters of a backend id before its first use.
    ZeroBackend {
        id: u32,
    },
    InsertDevice {
        ifindex: u32,
    },
    RemoveDevice {
        ifindex: u32,
    },
    /// Frames of a segment are an interface's, as the stack sees them.
    InsertInterface {
        segment: Segment,
        ifindex: u32,
    },
    RemoveInterface {
        segment: Segment,
    },
    /// What leaves by an interface is sent to a segment.
    InsertSegment {
        ifindex: u32,
        segment: Segment,
    },
    RemoveSegment {
        ifindex: u32,
    },
    /// A VIP's ARP requests or neighbour solicitations that come in by an interface are answered with its MAC.
    InsertAnnounced {
        ifindex: u32,
        address: IpAddr,
        mac: Mac,
    },
    RemoveAnnounced {
        ifindex: u32,
        address: IpAddr,
    },
    /// Waits until no packet that saw the maps before this op is still in the program (RCU grace period).
    Grace,
}
