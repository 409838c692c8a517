//! Frontends: which packets are ours. Entries are immutable (inserted and deleted, never updated): a hash map's
//! value updated in place can be seen torn, or as another key's (measured, design.md "Publishing").

use crate::bytes::{Address, Be16};

/// Key of `FRONTENDS4` (8 bytes) and `FRONTENDS6` (20 bytes). Protocol 0 with port 0 marks the address itself as
/// a VIP, so that its unknown ports are rejected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct FrontendKey<A> {
    pub address: A,
    pub port: Be16,
    /// IP protocol number: 6 or 17; 0 in the address's own entry.
    pub protocol: u8,
    pub pad: u8,
}

impl<A: Address> FrontendKey<A> {
    #[inline(always)]
    pub const fn new(address: A, port: Be16, protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            pad: 0,
        }
    }

    /// The entry that says "this address is a VIP".
    #[inline(always)]
    pub const fn vip(address: A) -> Self {
        Self::new(address, Be16::new(0), 0)
    }
}

/// Value of `FRONTENDS4` and `FRONTENDS6`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C, align(8))]
pub struct Frontend {
    /// Index into `SERVICES`. Unused (0) in a VIP's own entry.
    pub service: u32,
    /// Index into `FRONTEND_STATS`, and times [`super::Reason::COUNT`] into `REASONS`. 0 stands for "no frontend".
    pub id: u32,
}

/// Key of `SOURCES4` and `SOURCES6` behind the trie's own prefix length: 32 bits of service, then the client.
/// A prefix of the client's address is `32 + length` bits long.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct SourceKey<A> {
    /// Index into `SERVICES`, big-endian so that tries sort as people read.
    pub service_be: u32,
    pub client: A,
}

const _: () = assert!(size_of::<FrontendKey<crate::bytes::V4>>() == 8);
const _: () = assert!(size_of::<FrontendKey<crate::bytes::V6>>() == 20);
const _: () = assert!(size_of::<Frontend>() == 8);
const _: () = assert!(size_of::<SourceKey<crate::bytes::V4>>() == 8);
const _: () = assert!(size_of::<SourceKey<crate::bytes::V6>>() == 20);
