//! The way out: next hop, link header, verdict.

use super::{
    Path, Step, Verdict,
    parse::{ETH, Layout, Parsed},
};
use crate::{
    abi::{Backend, Hop, NextHop, Reason},
    bytes::{Addr, Address},
    packet::Packet,
    tables::{FamilyTables, Home, Route, Tables},
};

/// Where a packet leaves.
#[derive(Clone, Copy)]
pub(crate) struct Exit {
    /// MACs are unset where the neighbour table of the stack will fill them in (tc).
    pub(crate) hop: Hop,
    pub(crate) gateway: Addr,
    pub(crate) mtu: u16,
}

/// The way to a backend: the agent's next-hop table, else the kernel's routes. In XDP a way that it cannot go is
/// [`Reason::HandedUp`]: the packet, still unchanged, goes up to the tc program.
#[inline(always)]
pub(crate) fn to_backend<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    backend: &Backend,
) -> Result<Exit, Reason> {
    if backend.next_hop != 0 {
        let next = path
            .tables
            .next_hop(backend.next_hop)
            .ok_or(Reason::Inconsistent)?;
        let usable = NextHop::RESOLVED | NextHop::XDP_SEND;
        let known = next.destination & usable == usable;
        if path.tables.home() == Home::Xdp && !known {
            return Err(Reason::HandedUp);
        }
        let exit = Exit {
            hop: hop(&next),
            gateway: next.gateway,
            mtu: next.mtu(),
        };
        return leave(packet, path, parsed.link.length, exit);
    }
    let route = if backend.address.is_v4() {
        let (source, to) = (
            Address::from_addr(&backend.source),
            Address::from_addr(&backend.address),
        );
        FamilyTables::<crate::bytes::V4>::route(path.tables, source, to)
    } else {
        let (source, to) = (
            Address::from_addr(&backend.source),
            Address::from_addr(&backend.address),
        );
        FamilyTables::<crate::bytes::V6>::route(path.tables, source, to)
    };
    by_route(packet, path, parsed.link.length, route)?.ok_or(Reason::NoRoute)
}

/// The way that a route names; `None` where the kernel does not say.
#[inline(always)]
pub(crate) fn by_route<P: Packet, T: Tables>(
    packet: &P,
    path: &Path<'_, T>,
    link: u32,
    route: Route,
) -> Result<Option<Exit>, Reason> {
    match route {
        Route::Hop { hop, mtu, gateway } => {
            leave(packet, path, link, Exit { hop, gateway, mtu }).map(Some)
        }
        Route::Neighbour { ifindex, gateway } => {
            if path.tables.home() == Home::Xdp {
                return Err(Reason::HandedUp);
            }
            let hop = Hop {
                ifindex,
                ..Hop::default()
            };
            Ok(Some(Exit {
                hop,
                gateway,
                mtu: u16::MAX,
            }))
        }
        Route::None => Err(Reason::NoRoute),
        Route::Unknown => Ok(None),
    }
}

/// A tagged frame that would leave by another interface goes up: the stack takes its tags off.
#[inline(always)]
pub(crate) fn leave<P: Packet, T: Tables>(
    packet: &P,
    path: &Path<'_, T>,
    link: u32,
    exit: Exit,
) -> Result<Exit, Reason> {
    if path.tables.home() == Home::Xdp && link != ETH && exit.hop.ifindex != packet.ingress() {
        return Err(Reason::HandedUp);
    }
    Ok(exit)
}

#[inline(always)]
fn hop(next: &NextHop) -> Hop {
    let to = next.destination.to_le_bytes();
    let from = next.source.to_le_bytes();
    Hop {
        ifindex: next.ifindex,
        destination: [to[0], to[1], to[2], to[3], to[4], to[5]],
        source: [from[0], from[1], from[2], from[3], from[4], from[5]],
    }
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
        mac: Some(exit.hop.destination),
    });
    if !packet.write(0, &exit.hop.destination) || !packet.write(6, &exit.hop.source) {
        return path.end(0, Reason::NoHeadroom);
    }
    if ifindex == packet.ingress() {
        Verdict::Transmit
    } else {
        Verdict::Redirect { ifindex }
    }
}
