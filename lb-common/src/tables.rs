//! The maps as the pipeline sees them. All methods take `&self`: in the kernel the maps are shared by all CPUs anyway.

use core::ops::Deref;

use crate::{
    abi::{
        Announced, AnnouncedKey, Backend, Flow, Fragment, FragmentKey, Frontend, FrontendKey, Hop,
        Moved, NextHop, Reason, Segment, Service, TargetKey, Tuple,
    },
    bytes::{Addr, Address, V4, V6},
    pipeline::Step,
};

/// Which of the two flow tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum FlowTable {
    Established,
    /// Flows whose client has not shown that it sees replies.
    HalfOpen,
}

/// The kernel's answer to "how does a packet get to this address?".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Neighbour known; MTU of the route in bytes; `gateway` is the address that was resolved.
    Hop { hop: Hop, mtu: u16, gateway: Addr },
    /// Route known; only the stack can send there: the neighbour is unknown, or XDP cannot send on the device.
    Neighbour { ifindex: u32, gateway: Addr },
    /// Unreachable, prohibited or blackholed.
    None,
    /// The kernel does not say: forwarding is off on the interface, or the route ends on this host.
    Unknown,
}

/// A budget of [`crate::abi::Bucket`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Budget {
    Reject,
    Flow,
    Fragment,
    /// First fragments of replies; of the rate and burst of the others.
    ReplyFragment,
}

/// Where the pipeline runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// In the driver. What it cannot send it hands up, unchanged.
    Xdp,
    /// At tc ingress: takes what XDP handed up, and sends by way of the neighbour table.
    Tc,
}

/// Tables that exist once per address family.
pub trait FamilyTables<A: Address> {
    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend>;

    /// Whether some source range of the service holds `client`.
    fn source_allowed(&self, service: u32, client: A) -> bool;

    /// Runs `change` on the flow in place, if it is there.
    fn with_flow<R>(
        &self,
        table: FlowTable,
        key: &Tuple<A>,
        change: impl FnOnce(&mut Flow<A>) -> R,
    ) -> Option<R>;

    /// Inserts a flow; with `fresh` only where no entry has the key. False if it was not inserted.
    fn insert_flow(&self, table: FlowTable, key: &Tuple<A>, flow: &Flow<A>, fresh: bool) -> bool;

    fn remove_flow(&self, table: FlowTable, key: &Tuple<A>);

    /// Runs `ask` on the entry of a VIP that is announced on an interface.
    fn with_announced<R>(
        &self,
        key: &AnnouncedKey<A>,
        ask: impl FnOnce(&mut Announced) -> R,
    ) -> Option<R>;

    /// Reads what is known of a datagram's first fragment.
    fn with_fragment<R>(
        &self,
        key: &FragmentKey<A>,
        read: impl FnOnce(&Fragment<A>) -> R,
    ) -> Option<R>;

    /// Remembers a first fragment, in the place of another with its key.
    fn remember_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment<A>);

    /// Id of a backend of this node.
    fn target(&self, key: &TargetKey<A>) -> Option<u32>;

    /// Asks the kernel's routing table for the way of a packet that comes in by interface `from`.
    fn route(&self, from: u32, source: A, destination: A) -> Route;
}

/// All tables.
pub trait Tables: FamilyTables<V4> + FamilyTables<V6> {
    fn home(&self) -> Home;
    /// A word of the address filter.
    fn filter(&self, index: u32) -> u64;
    fn service(&self, index: u32) -> Option<Service>;
    fn slot(&self, index: u32) -> Option<u64>;
    fn member(&self, index: u32) -> Option<u64>;
    /// A word of the filter of [`Moved`] connections; 0 beyond its end.
    fn moved(&self, index: u32) -> Moved;
    /// Several CPUs may write a word at once: what is lost then is noted again.
    fn set_moved(&self, index: u32, word: Moved);
    fn backend(&self, id: u32) -> Option<impl Deref<Target = Backend>>;
    fn next_hop(&self, id: u32) -> Option<impl Deref<Target = NextHop>>;
    /// The stack's interface for a segment: a VLAN device; the bond that a device is a port of; else the device itself.
    fn interface(&self, segment: &Segment) -> u32;
    /// Jiffies, all 64 bits.
    fn jiffies(&self) -> u64;
    /// Jiffies, low 32 bits: what flows and buckets are stamped with.
    #[inline(always)]
    fn now(&self) -> u32 {
        self.jiffies() as u32
    }
    /// Told of the gateway that the stack is to resolve before a packet leaves; for the tc home.
    fn resolve(&self, gateway: &Addr);
    /// Takes a token; false if the budget is spent.
    fn take(&self, budget: Budget, rate: u32, burst: u32) -> bool;
    /// Counts a packet from a client forwarded to a backend.
    fn count_forwarded(&self, frontend: u32, backend: u32, bytes: u32, new_flow: bool);
    /// Counts a packet from a backend forwarded to its client.
    fn count_reply(&self, frontend: u32);
    fn count_reason(&self, frontend: u32, reason: Reason);
    /// Told of each decision; the kernel has no use for it.
    #[inline(always)]
    fn trace(&self, _step: Step) {}
}
