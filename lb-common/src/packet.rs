//! The frame as the pipeline sees it.
#![expect(
    unsafe_code,
    reason = "the marker of plain header types is an unsafe trait"
)]

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
    vlan::VlanHdr,
};

use crate::checksum::Delta;

/// Highest offset the pipeline reads at: what lies deeper is [`crate::abi::Reason::TooDeep`]. One bit mask keeps
/// every offset in the verifier's sight.
pub const MAX_OFFSET: u32 = 511;

/// A type that is nothing but its bytes: readable from any bytes, at any alignment.
///
/// # Safety
/// `repr(C)` or `repr(packed)`, integers and arrays of them only, no padding.
pub unsafe trait Header: Copy {}

// SAFETY: the headers of network-types are repr(C) without padding.
unsafe impl Header for VlanHdr {}
// SAFETY: as above.
unsafe impl Header for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Header for Ipv6Hdr {}
// SAFETY: as above.
unsafe impl Header for TcpHdr {}
// SAFETY: as above.
unsafe impl Header for UdpHdr {}
// SAFETY: integers.
unsafe impl Header for u16 {}
// SAFETY: integers.
unsafe impl Header for u32 {}
// SAFETY: arrays of integers.
unsafe impl<const N: usize> Header for [u8; N] {}
// SAFETY: arrays of integers.
unsafe impl<const N: usize> Header for [u32; N] {}
// SAFETY: arrays of integers.
unsafe impl<const N: usize> Header for [u16; N] {}

/// A network header behind its EtherType (as loaded): written at once, they cost one check of the frame's end.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Typed<H> {
    pub ether_type: u16,
    pub header: H,
}

// SAFETY: packed, and its fields are nothing but their bytes.
unsafe impl<H: Header> Header for Typed<H> {}

/// The headers of a tunnelled packet between the outer network header and the target's address, see
/// [`crate::pipeline::Verdict`]'s mode `dsr`. Words in network byte order, the tag in little-endian.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Shell {
    pub udp: [u16; 4],
    pub geneve: [u32; 2],
    pub option: u32,
    pub port: u16,
    pub key: u8,
    pub kind: u8,
    pub tag: u64,
}

// SAFETY: packed, and its fields are integers and arrays of them.
unsafe impl Header for Shell {}

/// One frame, from its Ethernet header on. Offsets count bytes from the first.
pub trait Packet {
    /// Length of the frame.
    fn length(&self) -> u32;

    /// Interface the frame came in by.
    fn ingress(&self) -> u32;

    /// A copy of the header at `offset`; `None` where the frame ends before it does.
    fn read<H: Header>(&self, offset: u32) -> Option<H>;

    /// Overwrites the header at `offset`; false where the frame ends before it does.
    #[must_use]
    fn write<H: Header>(&mut self, offset: u32, header: &H) -> bool;

    /// The outermost tag if it is no longer in the frame (the stack takes it out), as [`crate::abi::tag`] has it; else 0.
    fn stripped(&self) -> u32;

    /// Makes of a link header of `from` bytes one of `to`; the caller writes all of it. Only in the driver. False if that
    /// leaves no headroom.
    #[must_use]
    fn resize_link(&mut self, from: u32, to: u32) -> bool;

    /// Opens `room` (8, 20, 28, 40 or 48) bytes behind a link header of `link` (14, 18 or 22) bytes, which moves to the
    /// front; in the driver without its MACs and its last EtherType, which the caller writes there in any case. `outer_v6`
    /// says which header will stand there. False if the driver leaves no headroom.
    #[must_use]
    fn open(&mut self, link: u32, room: u32, outer_v6: bool) -> bool;

    /// Takes `room` bytes out behind a link header of `link` bytes, which moves to the back. At least the smallest IP header
    /// is behind them.
    #[must_use]
    fn close(&mut self, link: u32, room: u32) -> bool;

    /// Cuts the frame to `length` bytes.
    #[must_use]
    fn cut(&mut self, length: u32) -> bool;

    /// Patches the TCP or UDP checksum at `offset` for a change of addresses (pseudo-header) and of ports. A UDP
    /// checksum of zero means none and stays zero (RFC 768).
    #[must_use]
    fn patch_l4(&mut self, offset: u32, udp: bool, addresses: Delta, ports: Delta) -> bool;
}
