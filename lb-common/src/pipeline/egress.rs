//! The way out: next hop, link header, verdict.

use super::{
    FamilyScratch, Path, Step, Verdict,
    parse::{ETH, Layout},
    tags,
};
use crate::{
    abi::{Backend, Hop, NextHop, Reason, Segment},
    bytes::{Addr, Address as _, Macs, V4, V6},
    packet::Packet,
    tables::{FamilyTables, Home, Route, Tables},
};

/// Where a packet leaves. Aligned, and in this order, for the double words that LLVM copies by: on its stack the kernel
/// insists.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C, align(8))]
pub(crate) struct Exit {
    pub(crate) gateway: Addr,
    /// MACs are unset where the neighbour table of the stack will fill them in (tc).
    pub(crate) hop: Hop,
    /// In bytes, without the link header.
    pub(crate) mtu: u32,
}

/// Whether the packet still fits its way when it is longer by `room` bytes. What reaches tc was seen to fit in the driver,
/// and may be several packets in one by now.
#[inline(always)]
pub(crate) fn has_room<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
    room: u32,
) -> bool {
    path.tables.home() != Home::Xdp || u32::from(scratch.parsed.length) + room <= scratch.exit.mtu
}

/// Sets `scratch.exit` to the way to a backend: the agent's next-hop table, else the kernel's routes. In XDP a way that
/// it cannot go is [`Reason::HandedUp`]: the packet, still unchanged, goes up to the tc program.
#[inline(always)]
pub(crate) fn to_backend<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    backend: &Backend,
) -> Result<(), Reason> {
    if backend.next_hop != 0 {
        let next = path
            .tables
            .next_hop(backend.next_hop)
            .ok_or(Reason::Inconsistent)?;
        let usable = NextHop::RESOLVED | NextHop::XDP_SEND;
        let destination = next.destination;
        if path.tables.home() == Home::Xdp && destination & usable != usable {
            return Err(Reason::HandedUp);
        }
        scratch.exit.hop = Hop {
            segment: next.segment,
            macs: Macs::from_words(destination, next.source),
        };
        scratch.exit.mtu = u32::from(next.mtu());
        // Sixteen bytes that only the stack's neighbour table is asked about.
        if path.tables.home() == Home::Tc {
            scratch.exit.gateway = next.gateway;
        }
    } else {
        let (source, to) = (&backend.source, &backend.address);
        let from = path.arrival(packet, scratch.parsed.link.length);
        let route = if to.is_v4() {
            let (source, to) = (V4::from_addr(source), V4::from_addr(to));
            path.tables.route(from, source, to)
        } else {
            let (source, to) = (V6::from_addr(source), V6::from_addr(to));
            path.tables.route(from, source, to)
        };
        if !by_route(path, &mut scratch.exit, &route)? {
            return Err(Reason::NoRoute);
        }
    }
    Ok(())
}

/// [`to_backend`] as a function of its own, where stack matters more than a call.
#[inline(never)]
pub(crate) fn to_backend_by_call<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    backend: &Backend,
) -> u64 {
    to_backend(packet, path, scratch, backend).map_or_else(|reason| reason as u64, |()| OK)
}

/// The word that says "no reason".
pub(crate) const OK: u64 = u64::MAX;

/// Sets `exit` to the way that a route names; false where the kernel does not say.
#[inline(always)]
pub(crate) fn by_route<T: Tables>(
    path: &Path<'_, T>,
    exit: &mut Exit,
    route: &Route,
) -> Result<bool, Reason> {
    match *route {
        Route::Hop { hop, mtu, gateway } => {
            *exit = Exit {
                hop,
                gateway,
                mtu: u32::from(mtu),
            };
            Ok(true)
        }
        Route::Neighbour { ifindex, gateway } => {
            if path.tables.home() == Home::Xdp {
                return Err(Reason::HandedUp);
            }
            *exit = Exit {
                hop: Hop {
                    segment: Segment { ifindex, tags: 0 },
                    ..Hop::default()
                },
                gateway,
                mtu: u32::MAX,
            };
            Ok(true)
        }
        Route::None => Err(Reason::NoRoute),
        Route::Unknown => Ok(false),
    }
}

/// Writes the link header and gives the verdict; the rest of the packet is ready.
#[inline(always)]
pub(crate) fn send<A, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
) -> Verdict {
    let (link, exit) = (scratch.parsed.link.length, &scratch.exit);
    let Segment { ifindex, tags } = exit.hop.segment;
    if path.tables.home() == Home::Tc {
        return by_stack(path, exit);
    }
    path.tables.trace(Step::NextHop {
        ifindex,
        tags,
        mac: Some(exit.hop.macs.destination()),
    });
    if link != ETH || tags != 0 {
        let changed = tags::change(packet, link, tags);
        if changed != OK {
            return path.end(0, Reason::from_number(changed as u32));
        }
    }
    if !packet.write(0, exit.hop.macs.as_header()) {
        return path.end(0, Reason::NoHeadroom);
    }
    if ifindex == packet.ingress() {
        Verdict::Transmit
    } else {
        Verdict::Redirect { ifindex }
    }
}

/// The stack has an interface for each segment that it knows, and takes care of the tags there.
#[inline(always)]
fn by_stack<T: Tables>(path: &Path<'_, T>, exit: &Exit) -> Verdict {
    let segment = &exit.hop.segment;
    let mut ifindex = segment.ifindex;
    if segment.tags != 0 {
        ifindex = path.tables.interface(segment);
        if ifindex == segment.ifindex {
            return path.end(0, Reason::NoRoute);
        }
    }
    path.tables.trace(Step::NextHop {
        ifindex,
        tags: 0,
        mac: None,
    });
    path.tables.resolve(&exit.gateway);
    Verdict::Neighbour { ifindex }
}
