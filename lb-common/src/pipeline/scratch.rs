//! What is known of the packet at hand: too large for the kernel's stack of 512 bytes, so per CPU there, a local on the
//! host. Each step reads what the ones before it have written.

use super::{egress::Exit, icmp::Embedded, parse::Parsed, steer::Chosen, tunnel::Envelope};
use crate::{
    abi::{Flow, Fragment, FragmentKey, Frontend, Service, Tuple},
    bytes::{V4, V6},
};

/// The packet of one family.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct FamilyScratch<A> {
    pub(crate) parsed: Parsed<A>,
    pub(crate) frontend: Frontend,
    pub(crate) service: Service,
    /// Why the client is to be answered: a [`crate::abi::Reason`] as number.
    pub(crate) refusal: u32,
    /// Where it leaves.
    pub(crate) exit: Exit,
    /// Its flow entry.
    pub(crate) flow: Flow<A>,
    /// The other direction's, and its key.
    pub(crate) opposite: Flow<A>,
    pub(crate) key: Tuple<A>,
    /// The owner of a packet whose way is found in more than one step.
    pub(crate) chosen: Chosen,
    /// Of a fragment: its datagram, and what is known or to be known of the first.
    pub(crate) datagram: FragmentKey<A>,
    pub(crate) fragment: Fragment<A>,
    /// Of an ICMP error: the packet that it is about.
    pub(crate) embedded: Embedded<A>,
    /// Of a packet that is to be sent through a tunnel: what its tuple was read from.
    pub(crate) kind: u32,
    /// Of a packet that is too big: what would fit, in bytes without the link header.
    pub(crate) fits: u32,
    /// Of a SYN: where in its TCP header the option stands that is looked at.
    pub(crate) option: u32,
}

/// Element of the per-CPU array `SCRATCH`. Holds nothing between packets.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Scratch {
    pub v4: FamilyScratch<V4>,
    pub v6: FamilyScratch<V6>,
    /// Of a packet that came through a tunnel.
    pub(crate) envelope: Envelope,
}
