//! Fragments (RFC 791, section 2.3; RFC 8200, section 4.5). A first fragment goes by its ports, as a whole packet does,
//! and is remembered; the later ones, which have none, follow it. One whose first is not known is dropped: whatever it
//! would be chosen by, it might part from its datagram. What reassembly is, is the backend's affair: of overlaps, only
//! those with the first fragment, which chose the way, are seen here (RFC 1858, RFC 3128, RFC 5722).

use super::{
    FamilyScratch, Path, Step, Verdict, classify, egress, elsewhere, flows, local, nat,
    parse::{self, Layout, Network, Parsed, Piece, TCP, UDP},
    rewrite,
    steer::{CHOSEN, Chosen, STEER},
};
use crate::{
    abi::{Backend, Flow, Fragment, FragmentKey, Mode, Reason, Tuple, flow_state},
    bytes::Be16,
    packet::Packet,
    tables::{Budget, FamilyTables, FlowTable, Home, Tables},
};

/// Beside the words of [`classify`]: the tuple is known, and the fragment is to be remembered.
pub(crate) const FIRST: u64 = 12 << 24;
/// For [`follow`].
pub(crate) const FOLLOW: u64 = 13 << 24;

/// Reads a fragment, and finds the first one that a later one follows.
#[inline(never)]
pub(crate) fn arrive<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let Some(network) = A::network(packet, scratch.parsed.link.length) else {
        return Verdict::NotOurs.pack();
    };
    let read = read(packet, &network, scratch).and_then(|piece| {
        if piece.offset == 0 {
            first(packet, &network, &piece, scratch)
        } else {
            later(path, &piece, scratch)
        }
    });
    read.unwrap_or_else(|reason| classify::unread(path, &network, reason))
}

/// Place and datagram of the fragment, and `scratch.parsed` as far as it is known without ports.
#[inline(always)]
pub(crate) fn read<A: Layout, P: Packet>(
    packet: &P,
    network: &Network<A>,
    scratch: &mut FamilyScratch<A>,
) -> Result<Piece, Reason> {
    let piece = A::piece(packet, network)?;
    let end = network.start + u32::from(network.length);
    if piece.at >= end || end > packet.length() {
        return Err(Reason::Malformed);
    }
    let payload = end - piece.at;
    // RFC 791, section 3.2; RFC 8200, section 4.5.
    if piece.more && payload & 7 != 0 || piece.offset + payload > 65_535 {
        return Err(Reason::Malformed);
    }
    scratch.fragment.end = payload;
    scratch.datagram = FragmentKey {
        source: network.source,
        destination: network.destination,
        id: piece.id,
        protocol: if A::VERSION == 4 { piece.next } else { 0 },
        pad: [0; 3],
    };
    scratch.parsed = Parsed {
        link: scratch.parsed.link,
        l4: piece.at,
        tuple: Tuple {
            source: network.source,
            destination: network.destination,
            source_port: Be16::new(0),
            destination_port: Be16::new(0),
            protocol: piece.next,
            pad: [0; 3],
        },
        length: network.length,
        ttl: network.ttl,
        tos: network.tos,
        flags: 0,
        sequence: 0,
        acknowledged: 0,
    };
    Ok(piece)
}

/// One that has the ports; in IPv6 it may be the only one (RFC 6946).
#[inline(always)]
pub(crate) fn first<A: Layout, P: Packet>(
    packet: &P,
    network: &Network<A>,
    piece: &Piece,
    scratch: &mut FamilyScratch<A>,
) -> Result<u64, Reason> {
    let (protocol, l4) = A::behind(packet, piece)?;
    transported::<A>(protocol)?;
    // RFC 7112: all headers are in the first fragment.
    parse::transport(packet, network, protocol, l4, &mut scratch.parsed)
        .map_err(|_| Reason::FragmentTiny)?;
    Ok(if piece.more { FIRST } else { STEER })
}

/// Only TCP and UDP are balanced.
#[inline(always)]
fn transported<A: Layout>(protocol: u8) -> Result<(), Reason> {
    match protocol {
        TCP | UDP => Ok(()),
        protocol if protocol == A::ICMP => Err(Reason::IcmpType),
        _ => Err(Reason::Protocol),
    }
}

#[inline(always)]
fn later<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    piece: &Piece,
    scratch: &mut FamilyScratch<A>,
) -> Result<u64, Reason> {
    if A::VERSION == 4 || !parse::is_extension(piece.next) {
        transported::<A>(piece.next)?;
    }
    let known = &mut scratch.fragment;
    path.tables
        .with_fragment(&scratch.datagram, |first| *known = *first)
        .ok_or(Reason::FragmentUnknown)?;
    let age = path.tables.now().wrapping_sub(known.flow.seen);
    if age > path.settings.hz.saturating_mul(Fragment::<A>::SECONDS) {
        return Err(Reason::FragmentUnknown);
    }
    let frontend = known.flow.frontend;
    let state = known.flow.state;
    if state & flow_state::PASSED != 0 {
        return Ok(elsewhere::leave(path, frontend, Reason::Pass));
    }
    if state & local::ANSWER == local::ANSWER {
        // Of a datagram that left.
        return Err(Reason::FragmentUnknown);
    }
    if known.flow.backend == 0 {
        return match path.tables.home() {
            Home::Xdp => Ok(path.end(frontend, Reason::HandedUp).pack()),
            Home::Tc => Err(Reason::FragmentUnknown),
        };
    }
    if piece.offset < known.end {
        return Ok(path.end(frontend, Reason::FragmentOverlap).pack());
    }
    path.tables.trace(Step::Follows);
    scratch.frontend.id = frontend;
    scratch.flow = known.flow;
    let (id, generation) = (known.flow.backend, known.flow.generation);
    scratch.chosen = Chosen::new(u64::from(known.label) << 32, id);
    if state & local::ANSWER != 0 {
        return Ok(FOLLOW);
    }
    let translated = match path.tables.backend(id) {
        Some(backend) if backend.generation == generation => backend.mode == Mode::Nat as u8,
        // A flow of `nat` outlives its backend's place in the configuration.
        _ if known.flow.destination != scratch.parsed.tuple.destination => true,
        _ => return Err(Reason::FragmentUnknown),
    };
    Ok(if translated { FOLLOW } else { CHOSEN })
}

/// Sets `scratch.flow` to the way of a packet that keeps its addresses, for [`remember`].
#[inline(always)]
pub(crate) fn keep_addresses<A: Layout>(
    scratch: &mut FamilyScratch<A>,
    backend: &Backend,
    id: u32,
) {
    scratch.flow = Flow {
        source: scratch.parsed.tuple.source,
        destination: scratch.parsed.tuple.destination,
        backend: id,
        generation: backend.generation,
        frontend: scratch.frontend.id,
        ..scratch.flow
    };
    scratch.flow.state = 0;
}

/// Whether the first fragment of a backend's reply belongs to a flow, and may be remembered: [`egress::OK`] if so.
#[inline(never)]
pub(crate) fn admit_reply<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let found = flows::peek(path, scratch);
    if found.is_none() || scratch.flow.state & flow_state::REPLY == 0 {
        return Verdict::NotOurs.pack();
    }
    let settings = path.settings;
    let (rate, burst) = (settings.fragment_rate, settings.fragment_burst);
    if path.tables.take(Budget::Fragment, rate, burst) {
        egress::OK
    } else {
        path.end(scratch.flow.frontend, Reason::FragmentLimited)
            .pack()
    }
}

/// Remembers a first fragment that was sent or handed up, as `word`, a packed verdict, says.
#[inline(never)]
pub(crate) fn remember<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    word: u64,
) -> u64 {
    let now = path.tables.now();
    let first = &mut scratch.fragment;
    match Verdict::unpack(word) {
        Verdict::Transmit | Verdict::Redirect { .. } => {
            first.flow = scratch.flow;
            first.flow.hop = scratch.exit.hop;
            first.flow.resolved = now;
        }
        Verdict::Neighbour { .. } | Verdict::Rewritten => first.flow = scratch.flow,
        // A datagram goes one way, whole. Without a frontend nobody has asked for a token.
        Verdict::Pass(Reason::Pass | Reason::NoFlow) if scratch.frontend.id != 0 => {
            first.flow = scratch.flow;
            first.flow.frontend = scratch.frontend.id;
            first.flow.state = flow_state::PASSED;
        }
        // The tc program may see this one later than the driver sees the next.
        Verdict::Pass(Reason::HandedUp) => {
            first.flow = scratch.flow;
            first.flow.backend = 0;
            first.flow.state = 0;
            first.flow.frontend = scratch.frontend.id;
        }
        _ => return word,
    }
    first.flow.seen = now;
    first.label = (scratch.chosen.hash >> 32) as u32;
    path.tables.remember_fragment(&scratch.datagram, first);
    word
}

/// Sends a later fragment of a datagram under `nat` or `local`: addresses as its first's, and no ports to touch.
#[inline(never)]
pub(crate) fn follow<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let (frontend, bytes) = (scratch.frontend.id, packet.length());
    let local = scratch.flow.state & flow_state::LOCAL != 0;
    if !local && scratch.parsed.ttl <= 1 {
        return path.end(frontend, Reason::TtlExpired).pack();
    }
    let reply = scratch.flow.state & flow_state::REPLY != 0;
    let (way, id) = if local {
        (egress::OK, local::backend_of(path, &scratch.flow))
    } else if reply {
        (
            flows::way_back(packet, path, FlowTable::Established, scratch),
            0,
        )
    } else {
        nat::way(packet, path, scratch)
    };
    if way != egress::OK {
        return path.end(frontend, Reason::from_number(way as u32)).pack();
    }
    let (parsed, flow) = (&scratch.parsed, &scratch.flow);
    let new = (flow.source, flow.destination);
    path.tables.trace(Step::Rewrite {
        source: new.0.to_addr(),
        source_port: flow.source_port,
        destination: new.1.to_addr(),
        destination_port: flow.destination_port,
    });
    let delta = rewrite::addresses((parsed.tuple.source, parsed.tuple.destination), new);
    // The stack takes the hop where it delivers.
    let ttl = parsed.ttl - u8::from(!local);
    if !rewrite::network(packet, parsed.link.length, ttl, new, delta) {
        return path.end(frontend, Reason::NoHeadroom).pack();
    }
    if reply {
        path.tables.count_reply(frontend);
    } else {
        path.tables.count_forwarded(frontend, id, bytes, false);
    }
    if local {
        return Verdict::Rewritten.pack();
    }
    egress::send(packet, path, scratch).pack()
}
