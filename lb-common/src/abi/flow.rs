//! Flows: what `nat` and `local` have to remember. Each flow has two entries in the same table, keyed by the tuple that
//! arrives: the client's packet (client → VIP) and the backend's reply (backend → own address). Either is rebuilt from
//! the other.

use super::segment::Segment;
use crate::bytes::{Be16, Macs};

/// Key of `FLOWS4`, `HALF_OPEN4` (16 bytes) and `FLOWS6`, `HALF_OPEN6` (40 bytes): a packet's addresses and ports as
/// they arrive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(C)]
pub struct Tuple<A> {
    pub source: A,
    pub destination: A,
    pub source_port: Be16,
    pub destination_port: Be16,
    pub protocol: u8,
    pub pad: [u8; 3],
}

impl<A: Copy> Tuple<A> {
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            pad: [0; 3],
        }
    }
}

/// The link-layer header a flow's packets leave with, as last resolved.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Hop {
    pub segment: Segment,
    pub macs: Macs,
}

/// Value of the flow tables: 60 bytes (IPv4), 84 (IPv6).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Flow<A> {
    /// The tuple with which the packet leaves.
    pub source: A,
    pub destination: A,
    pub source_port: Be16,
    pub destination_port: Be16,
    pub hop: Hop,
    /// Id in `BACKENDS`, and its generation when the flow began.
    pub backend: u32,
    pub generation: u32,
    /// Id of the frontend, for its counters.
    pub frontend: u32,
    /// Jiffies (low 32 bits) of a recent packet, at a granularity of a quarter second.
    pub seen: u32,
    /// Jiffies of the last next-hop look-up.
    pub resolved: u32,
    /// Sequence number of the backend's SYN-ACK, host order; in the reply's entry of a half-open flow.
    pub isn: u32,
    /// Bits of [`flow_state`].
    pub state: u32,
}

/// Bits of [`Flow::state`].
pub mod flow_state {
    /// The entry is for packets from the backend.
    pub const REPLY: u32 = 1;
    /// The backend has answered: with a SYN-ACK (its number is `isn`), or by UDP.
    pub const REPLIED: u32 = 1 << 1;
    /// The backend answered as one that knows the connection: no SYN-ACK, no RST.
    pub const ANSWERED: u32 = 1 << 2;
    /// A FIN was seen in this direction.
    pub const FIN: u32 = 1 << 3;
    /// A FIN was seen in the other direction.
    pub const PEER_FIN: u32 = 1 << 4;
    /// A RST was seen in either direction.
    pub const RST: u32 = 1 << 5;
    /// The kernel does not say how to reach the client: replies go to where its packets come from.
    pub const LAST_HOP: u32 = 1 << 6;
    /// The backend is on this node: packets go on through the stack.
    pub const LOCAL: u32 = 1 << 7;
    /// Left to kube-proxy, as long as it lives.
    pub const PASSED: u32 = 1 << 8;
    /// Sent through a tunnel to its backend's node, as long as it lives: UDP, and connections that the table leads elsewhere.
    pub const SENT: u32 = 1 << 9;
}

impl<A: Copy> Flow<A> {
    /// Closed in both directions: a new SYN may begin another flow.
    #[inline(always)]
    pub const fn is_dead(&self) -> bool {
        use flow_state::{FIN, PEER_FIN, RST};
        self.state & RST != 0 || self.state & (FIN | PEER_FIN) == FIN | PEER_FIN
    }

    /// The tuple with which the packet leaves.
    #[inline(always)]
    pub const fn leaving(&self, protocol: u8) -> Tuple<A> {
        self.opposite(protocol).reversed()
    }

    /// The tuple of packets in the other direction.
    #[inline(always)]
    pub const fn opposite(&self, protocol: u8) -> Tuple<A> {
        Tuple {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol,
            pad: [0; 3],
        }
    }
}

const _: () = assert!(size_of::<Tuple<crate::bytes::V4>>() == 16);
const _: () = assert!(size_of::<Tuple<crate::bytes::V6>>() == 40);
const _: () = assert!(size_of::<Flow<crate::bytes::V4>>() == 60);
const _: () = assert!(size_of::<Flow<crate::bytes::V6>>() == 84);
const _: () = assert!(size_of::<Hop>() == 20);
