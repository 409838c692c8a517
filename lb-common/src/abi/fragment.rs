//! Fragments: what the later ones of a datagram, which have no ports, need to follow their first.

use super::flow::Flow;

/// Key of `FRAGMENTS4` (16 bytes) and `FRAGMENTS6` (40 bytes): what a datagram's fragments have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(C)]
pub struct FragmentKey<A> {
    pub source: A,
    pub destination: A,
    /// Identification, as it lies in the packet.
    pub id: u32,
    /// IP protocol number in IPv4 (RFC 791, section 2.3); 0 in IPv6, where fragments of one datagram may differ in it
    /// (RFC 8200, section 4.5).
    pub protocol: u8,
    pub pad: [u8; 3],
}

/// Value of the fragment tables: 68 bytes (IPv4), 92 (IPv6).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Fragment<A> {
    /// The first fragment's way: addresses to leave with, backend, frontend. Backend 0: it was handed up, and the tc
    /// program decides. `seen` is when the first came.
    pub flow: Flow<A>,
    /// Where the first's payload ends, in bytes of the datagram's.
    pub end: u32,
    /// High half of the flow's hash: the label of an IPv6 tunnel.
    pub label: u32,
}

impl<A> Fragment<A> {
    /// Seconds after which a first fragment is forgotten: Linux's time for reassembly.
    pub const SECONDS: u32 = 30;
}

const _: () = assert!(size_of::<FragmentKey<crate::bytes::V4>>() == 16);
const _: () = assert!(size_of::<FragmentKey<crate::bytes::V6>>() == 40);
const _: () = assert!(size_of::<Fragment<crate::bytes::V4>>() == 68);
const _: () = assert!(size_of::<Fragment<crate::bytes::V6>>() == 92);
