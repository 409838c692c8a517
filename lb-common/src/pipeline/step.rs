//! What `explain` tells: each decision, as it is taken.

use crate::{
    abi::Reason,
    bytes::{Addr, Be16},
};

/// One decision of the pipeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Frontend id and service index.
    Frontend { id: u32, service: u32 },
    /// The service has source ranges; whether the client is in one.
    Source { allowed: bool },
    /// Flow tables were asked; whether they knew the packet's tuple.
    Flow { known: bool },
    /// Index in the table of 2^`log2` slots of this generation.
    Slot {
        index: u32,
        log2: u8,
        generation: u32,
        hash: u64,
    },
    /// The slot's chain of ordinals, and the one taken.
    Owner { ordinal: u16, chain: u64 },
    /// Backend id and [`crate::abi::Mode`] as number.
    Backend { id: u32, mode: u8 },
    /// Addresses and ports of the packet as it leaves, or of its outer header (ports 0).
    Rewrite {
        source: Addr,
        source_port: Be16,
        destination: Addr,
        destination_port: Be16,
    },
    /// The device and the tags there ([`crate::abi::Segment`]), and the neighbour's MAC where it is known.
    NextHop {
        ifindex: u32,
        tags: u32,
        mac: Option<[u8; 6]>,
    },
    /// The address asked for is announced with this MAC (in the first six bytes).
    Announced { address: Addr, mac: u64 },
    /// A later fragment, whose first's way is known.
    Follows,
    /// An ICMP error about a packet with these ends.
    About {
        source: Addr,
        source_port: Be16,
        destination: Addr,
        destination_port: Be16,
    },
    /// The client is told that packets up to this many bytes fit.
    Fits { mtu: u32 },
    /// Ended for this reason.
    End(Reason),
}
