//! The way out: next hop, link header, verdict.

use super::{
    FamilyScratch, Path, Step, Verdict,
    parse::{ETH, Layout},
};
use crate::{
    abi::{Backend, Hop, NextHop, Reason},
    bytes::{Addr, Address as _, Macs, V4, V6},
    packet::Packet,
    tables::{FamilyTables, Home, Route, Tables},
};

/// Where a packet leaves.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct Exit {
    /// MACs are unset where the neighbour table of the stack will fill them in (tc).
    pub(crate) hop: Hop,
    pub(crate) gateway: Addr,
    /// In bytes, without the link header.
    pub(crate) mtu: u32,
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
            ifindex: next.ifindex,
            macs: Macs::from_words(destination, next.source),
        };
        scratch.exit.mtu = u32::from(next.mtu());
        // Sixteen bytes that only the stack's neighbour table is asked about.
        if path.tables.home() == Home::Tc {
            scratch.exit.gateway = next.gateway;
        }
    } else {
        let (source, to) = (&backend.source, &backend.address);
        let route = if to.is_v4() {
            path.tables.route(V4::from_addr(source), V4::from_addr(to))
        } else {
            path.tables.route(V6::from_addr(source), V6::from_addr(to))
        };
        if !by_route(path, &mut scratch.exit, &route)? {
            return Err(Reason::NoRoute);
        }
    }
    leave(packet, path, scratch.parsed.link.length, &scratch.exit)
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
                    ifindex,
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

/// A tagged frame that would leave by another interface goes up: the stack takes its tags off.
#[inline(always)]
pub(crate) fn leave<P: Packet, T: Tables>(
    packet: &P,
    path: &Path<'_, T>,
    link: u32,
    exit: &Exit,
) -> Result<(), Reason> {
    if path.tables.home() == Home::Xdp && link != ETH && exit.hop.ifindex != packet.ingress() {
        return Err(Reason::HandedUp);
    }
    Ok(())
}

/// Writes the link addresses and gives the verdict; the rest of the packet is ready.
#[inline(always)]
pub(crate) fn send<P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    exit: &Exit,
) -> Verdict {
    let ifindex = exit.hop.ifindex;
    if path.tables.home() == Home::Tc {
        path.tables.trace(Step::NextHop { ifindex, mac: None });
        path.tables.resolve(&exit.gateway);
        return Verdict::Neighbour { ifindex };
    }
    path.tables.trace(Step::NextHop {
        ifindex,
        mac: Some(exit.hop.macs.destination()),
    });
    if !packet.write(0, exit.hop.macs.as_header()) {
        return path.end(0, Reason::NoHeadroom);
    }
    if ifindex == packet.ingress() {
        Verdict::Transmit
    } else {
        Verdict::Redirect { ifindex }
    }
}
