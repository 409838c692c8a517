//! Backends of this node, as other nodes name them.

use crate::bytes::{Address, Be16};

/// Key of `TARGETS4` (12 bytes) and `TARGETS6` (24 bytes); the value is the backend's id. Who
/// holds an entry while it is removed may read another's id, whose backend has another address or port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct TargetKey<A> {
    pub address: A,
    /// Index into `SERVICES`: a node takes packets only for a VIP that the backend belongs to.
    pub service: u32,
    pub port: Be16,
    pub pad: u16,
}

impl<A: Address> TargetKey<A> {
    #[inline(always)]
    pub const fn new(service: u32, address: A, port: Be16) -> Self {
        Self {
            address,
            service,
            port,
            pad: 0,
        }
    }
}

const _: () = assert!(size_of::<TargetKey<crate::bytes::V4>>() == 12);
const _: () = assert!(size_of::<TargetKey<crate::bytes::V6>>() == 24);
