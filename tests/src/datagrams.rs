//! Frames that are parts of datagrams or tell about them: fragments and ICMP errors, made from whole frames by
//! etherparse.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice,
};

/// Bytes of an untagged frame's link header.
pub const LINK: usize = 14;

/// Whether an untagged frame is IPv4; else it is IPv6 without extension headers.
pub fn is_v4(frame: &[u8]) -> bool {
    frame[12] == 8
}

/// Bytes of the frame's link and network headers.
pub fn headers(frame: &[u8]) -> usize {
    if is_v4(frame) {
        LINK + usize::from(frame[LINK] & 15) * 4
    } else {
        LINK + 40
    }
}

/// From where and to where a whole frame is, if it is of TCP or UDP.
pub fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (from, to): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => return None,
    };
    let (source, destination) = match packet.transport? {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        _ => return None,
    };
    Some((
        SocketAddr::new(from, source),
        SocketAddr::new(to, destination),
    ))
}

/// The fragments of a whole frame's datagram, each with `size` bytes (a multiple of 8) of its payload or what is left.
pub fn fragments(frame: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    let payload = frame.len() - headers(frame);
    (0..payload)
        .step_by(size)
        .map(|from| {
            let to = payload.min(from + size);
            fragment(frame, id, from..to, to < payload)
        })
        .collect()
}

/// One fragment with any part of a whole frame's payload. `part` begins at a multiple of 8.
pub fn fragment(frame: &[u8], id: u32, part: Range<usize>, more: bool) -> Vec<u8> {
    let start = headers(frame);
    let payload = &frame[start..][part.clone()];
    let offset = IpFragOffset::try_new((part.start / 8) as u16).expect("13 bits");
    let mut made = frame[..start].to_vec();
    if is_v4(frame) {
        let (mut header, _) = Ipv4Header::from_slice(&frame[LINK..]).expect("a whole header");
        header.identification = id as u16;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = offset;
        header.total_len = (start - LINK + payload.len()) as u16;
        header.header_checksum = header.calc_header_checksum();
        made[LINK..].copy_from_slice(&header.to_bytes());
    } else {
        let next = IpNumber(std::mem::replace(&mut made[LINK + 6], 44));
        let length = (payload.len() + 8) as u16;
        made[LINK + 4..LINK + 6].copy_from_slice(&length.to_be_bytes());
        made.extend(Ipv6FragmentHeader::new(next, offset, more, id).to_bytes());
    }
    made.extend(payload);
    made
}

/// The frame with more in front of its transport header: IPv4's options, IPv6's hop-by-hop and destination options, all of
/// them padding (RFC 791, section 3.1; RFC 8200, sections 4.2, 4.3 and 4.6).
pub fn with_options(frame: &[u8]) -> Vec<u8> {
    let mut made = frame[..LINK].to_vec();
    if is_v4(frame) {
        let (mut header, payload) = Ipv4Header::from_slice(&frame[LINK..]).expect("a whole header");
        header.options = [1, 1, 1, 0].into();
        header.total_len += 4;
        header.header_checksum = header.calc_header_checksum();
        made.extend(header.to_bytes());
        made.extend(payload);
    } else {
        made = frame.to_vec();
        for kind in [60, 0] {
            let next = std::mem::replace(&mut made[LINK + 6], kind);
            let length = u16::from_be_bytes([made[LINK + 4], made[LINK + 5]]) + 8;
            made[LINK + 4..LINK + 6].copy_from_slice(&length.to_be_bytes());
            made.splice(LINK + 40..LINK + 40, [next, 0, 1, 4, 0, 0, 0, 0]);
        }
    }
    made
}

/// The frame of an IPv4 datagram whose sender reckoned no UDP checksum (RFC 768).
pub fn without_checksum(frame: &[u8]) -> Vec<u8> {
    let mut made = frame.to_vec();
    let udp = headers(frame);
    made[udp + 6..udp + 8].fill(0);
    made
}

/// The frame with VLAN tags, the outer one first.
pub fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], &tags.concat(), &frame[12..]].concat()
}

/// The whole frame of fragments in order, as its receiver puts it together.
pub fn reassembled(fragments: &[Vec<u8>]) -> Vec<u8> {
    let first = &fragments[0];
    let start = headers(first);
    let v4 = is_v4(first);
    // The fragment header of IPv6 goes.
    let skip = if v4 { 0 } else { 8 };
    let payload: Vec<u8> = fragments
        .iter()
        .flat_map(|fragment| fragment[start + skip..].to_vec())
        .collect();
    let mut whole = first[..start].to_vec();
    if v4 {
        let (mut header, _) = Ipv4Header::from_slice(&first[LINK..]).expect("a whole header");
        header.more_fragments = false;
        header.total_len = (start - LINK + payload.len()) as u16;
        header.header_checksum = header.calc_header_checksum();
        whole[LINK..].copy_from_slice(&header.to_bytes());
    } else {
        whole[LINK + 6] = first[start];
        whole[LINK + 4..LINK + 6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    whole.extend(payload);
    whole
}

/// An ICMP or `ICMPv6` message: type, code, and the four bytes behind the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    pub code: u8,
    pub word: u32,
}

/// The frame of a message between MACs and addresses.
pub fn icmp(macs: [[u8; 6]; 2], ends: [IpAddr; 2], message: Message, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs[0], macs[1]);
    let Message { kind, code, word } = message;
    let word = word.to_be_bytes();
    let mut frame = Vec::new();
    match ends {
        [IpAddr::V4(from), IpAddr::V4(to)] => builder
            .ipv4(from.octets(), to.octets(), 64)
            .icmpv4_raw(kind, code, word)
            .write(&mut frame, payload),
        [IpAddr::V6(from), IpAddr::V6(to)] => builder
            .ipv6(from.octets(), to.octets(), 64)
            .icmpv6_raw(kind, code, word)
            .write(&mut frame, payload),
        _ => unreachable!("ends of one family"),
    }
    .expect("a vector takes it");
    frame
}

/// What a router or host at `teller` says about a frame that it got: to the frame's sender, quoting `quoted` bytes from
/// its network header on.
pub fn about(
    frame: &[u8],
    macs: [[u8; 6]; 2],
    teller: IpAddr,
    message: Message,
    quoted: usize,
) -> Vec<u8> {
    let sender: IpAddr = if is_v4(frame) {
        <[u8; 4]>::try_from(&frame[26..30]).expect("4 bytes").into()
    } else {
        <[u8; 16]>::try_from(&frame[22..38])
            .expect("16 bytes")
            .into()
    };
    let quote = &frame[LINK..frame.len().min(LINK + quoted)];
    icmp(macs, [teller, sender], message, quote)
}
