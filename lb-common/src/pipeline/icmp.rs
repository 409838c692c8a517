//! ICMP and `ICMPv6` to an address that may be ours. An error goes where the packet that it is about came from: by the
//! tuple of that packet's answers, through the same selection. Under `nat` what it embeds is translated as well
//! (RFC 5508, section 4.2).

use super::{
    FamilyScratch, Path, Step, Verdict, classify, egress, elsewhere, flows, local, nat,
    odd::Kind,
    parse::{ICMP_LEN, Layout, Network, Parsed, TCP, TCP_LEN, UDP},
    rewrite,
    steer::{CHOSEN, Chosen, STEER},
};
use crate::{
    abi::{Reason, Tuple, flow_state, service_flag},
    bytes::Be16,
    checksum::{self, Delta},
    packet::{MAX_OFFSET, Packet},
    tables::{FamilyTables, Tables},
};

/// Beside the words of [`classify`]: for [`super::echo`].
pub(crate) const ECHO: u64 = 14 << 24;
/// For [`translate`].
pub(crate) const FOUND: u64 = 15 << 24;

/// The packet that an error is about.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct Embedded<A> {
    /// Who tells.
    pub(crate) teller: A,
    /// Offsets in the frame of its network header and its transport header, and the frame's end as the outer header
    /// says.
    pub(crate) network: u32,
    pub(crate) l4: u32,
    pub(crate) end: u32,
    /// 1: tells of an MTU that no path has.
    pub(crate) forged: u32,
}

/// What an ICMP type asks for.
enum Message {
    Echo,
    /// Neighbour discovery (RFC 4861, section 4).
    Neighbour,
    Error,
    Other,
}

#[inline(always)]
const fn message(version: u8, kind: u8) -> Message {
    match (version, kind) {
        (4, 8) | (6, 128) => Message::Echo,
        (6, 133..=137) => Message::Neighbour,
        // Unreachable, time exceeded, parameter problem (RFC 792); in IPv6 too big as well (RFC 4443, section 3).
        (4, 3 | 11 | 12) | (6, 1..=4) => Message::Error,
        _ => Message::Other,
    }
}

/// Reads the message, and the tuple that leads an error to where it belongs.
#[inline(never)]
pub(crate) fn arrive<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let Some(network) = A::network(packet, scratch.parsed.link.length) else {
        return Verdict::NotOurs.pack();
    };
    let vip = classify::is_vip(path, network.destination);
    let reason = match read(packet, &network, scratch) {
        Ok(ECHO) if !vip => return Verdict::NotOurs.pack(),
        // One to an own address may be the host's.
        Ok(STEER) if vip && scratch.embedded.forged != 0 => Reason::IcmpMtu,
        Ok(word) => {
            if word == STEER {
                let tuple = &scratch.parsed.tuple;
                path.tables.trace(Step::About {
                    source: tuple.destination.to_addr(),
                    source_port: tuple.destination_port,
                    destination: tuple.source.to_addr(),
                    destination_port: tuple.source_port,
                });
            }
            return word;
        }
        Err(reason) => reason,
    };
    if vip {
        path.end(0, reason).pack()
    } else {
        Verdict::NotOurs.pack()
    }
}

#[inline(always)]
pub(crate) fn read<A: Layout, P: Packet>(
    packet: &P,
    network: &Network<A>,
    scratch: &mut FamilyScratch<A>,
) -> Result<u64, Reason> {
    let piece = A::piece(packet, network)?;
    let (l4, end) = (piece.at, network.start + u32::from(network.length));
    if l4 + ICMP_LEN > end || end > packet.length() {
        return Err(Reason::Malformed);
    }
    let head: [u32; 2] = packet.read(l4).ok_or(Reason::Malformed)?;
    scratch.parsed = Parsed {
        link: scratch.parsed.link,
        l4,
        tuple: Tuple {
            source: network.source,
            destination: network.destination,
            source_port: Be16::new(0),
            destination_port: Be16::new(0),
            protocol: A::ICMP,
            pad: [0; 3],
        },
        length: network.length,
        ttl: network.ttl,
        tos: network.tos,
        flags: 0,
        sequence: 0,
        acknowledged: 0,
    };
    let [kind, code, ..] = head[0].to_ne_bytes();
    match message(A::VERSION, kind) {
        Message::Echo => return Ok(ECHO),
        Message::Neighbour => return Err(Reason::Icmp),
        Message::Error => {}
        Message::Other => return Err(Reason::IcmpType),
    }
    let mtu = u32::from_be(head[1]);
    let forged = match (A::VERSION, kind, code) {
        (4, 3, 4) => mtu & 0xffff < A::MINIMUM_MTU,
        (6, 2, _) => mtu < A::MINIMUM_MTU,
        _ => false,
    };
    scratch.embedded = Embedded {
        teller: network.source,
        network: l4 + ICMP_LEN,
        l4: 0,
        end,
        forged: u32::from(forged),
    };
    embedded(packet, network, scratch)
}

/// Reads the embedded packet: whole headers of one that its addressee sent, or the error is none for us.
#[inline(always)]
fn embedded<A: Layout, P: Packet>(
    packet: &P,
    outer: &Network<A>,
    scratch: &mut FamilyScratch<A>,
) -> Result<u64, Reason> {
    let at = scratch.embedded.network;
    if at > MAX_OFFSET - A::HEADER {
        return Err(Reason::TooDeep);
    }
    let inner = A::network(packet, at).ok_or(Reason::IcmpMalformed)?;
    let piece = A::piece(packet, &inner).map_err(deep_or_garbage)?;
    if inner.source != outer.destination || piece.offset != 0 {
        return Err(Reason::IcmpMalformed);
    }
    let (protocol, l4) = A::behind(packet, &piece).map_err(deep_or_garbage)?;
    if l4 > MAX_OFFSET - TCP_LEN {
        return Err(Reason::TooDeep);
    }
    if protocol != TCP && protocol != UDP || l4 + 8 > scratch.embedded.end {
        return Err(Reason::IcmpMalformed);
    }
    let ports: u32 = packet.read(l4).ok_or(Reason::IcmpMalformed)?;
    scratch.embedded.l4 = l4;
    scratch.parsed.tuple = Tuple {
        source: inner.destination,
        destination: inner.source,
        source_port: Be16::from_raw((ports >> 16) as u16),
        destination_port: Be16::from_raw(ports as u16),
        protocol,
        pad: [0; 3],
    };
    Ok(STEER)
}

#[inline(always)]
fn deep_or_garbage(reason: Reason) -> Reason {
    match reason {
        Reason::TooDeep => reason,
        _ => Reason::IcmpMalformed,
    }
}

/// Finds the flow of an error's tuple, where a frontend with flow entries or none has it, and the way to its end.
#[inline(never)]
pub(crate) fn find<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let frontend = scratch.frontend.id;
    let mut found = None;
    if frontend != 0 || path.is_nat_port(scratch.parsed.tuple.destination_port) {
        found = flows::peek(path, scratch);
    }
    let reply = frontend == 0;
    let found = found.filter(|_| {
        (scratch.flow.state & flow_state::REPLY != 0) == reply
            && (reply || scratch.flow.frontend == frontend)
    });
    path.tables.trace(Step::Flow {
        known: found.is_some(),
    });
    let Some(table) = found else {
        // Not what came through a tunnel: it is here already.
        if frontend != 0
            && scratch.kind == Kind::Error as u32
            && elsewhere::by_table(path, scratch) != elsewhere::ELSEWHERE
        {
            return if scratch.embedded.forged == 0 {
                CHOSEN
            } else {
                path.end(frontend, Reason::IcmpMtu).pack()
            };
        }
        if frontend != 0 && scratch.service.flags & service_flag::SHARED != 0 {
            return elsewhere::leave(path, frontend, Reason::NoFlow);
        }
        let asked = frontend != 0 || classify::is_vip(path, scratch.parsed.tuple.destination);
        return if asked {
            path.end(frontend, Reason::IcmpUnmatched).pack()
        } else {
            Verdict::NotOurs.pack()
        };
    };
    let (frontend, state) = (scratch.flow.frontend, scratch.flow.state);
    if state & flow_state::PASSED != 0 {
        return elsewhere::leave(path, frontend, Reason::Pass);
    }
    if scratch.embedded.forged != 0 {
        return path.end(frontend, Reason::IcmpMtu).pack();
    }
    if state & flow_state::SENT != 0 {
        scratch.chosen = Chosen::of(local::backend_of(path, &scratch.flow));
        return CHOSEN;
    }
    if state & flow_state::LOCAL != 0 {
        scratch.chosen.id = local::backend_of(path, &scratch.flow);
        return FOUND;
    }
    if scratch.parsed.ttl <= 1 {
        return path.end(frontend, Reason::TtlExpired).pack();
    }
    let way = if reply {
        flows::way_back(packet, path, table, scratch)
    } else {
        let (way, id) = nat::way(packet, path, scratch);
        scratch.chosen.id = id;
        way
    };
    if way != egress::OK {
        return path.end(frontend, Reason::from_number(way as u32)).pack();
    }
    FOUND
}

/// Gives the error the ends of its flow's packets, and what it embeds those that its addressee knows, and sends it.
#[inline(never)]
pub(crate) fn translate<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
) -> u64 {
    let (flow, bytes) = (&scratch.flow, packet.length());
    path.tables.trace(Step::Rewrite {
        source: flow.source.to_addr(),
        source_port: flow.source_port,
        destination: flow.destination.to_addr(),
        destination_port: flow.destination_port,
    });
    let local = flow.state & flow_state::LOCAL != 0;
    let ttl = scratch.parsed.ttl - u8::from(!local);
    if rewritten(packet, scratch, ttl).is_none() {
        return path.end(flow.frontend, Reason::NoHeadroom).pack();
    }
    if flow.state & flow_state::REPLY != 0 {
        path.tables.count_reply(flow.frontend);
    } else {
        path.tables
            .count_forwarded(flow.frontend, scratch.chosen.id, bytes, false);
    }
    if local {
        return Verdict::Rewritten.pack();
    }
    egress::send(packet, path, scratch).pack()
}

#[inline(always)]
fn rewritten<A: Layout, P: Packet>(
    packet: &mut P,
    scratch: &FamilyScratch<A>,
    ttl: u8,
) -> Option<()> {
    let (parsed, flow, embedded) = (&scratch.parsed, &scratch.flow, &scratch.embedded);
    let tuple = &parsed.tuple;
    // The embedded packet went the other way.
    let new = (flow.destination, flow.source);
    let inner = rewrite::addresses((tuple.destination, tuple.source), new);
    let ports = Delta::default()
        .replace16(tuple.destination_port.raw(), flow.destination_port.raw())
        .replace16(tuple.source_port.raw(), flow.source_port.raw());
    let mut change = inner.plus(ports);

    let written = if A::VERSION == 4 {
        let at = embedded.network + 10;
        let check: u16 = packet.read(at)?;
        let patched = inner.patch(check);
        change = change.replace16(check, patched);
        packet.write(at, &patched) && packet.write(at + 2, &[new.0.word(0), new.1.word(0)])
    } else {
        let at = embedded.network + 8;
        packet.write(at, &words(&new.0)) && packet.write(at + 16, &words(&new.1))
    };
    let udp = tuple.protocol != TCP;
    let at = embedded.l4 + if udp { 6 } else { 16 };
    // Of TCP as little may be quoted as the ports and the sequence number.
    if at + 2 <= embedded.end {
        let check: u16 = packet.read(at)?;
        let patched = checksum::patch_l4(check, udp, inner, ports);
        change = change.replace16(check, patched);
        if !packet.write(at, &patched) {
            return None;
        }
    }
    let word = u32::from(flow.destination_port.raw()) | u32::from(flow.source_port.raw()) << 16;

    let l3 = parsed.link.length;
    // It came to the source of the packet that it embeds.
    // A backend of this node hears who told it.
    let from = if flow.state & local::ANSWER == flow_state::LOCAL {
        embedded.teller
    } else {
        flow.source
    };
    let outer_new = (from, flow.destination);
    let outer = rewrite::addresses((embedded.teller, tuple.destination), outer_new);
    if A::VERSION == 6 {
        change = change.plus(outer);
    }
    let at = parsed.l4 + 2;
    let check: u16 = packet.read(at)?;
    (written
        && packet.write(embedded.l4, &word)
        && packet.write(at, &change.patch(check))
        && rewrite::network(packet, l3, ttl, outer_new, outer))
    .then_some(())
}

#[inline(always)]
fn words<A: Layout>(address: &A) -> [u32; 4] {
    [
        address.word(0),
        address.word(1),
        address.word(2),
        address.word(3),
    ]
}
