//! Room for what is too large for the kernel's stack of 512 bytes: per CPU there, a local on the host.

use crate::{
    abi::{Flow, Tuple},
    bytes::{V4, V6},
};

/// Values of one packet's way through the flow tables.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct FamilyScratch<A> {
    /// The packet's own flow entry.
    pub(crate) flow: Flow<A>,
    /// The other direction's.
    pub(crate) opposite: Flow<A>,
    /// Key of the other direction's entry.
    pub(crate) key: Tuple<A>,
}

/// Element of the per-CPU array `SCRATCH`. Holds nothing between packets.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Scratch {
    pub v4: FamilyScratch<V4>,
    pub v6: FamilyScratch<V6>,
}
