//! Backends: where a flow goes and how.

use crate::bytes::{Addr, Be16};

/// Element of `BACKENDS`, 64 bytes. Everything but `next_hop` and `state` is written while no `MEMBERS` word names
/// the id, and an id is given again only after a grace period; `next_hop` and `state` are stores of one word.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Backend {
    /// Where packets are sent: the backend's own address; in `dsr` its node's, the destination of the outer header.
    pub address: Addr,
    /// Own address: source of the translated packet (`nat`, family of the backend) or of the outer header (`ipip`, `dsr`).
    pub source: Addr,
    /// In `dsr` the backend's own address, which its node is told.
    pub target: Addr,
    /// Destination port after translation (`nat`, `local`), here or on the backend's node (`dsr`).
    pub port: Be16,
    /// A [`Mode`] as number.
    pub mode: u8,
    pub pad: u8,
    /// Counts the uses of this id: a flow that remembers another generation belongs to a backend that is gone.
    pub generation: u32,
    /// Index into `NEXT_HOPS`; 0: ask `bpf_fib_lookup`.
    pub next_hop: u32,
    /// One of [`backend_state`].
    pub state: u32,
}

/// Values of [`Backend::state`]. TCP flows stay with their backend in each of them.
pub mod backend_state {
    /// Gone, or does not serve: UDP flows leave it (contract A7.1).
    pub const DOWN: u32 = 0;
    /// Gets new flows.
    pub const USABLE: u32 = 1;
    /// Serves the flows that it has, and gets no new ones.
    pub const DRAINING: u32 = 2;
    /// Its node has no agent that is ready: it keeps the flows that it has, and kube-proxy gets the new ones (`dsr`).
    pub const AWAY: u32 = 3;
}

/// How a packet reaches its backend (design.md section 3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Mode {
    Nat = 1,
    Ipip = 2,
    L2 = 3,
    /// The backend is on this node: its stack delivers, and the reply gets the VIP as source on its way out.
    Local = 4,
    /// Whoever serves the VIP behind us, kube-proxy, gets the packet unchanged.
    Pass = 5,
    /// The backend's node does what it does for one of its own (`local`): the packet goes there in a tunnel, unchanged.
    Dsr = 6,
}

impl Mode {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Ipip => "ipip",
            Self::L2 => "l2",
            Self::Local => "local",
            Self::Pass => "pass",
            Self::Dsr => "dsr",
        }
    }
}

const _: () = assert!(size_of::<Backend>() == 64);
