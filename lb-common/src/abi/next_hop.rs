//! Next hops: the link-layer way to a gateway or neighbour, kept by the agent from netlink.

use super::segment::Segment;
use crate::bytes::{Addr, Mac};

/// Element of `NEXT_HOPS`, 40 bytes. Identity (segment, gateway, own MAC, MTU) is written before the id is named
/// by a backend; `destination`, which changes when the neighbour does, is one word. Id 0 is never used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C, align(8))]
pub struct NextHop {
    /// Bytes 0–5: the neighbour's MAC. Bits 48–63: [`NextHop::RESOLVED`], [`NextHop::XDP_SEND`].
    pub destination: u64,
    /// Bytes 0–5: the interface's own MAC. Bits 48–63: MTU of the route in bytes, without the Ethernet header.
    pub source: u64,
    /// Where XDP sends: for a VLAN, the device below and its tags.
    pub segment: Segment,
    /// What to resolve when the neighbour is unknown: the gateway, or the destination itself on link.
    pub gateway: Addr,
}

impl NextHop {
    /// The neighbour's MAC is known.
    pub const RESOLVED: u64 = 1 << 48;
    /// XDP can send on this device.
    pub const XDP_SEND: u64 = 1 << 49;

    pub const fn destination_word(mac: Mac, flags: u64) -> u64 {
        mac_word(mac) | flags
    }

    pub const fn source_word(mac: Mac, mtu: u16) -> u64 {
        mac_word(mac) | (mtu as u64) << 48
    }

    #[inline(always)]
    pub const fn mtu(&self) -> u16 {
        (self.source >> 48) as u16
    }
}

const fn mac_word(mac: Mac) -> u64 {
    u64::from_le_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0])
}

const _: () = assert!(size_of::<NextHop>() == 40);
