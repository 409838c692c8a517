//! `dsr`: Geneve (RFC 8926) between the node that got a client's packet and the one that has its backend. One option names
//! the backend and carries a tag; the inner packet, without a link header, is the client's as it came.
//!
//! ```text
//! outer IP, UDP     from a port by the flow, to the nodes' own; no checksum (RFC 6935, RFC 6936)
//! Geneve            version 0, length of the option, protocol 0x0800 or 0x86dd, network identifier 0
//! option            class 0xff4d (experimental), type 0x81 (critical), length
//!   4               target port, key id, kind
//!   8               tag
//!   4 or 16         target address
//! ```

use super::{
    FamilyScratch, Path, Step, Verdict, classify, egress, elsewhere,
    fragment::{FIRST, FOLLOW},
    header::Header,
    parse::{self, IPV4, IPV4_LEN, IPV6, IPV6_LEN, Layout, Odd, UDP, UDP_LEN},
    probe, select,
    steer::{CHOSEN, Chosen, STEER},
};
use crate::{
    abi::{Backend, Reason, TargetKey, Tunnel},
    bytes::{Addr, Address as _, Be16, V4},
    hash,
    packet::{Packet, Shell},
    tables::{Budget, FamilyTables, Tables},
};

/// Bytes of Geneve's fixed header, of an option's, and of ours in front of the target's address.
const GENEVE: u32 = 8;
const OPTION: u32 = 4;
const FIXED: u32 = 12;

/// Class and type of the option, and what it is in a whole word but for its length.
const CLASS: u32 = 0xff4d;
const TYPE: u32 = 0x81;

/// What the sender says of a packet: one of these, and in the bits above them which of the backends that may know its
/// connection is asked, by its position in [`select::next_candidate`].
pub(crate) mod kind {
    /// It begins a flow, or goes on with one that the sender has an entry of.
    pub(crate) const SENT: u8 = 0;
    /// The sender knows nothing of the connection.
    pub(crate) const ASKED: u8 = 1;
    /// Nor does the node that was asked.
    pub(crate) const GIVEN_BACK: u8 = 2;

    /// The question to the candidate at a position.
    #[inline(always)]
    pub(crate) const fn asked(position: u32) -> u8 {
        ASKED | (position << 2) as u8
    }

    /// Which of the three.
    #[inline(always)]
    pub(crate) const fn of(kind: u8) -> u8 {
        kind & 3
    }

    #[inline(always)]
    pub(crate) const fn position(kind: u8) -> u32 {
        (kind >> 2) as u32
    }
}

/// Beside the words of [`classify`]: the packet is to be given back.
pub(crate) const UNKNOWN: u64 = 17 << 24;
/// The packet was given back.
pub(crate) const BACK: u64 = 19 << 24;

/// Bytes of an address of the inner packet's family.
const fn address_length(v4: bool) -> u32 {
    if v4 { 4 } else { 16 }
}

/// What a packet of `inner` family grows by on its way to a node's address of `outer` family.
pub const fn room(outer_v4: bool, inner_v4: bool) -> u32 {
    let outer = if outer_v4 { IPV4_LEN } else { IPV6_LEN };
    outer + UDP_LEN + GENEVE + OPTION + FIXED + address_length(inner_v4)
}

/// What a tunnelled packet says of itself. Aligned for the double words that LLVM copies by.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C, align(8))]
pub(crate) struct Envelope {
    pub(crate) target: Addr,
    pub(crate) tag: u64,
    pub(crate) port: Be16,
    pub(crate) key: u8,
    pub(crate) kind: u8,
    /// EtherType of the inner packet, as loaded.
    pub(crate) ether_type: u16,
    pub(crate) pad: u16,
    /// Addresses of the nodes: which sent it, and this one.
    pub(crate) from: Addr,
    pub(crate) to: Addr,
}

/// Sends the packet to the node of the backend that was chosen.
#[inline(never)]
pub(crate) fn forward<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let Chosen { mut hash, id, .. } = scratch.chosen;
    let Some(backend) = path.tables.backend(id) else {
        return path.end(scratch.frontend.id, Reason::Inconsistent).pack();
    };
    if hash == 0 {
        // Of a fragment's flow the later ones tell no more, and their tag is made of it.
        hash = hash::flow(&path.settings.hash_key, &scratch.parsed.tuple);
        scratch.chosen.hash = hash;
    }
    select::forward_by(packet, path, scratch, &backend, id, |packet, scratch| {
        wrap(packet, path, scratch, &backend, hash)
    })
}

/// Wraps the packet for the backend's node. `hash`: that of its flow.
#[inline(always)]
pub(crate) fn wrap<A: Layout, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
    backend: &Backend,
    hash: u64,
) -> Result<(), Reason> {
    let parsed = &scratch.parsed;
    let inner_v4 = A::VERSION == 4;
    let outer_v4 = backend.address.is_v4();
    let room = room(outer_v4, inner_v4);
    if !egress::has_room(path, scratch, room) {
        return Err(Reason::TooBig);
    }
    if backend.target.is_v4() != inner_v4 {
        return Err(Reason::Inconsistent);
    }
    path.tables.trace(Step::Rewrite {
        source: backend.source,
        source_port: Be16::new(0),
        destination: backend.address,
        destination_port: Be16::new(0),
    });
    let settings = path.settings;
    let tunnel = Tunnel(settings.tunnel);
    let target = A::from_addr(&backend.target);
    let key = &settings.tag_keys[usize::from(tunnel.key() & 1)];
    let kind = scratch.chosen.kind as u8;
    let tag = hash::tag(key, hash, &target, backend.port, kind);
    let link = parsed.link.length;
    if !packet.open(link, room, !outer_v4) {
        return Err(Reason::NoHeadroom);
    }
    // Of the dynamic ports (RFC 8926, section 3.3).
    let from = 0xc000 | (hash >> 50) as u16;
    let outer = if outer_v4 { IPV4_LEN } else { IPV6_LEN };
    let datagram = parsed.length + (room - outer) as u16;
    let body = (FIXED + address_length(inner_v4)) / 4;
    let ether_type = if inner_v4 { IPV4 } else { IPV6 };
    let shell = Shell {
        udp: [from.to_be(), tunnel.port().raw(), datagram.to_be(), 0],
        geneve: [((1 + body) << 24).to_be() | u32::from(ether_type) << 16, 0],
        option: (CLASS << 16 | TYPE << 8 | body).to_be(),
        port: backend.port.raw(),
        key: tunnel.key(),
        kind,
        tag: tag.to_le(),
    };
    let header = Header {
        source: backend.source,
        destination: backend.address,
        tos: parsed.tos,
        label: (hash >> 44) as u32,
        protocol: UDP,
        payload: datagram,
    };
    let written = header.write(packet, link, outer_v4);
    let at = link + outer;
    let behind = at + UDP_LEN + GENEVE + OPTION + FIXED;
    let named = if inner_v4 {
        packet.write(behind, &target.word(0))
    } else {
        packet.write(behind, &backend.target.0)
    };
    if written && packet.write(at, &shell) && named {
        Ok(())
    } else {
        Err(Reason::NoHeadroom)
    }
}

/// Takes a packet out of its tunnel: [`classify::ARRIVED`], the answer to a probe, or the end of what is none of ours.
#[inline(never)]
pub(crate) fn open<A: Layout, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
    envelope: &mut Envelope,
) -> u64 {
    let outer = &scratch.parsed.tuple;
    (envelope.from, envelope.to) = (outer.source.to_addr(), outer.destination.to_addr());
    match unwrap(packet, scratch, envelope) {
        Ok(()) => classify::ARRIVED,
        Err(Reason::TunnelProbe) => probe::answer(packet, path, scratch),
        Err(reason) => path.end(scratch.frontend.id, reason).pack(),
    }
}

/// Reads the packet out of a tunnel: a word of [`classify`], [`STEER`] for a whole one.
#[inline(never)]
pub(crate) fn read<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let network = parse::link(packet).and_then(|link| {
        scratch.parsed.link = link;
        A::network(packet, link.length)
    });
    let read = match network {
        Some(network) => parse::packet(packet, &network, &mut scratch.parsed),
        None => Err(Odd::Reason(Reason::TunnelMalformed)),
    };
    match read {
        Ok(()) => STEER,
        Err(Odd::Fragment) => classify::FRAGMENT,
        Err(Odd::Icmp) => classify::ICMP,
        Err(Odd::Reason(_)) => path.end(0, Reason::TunnelMalformed).pack(),
    }
}

/// Finds the backend that a packet out of a tunnel was sent for: [`CHOSEN`], or [`FOLLOW`] for a later fragment, if it is
/// here and the sender knew the key. `word`: what reading the packet has led to.
#[inline(never)]
pub(crate) fn receive<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    envelope: &Envelope,
    word: u64,
) -> u64 {
    let settings = path.settings;
    let flow = match word {
        STEER | FIRST => hash::flow(&settings.hash_key, &scratch.parsed.tuple),
        FOLLOW => scratch.chosen.hash,
        // Nothing else is sent to other nodes; what is dropped has been counted.
        _ if classify::goes_on(word) || !matches!(Verdict::unpack(word), Verdict::Drop(_)) => {
            return path.end(0, Reason::TunnelTarget).pack();
        }
        _ => return word,
    };
    let target = A::from_addr(&envelope.target);
    let key = &settings.tag_keys[usize::from(envelope.key & 1)];
    let tag = hash::tag(key, flow, &target, envelope.port, envelope.kind);
    if tag != envelope.tag || !Tunnel::accepts(settings.tag_ids, envelope.key) {
        return path.end(0, Reason::TunnelTag).pack();
    }
    if word == FOLLOW {
        let flow = &scratch.flow;
        return if flow.destination == target && flow.destination_port == envelope.port {
            FOLLOW
        } else {
            path.end(flow.frontend, Reason::TunnelTarget).pack()
        };
    }
    match classify::claim(path, scratch) {
        Ok(service) => scratch.service = service,
        Err(classify::SHARED) => {}
        // A tunnel in a tunnel, or no VIP.
        Err(word) if classify::goes_on(word) => {
            return path.end(0, Reason::TunnelTarget).pack();
        }
        Err(word) => return word,
    }
    let frontend = scratch.frontend;
    let (rate, burst) = (settings.fragment_rate, settings.fragment_burst);
    if word == FIRST && !path.tables.take(Budget::Fragment, rate, burst) {
        return path.end(frontend.id, Reason::FragmentLimited).pack();
    }
    if kind::of(envelope.kind) == kind::GIVEN_BACK {
        // Nothing else is asked about: what is in fragments has no way of its own.
        let asked = word == STEER && !scratch.parsed.tuple_is_udp() && !scratch.parsed.is_syn();
        scratch.chosen = Chosen::new(flow, 0);
        scratch.chosen.kind = u32::from(envelope.kind);
        return if asked {
            BACK
        } else {
            elsewhere::leave(path, frontend.id, Reason::NoFlow)
        };
    }
    let key = TargetKey::new(frontend.service, target, envelope.port);
    // The memory of an entry that was removed goes to the next that is inserted, under the eyes of who still holds it: that
    // one's backend has another address or port.
    let meant = |id: &u32| {
        let backend = path.tables.backend(*id);
        backend.is_some_and(|backend| {
            backend.address == envelope.target && backend.port == envelope.port
        })
    };
    // Who is asked may know the connection by a backend that gets no new ones.
    let id = match FamilyTables::<A>::target(path.tables, &key).filter(meant) {
        Some(id) => id,
        None if kind::of(envelope.kind) == kind::ASKED => 0,
        None => return path.end(frontend.id, Reason::TunnelTarget).pack(),
    };
    scratch.chosen = Chosen::new(flow, id);
    scratch.chosen.kind = u32::from(envelope.kind);
    CHOSEN
}

/// Sends the packet back to the node that asked, which was not told more than it knew.
#[inline(never)]
pub(crate) fn give_back<A: Layout, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    envelope: &Envelope,
) -> u64 {
    let frontend = scratch.frontend.id;
    let asking = Backend {
        address: envelope.from,
        source: envelope.to,
        target: envelope.target,
        port: envelope.port,
        ..Backend::default()
    };
    // It has just come by the same way.
    scratch.exit.mtu = u32::MAX;
    scratch.chosen.kind = u32::from(envelope.kind & !kind::ASKED | kind::GIVEN_BACK);
    let hash = scratch.chosen.hash;
    if let Err(reason) = wrap(packet, path, scratch, &asking, hash) {
        return path.end(frontend, reason).pack();
    }
    if !packet.write(0, scratch.parsed.link.macs.swapped().as_header()) {
        return path.end(frontend, Reason::NoHeadroom).pack();
    }
    path.tables.count_reason(frontend, Reason::NoFlow);
    Verdict::Transmit.pack()
}

/// Reads what a packet to this node's end of the tunnels says of itself, and takes its outer headers off.
#[inline(always)]
pub(crate) fn unwrap<A: Layout, P: Packet>(
    packet: &mut P,
    scratch: &FamilyScratch<A>,
    envelope: &mut Envelope,
) -> Result<(), Reason> {
    let (link, udp) = (scratch.parsed.link.length, scratch.parsed.l4);
    // Of a packet with options or extension headers in front of the tunnel nobody has heard.
    if udp != link + A::HEADER {
        return Err(Reason::TunnelMalformed);
    }
    let shell: Shell = packet.read(udp).ok_or(Reason::TunnelMalformed)?;
    let [geneve, network] = shell.geneve;
    let inner_v4 = (geneve >> 16) as u16 == IPV4;
    let body = (FIXED + address_length(inner_v4)) / 4;
    let ether_type = if inner_v4 { IPV4 } else { IPV6 };
    let expected = ((1 + body) << 24).to_be() | u32::from(ether_type) << 16;
    let option = (CLASS << 16 | TYPE << 8 | body).to_be();
    if kind::of(shell.kind) > kind::GIVEN_BACK
        || geneve != expected
        || network != 0
        || shell.option != option
    {
        return Err(probe::or_malformed(&shell));
    }
    let behind = udp + UDP_LEN + GENEVE + OPTION + FIXED;
    envelope.target = if inner_v4 {
        let address: u32 = packet.read(behind).ok_or(Reason::TunnelMalformed)?;
        V4(address).to_addr()
    } else {
        Addr(packet.read(behind).ok_or(Reason::TunnelMalformed)?)
    };
    envelope.tag = u64::from_le(shell.tag);
    envelope.port = Be16::from_raw(shell.port);
    envelope.key = shell.key;
    envelope.kind = shell.kind;
    envelope.ether_type = ether_type;
    let room = room(A::VERSION == 4, inner_v4);
    // What is left is a frame.
    let whole = packet.length() >= link + room + IPV4_LEN;
    if whole && packet.close(link, room) && packet.write(link - 2, &ether_type) {
        Ok(())
    } else {
        Err(Reason::TunnelMalformed)
    }
}
