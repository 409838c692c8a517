//! Answers of our own: RST to TCP, port unreachable to UDP, from the VIP, back the way the packet came. All share one
//! budget per CPU, and none is longer than what it answers plus the headers that make it an answer.

use super::{
    FamilyScratch, Path, Verdict,
    header::Header,
    parse::{
        ICMP, ICMP_LEN, ICMPV6, IPV4_LEN, IPV6_LEN, Layout, Parsed, TCP, TCP_LEN, UDP_LEN, tcp_flag,
    },
};
use crate::{
    abi::Reason,
    bytes::Address,
    checksum::Delta,
    packet::Packet,
    tables::{Home, Tables},
};

/// Type 3, code 3 (RFC 792) and type 1, code 4 (RFC 4443, section 3.1): port unreachable, as loaded.
const UNREACHABLE_V4: u16 = u16::from_ne_bytes([3, 3]);
const UNREACHABLE_V6: u16 = u16::from_ne_bytes([1, 4]);

/// Answers a packet that no backend will: `scratch.refusal` says why.
#[inline(never)]
pub(crate) fn answer<A: Layout, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
) -> u64 {
    let (parsed, frontend) = (&scratch.parsed, scratch.frontend.id);
    let reason = Reason::from_number(scratch.refusal);
    if path.tables.home() == Home::Tc {
        // Has been answered in the driver.
        return Verdict::NotOurs.pack();
    }
    let is_plain = parsed.l4 == parsed.link.length + A::HEADER;
    let answerable = is_plain && parsed.flags & tcp_flag::RST == 0;
    if let Err(reason) = owed(path, parsed, answerable) {
        return path.end(frontend, reason).pack();
    }
    let written = if parsed.tuple.protocol == TCP {
        reset(packet, parsed)
    } else {
        unreachable(packet, parsed)
    };
    if written.is_none() {
        return path.end(frontend, Reason::NoHeadroom).pack();
    }
    path.tables.count_reason(frontend, reason);
    Verdict::Transmit.pack()
}

/// Whether a packet gets an answer of our own: it is `answerable`, a host has sent it, and the budget has one left.
#[inline(always)]
pub(crate) fn owed<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    answerable: bool,
) -> Result<(), Reason> {
    if !answerable || !is_host(&parsed.tuple.source) {
        return Err(Reason::NotAnswered);
    }
    if path.granted() {
        Ok(())
    } else {
        Err(Reason::RejectLimited)
    }
}

/// Not unspecified, loopback, multicast or broadcast (RFC 1122, section 3.2.2).
#[inline(always)]
fn is_host<A: Address>(source: &A) -> bool {
    let first = source.word(0).to_ne_bytes()[0];
    if A::VERSION == 4 {
        first != 0 && first != 127 && first < 224
    } else {
        // ff00::/8, and ::/64, in which :: and ::1 lie.
        first != 0xff && (source.word(0) | source.word(1)) != 0
    }
}

/// Swaps the MACs and writes the network header of an answer with `payload` bytes behind it.
#[inline(always)]
pub(crate) fn headers<A: Layout, P: Packet>(
    packet: &mut P,
    parsed: &Parsed<A>,
    protocol: u8,
    payload: u16,
) -> Option<()> {
    let link = parsed.link.length;
    let tuple = parsed.tuple.reversed();
    let header = Header {
        source: tuple.source.to_addr(),
        destination: tuple.destination.to_addr(),
        tos: 0,
        label: 0,
        protocol,
        payload,
    };
    let written = header.write(packet, link, A::VERSION == 4);
    (written && packet.write(0, parsed.link.macs.swapped().as_header())).then_some(())
}

/// The pseudo-header of an answer (RFC 9293, section 3.1; RFC 8200, section 8.1).
#[inline(always)]
pub(crate) fn pseudo_header<A: Address>(parsed: &Parsed<A>, protocol: u8, length: u16) -> Delta {
    let mut sum = Delta::default()
        .add(u32::from(length.to_be()))
        .add(u32::from(u16::from(protocol).to_be()));
    let mut word = 0;
    while word < A::WORDS {
        sum = sum
            .add(parsed.tuple.source.word(word))
            .add(parsed.tuple.destination.word(word));
        word += 1;
    }
    sum
}

/// A RST that the client's connection accepts (RFC 9293, section 3.10.7.1).
#[inline(always)]
fn reset<A: Layout, P: Packet>(packet: &mut P, parsed: &Parsed<A>) -> Option<()> {
    let data_offset: [u8; 1] = packet.read(parsed.l4 + 12)?;
    let header = u32::from(data_offset[0] >> 4) * 4;
    let before = parsed.l4 - parsed.link.length + header;
    let (sequence, acknowledged, flags) = if parsed.flags & tcp_flag::ACK != 0 {
        (parsed.acknowledged, 0, tcp_flag::RST)
    } else {
        let syn = u32::from(parsed.flags & tcp_flag::SYN != 0);
        let fin = u32::from(parsed.flags & tcp_flag::FIN != 0);
        let length = u32::from(parsed.length).saturating_sub(before) + syn + fin;
        (
            0,
            parsed.sequence.wrapping_add(length),
            tcp_flag::RST | tcp_flag::ACK,
        )
    };
    let tuple = parsed.tuple.reversed();
    let mut tcp: [u32; 5] = [
        u32::from(tuple.source_port.raw()) | u32::from(tuple.destination_port.raw()) << 16,
        u32::to_be(sequence),
        u32::to_be(acknowledged),
        u32::from_ne_bytes([5 << 4, flags, 0, 0]),
        0,
    ];
    let check = pseudo_header(parsed, TCP, TCP_LEN as u16)
        .add(tcp[0])
        .add(tcp[1])
        .add(tcp[2])
        .add(tcp[3])
        .checksum();
    tcp[4] = u32::from(check);
    headers(packet, parsed, TCP, TCP_LEN as u16)?;
    (packet.write(parsed.l4, &tcp) && packet.cut(parsed.l4 + TCP_LEN)).then_some(())
}

/// Port unreachable, quoting the IP header and 8 bytes (contract A6.3).
#[inline(always)]
fn unreachable<A: Layout, P: Packet>(packet: &mut P, parsed: &Parsed<A>) -> Option<()> {
    let link = parsed.link.length;
    let room = A::HEADER + ICMP_LEN;
    if !packet.open(link, room, A::VERSION == 6) {
        return None;
    }
    let quote = link + room;
    let (protocol, first) = if A::VERSION == 4 {
        (ICMP, UNREACHABLE_V4)
    } else {
        (ICMPV6, UNREACHABLE_V6)
    };
    let length = (ICMP_LEN + A::HEADER + UDP_LEN) as u16;
    let mut sum = if A::VERSION == 4 {
        Delta::default()
    } else {
        pseudo_header(parsed, protocol, length)
    }
    .add(u32::from(first));
    if A::VERSION == 4 {
        let words: [u32; (IPV4_LEN + UDP_LEN) as usize / 4] = packet.read(quote)?;
        let mut word = 0;
        while word < words.len() {
            sum = sum.add(words[word]);
            word += 1;
        }
    } else {
        let words: [u32; (IPV6_LEN + UDP_LEN) as usize / 4] = packet.read(quote)?;
        let mut word = 0;
        while word < words.len() {
            sum = sum.add(words[word]);
            word += 1;
        }
    }
    let icmp: [u32; 2] = [u32::from(first) | u32::from(sum.checksum()) << 16, 0];
    headers(packet, parsed, protocol, length)?;
    (packet.write(link + A::HEADER, &icmp) && packet.cut(quote + A::HEADER + UDP_LEN)).then_some(())
}
