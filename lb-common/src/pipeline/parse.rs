//! Frame bytes to a tuple. Nothing here decides.

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    vlan::VlanHdr,
};

use crate::{
    abi::{Reason, Tuple},
    bytes::{Address, Be16, Macs, V4, V6},
    packet::{MAX_OFFSET, Packet},
};

/// Values of the `EtherType` field as loaded by a little-endian CPU.
pub(crate) const IPV4: u16 = 0x0800_u16.to_be();
pub(crate) const ARP: u16 = 0x0806_u16.to_be();
pub(crate) const IPV6: u16 = 0x86dd_u16.to_be();
pub(crate) const VLAN: u16 = 0x8100_u16.to_be();
pub(crate) const QINQ: u16 = 0x88a8_u16.to_be();

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

pub(crate) const ETH: u32 = 14;
pub(crate) const TAG: u32 = 4;
pub(crate) const IPV4_LEN: u32 = 20;
pub(crate) const IPV6_LEN: u32 = 40;
pub(crate) const TCP_LEN: u32 = 20;
pub(crate) const UDP_LEN: u32 = 8;
pub(crate) const ICMP_LEN: u32 = 8;

/// IPv6's next header of a fragment (RFC 8200, section 4.5).
const FRAGMENT: u8 = 44;

/// Bits of byte 13 of the TCP header (RFC 9293, section 3.1).
pub mod tcp_flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// The link header.
#[derive(Clone, Copy, Default, Debug)]
pub struct Link {
    pub macs: Macs,
    /// Bytes up to the network header: 14, 18 or 22.
    pub length: u32,
    /// EtherType of the network header, as loaded.
    pub ether_type: u16,
}

/// What the path needs to know of a TCP or UDP packet.
#[derive(Clone, Copy, Default, Debug)]
pub struct Parsed<A> {
    pub link: Link,
    /// Offset of the transport header.
    pub l4: u32,
    pub tuple: Tuple<A>,
    /// Bytes from the network header to the packet's end, as the header says.
    pub length: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN: the TOS or traffic class byte.
    pub tos: u8,
    /// Bits of [`tcp_flag`]; 0 for UDP.
    pub flags: u8,
    /// TCP sequence and acknowledgement numbers, host order.
    pub sequence: u32,
    pub acknowledged: u32,
}

impl<A> Parsed<A> {
    /// A client's first packet of a TCP connection.
    #[inline(always)]
    pub(crate) const fn is_syn(&self) -> bool {
        self.flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST) == tcp_flag::SYN
    }
}

/// The network header, before anything is known about its owner.
pub(crate) struct Network<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) length: u16,
    /// First header after the fixed one, and its offset.
    pub(crate) next: u8,
    pub(crate) offset: u32,
    /// Offset of the fixed header.
    pub(crate) start: u32,
    pub(crate) fragment: bool,
}

/// Ethernet and up to two tags (IEEE 802.1Q, 802.1ad). A third tag is nothing we know.
#[inline(always)]
pub(crate) fn link<P: Packet>(packet: &P) -> Option<Link> {
    let ether_type: u16 = packet.read(ETH - 2)?;
    let mut link = Link {
        macs: Macs::from_header(packet.read(0)?),
        length: ETH,
        ether_type,
    };
    if is_tag(link.ether_type) {
        link.ether_type = packet.read::<VlanHdr>(ETH)?.ether_type;
        link.length = ETH + TAG;
        if is_tag(link.ether_type) {
            link.ether_type = packet.read::<VlanHdr>(ETH + TAG)?.ether_type;
            link.length = ETH + TAG + TAG;
        }
    }
    Some(link)
}

#[inline(always)]
const fn is_tag(ether_type: u16) -> bool {
    ether_type == VLAN || ether_type == QINQ
}

/// Why a packet is no whole TCP or UDP packet.
pub(crate) enum Odd {
    Fragment,
    /// Of the packet's own family.
    Icmp,
    Reason(Reason),
}

/// A packet's place in its datagram, which most packets are the whole of.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    /// The header after those that every fragment has, and its offset in the frame.
    pub(crate) next: u8,
    pub(crate) at: u32,
    /// Identification, as loaded.
    pub(crate) id: u32,
    /// Offset of the payload in the datagram's, in bytes.
    pub(crate) offset: u32,
    /// Another fragment follows.
    pub(crate) more: bool,
}

/// What differs between the families in reading a header.
pub(crate) trait Layout: Address {
    /// Length of the fixed header.
    const HEADER: u32;
    /// IP protocol number of the family's ICMP.
    const ICMP: u8;
    /// The smallest MTU that a path may have (RFC 791, section 3.2; RFC 8200, section 5).
    const MINIMUM_MTU: u32;
    /// The network header at `offset`; `Err` where it is no valid one.
    fn network<P: Packet>(packet: &P, offset: u32) -> Option<Network<Self>>;
    /// Walks from [`Network::next`] to the transport header.
    fn transport<P: Packet>(packet: &P, network: &Network<Self>) -> Result<(u8, u32), Odd>;
    /// What place in its datagram a packet has.
    fn piece<P: Packet>(packet: &P, network: &Network<Self>) -> Result<Piece, Reason>;
    /// Walks from a first fragment's [`Piece::next`] to the transport header.
    fn behind<P: Packet>(packet: &P, piece: &Piece) -> Result<(u8, u32), Reason>;
}

impl Layout for V4 {
    const HEADER: u32 = IPV4_LEN;
    const ICMP: u8 = ICMP;
    const MINIMUM_MTU: u32 = 68;

    #[inline(always)]
    fn network<P: Packet>(packet: &P, offset: u32) -> Option<Network<Self>> {
        let header: Ipv4Hdr = packet.read(offset)?;
        let words = header.vihl & 15;
        if header.vihl >> 4 != 4 || words < 5 {
            return None;
        }
        Some(Network {
            source: Self::from_bytes(header.src_addr),
            destination: Self::from_bytes(header.dst_addr),
            ttl: header.ttl,
            tos: header.tos,
            length: u16::from_be_bytes(header.tot_len),
            next: header.proto,
            offset: offset + words as u32 * 4,
            start: offset,
            // More fragments, or an offset (RFC 791, section 3.1).
            fragment: u16::from_be_bytes(header.frags) & 0x3fff != 0,
        })
    }

    #[inline(always)]
    fn transport<P: Packet>(_packet: &P, network: &Network<Self>) -> Result<(u8, u32), Odd> {
        if network.fragment {
            return Err(Odd::Fragment);
        }
        Ok((network.next, network.offset))
    }

    #[inline(always)]
    fn piece<P: Packet>(packet: &P, network: &Network<Self>) -> Result<Piece, Reason> {
        let fixed = network.start + 4;
        let word: u32 = packet.read(fixed).ok_or(Reason::Malformed)?;
        let field = u16::from_be((word >> 16) as u16);
        Ok(Piece {
            next: network.next,
            at: network.offset,
            id: word & 0xffff,
            offset: u32::from(field & 0x1fff) * 8,
            more: field & 0x2000 != 0,
        })
    }

    #[inline(always)]
    fn behind<P: Packet>(_packet: &P, piece: &Piece) -> Result<(u8, u32), Reason> {
        Ok((piece.next, piece.at))
    }
}

impl Layout for V6 {
    const HEADER: u32 = IPV6_LEN;
    const ICMP: u8 = ICMPV6;
    const MINIMUM_MTU: u32 = 1280;

    #[inline(always)]
    fn network<P: Packet>(packet: &P, offset: u32) -> Option<Network<Self>> {
        let header: Ipv6Hdr = packet.read(offset)?;
        if header.vcf[0] >> 4 != 6 {
            return None;
        }
        Some(Network {
            source: Self::from_bytes(header.src_addr),
            destination: Self::from_bytes(header.dst_addr),
            ttl: header.hop_limit,
            tos: header.vcf[0] << 4 | header.vcf[1] >> 4,
            // A jumbogram's 0 is caught as a header longer than its packet.
            length: u16::from_be_bytes(header.payload_len).saturating_add(IPV6_LEN as u16),
            next: header.next_hdr,
            offset: offset + IPV6_LEN,
            start: offset,
            fragment: false,
        })
    }

    #[inline(always)]
    fn transport<P: Packet>(packet: &P, network: &Network<Self>) -> Result<(u8, u32), Odd> {
        let (next, offset) = (network.next, network.offset);
        if next == TCP || next == UDP {
            return Ok((next, offset));
        }
        match walk(packet, next, offset) {
            Ok((FRAGMENT, _)) => Err(Odd::Fragment),
            Ok(found) => Ok(found),
            Err(reason) => Err(Odd::Reason(reason)),
        }
    }

    #[inline(always)]
    fn piece<P: Packet>(packet: &P, network: &Network<Self>) -> Result<Piece, Reason> {
        let (next, at) = walk(packet, network.next, network.offset)?;
        if next != FRAGMENT {
            return Ok(Piece {
                next,
                at,
                id: 0,
                offset: 0,
                more: false,
            });
        }
        let [head, id]: [u32; 2] = packet.read(at).ok_or(Reason::Malformed)?;
        let field = u16::from_be((head >> 16) as u16);
        Ok(Piece {
            next: head as u8,
            at: at + 8,
            id,
            offset: u32::from(field & 0xfff8),
            more: field & 1 != 0,
        })
    }

    #[inline(always)]
    fn behind<P: Packet>(packet: &P, piece: &Piece) -> Result<(u8, u32), Reason> {
        match walk(packet, piece.next, piece.at)? {
            // A fragment of a fragment.
            (FRAGMENT, _) => Err(Reason::Malformed),
            found => Ok(found),
        }
    }
}

/// Extension headers that this packet's transport header may be behind (RFC 8200, section 4; mobility: RFC 6275;
/// authentication: RFC 4302).
#[inline(always)]
pub(crate) const fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 60 | 135 | 51)
}

/// Walks over up to 8 extension headers (RFC 8200, section 4; authentication header: RFC 4302, section 2.2) to the first
/// header that is none, or is a fragment's.
#[inline(always)]
fn walk<P: Packet>(packet: &P, mut next: u8, mut offset: u32) -> Result<(u8, u32), Reason> {
    let mut depth = 0;
    while depth < 8 {
        if !is_extension(next) {
            return Ok((next, offset));
        }
        let head: [u8; 2] = packet.read(offset).ok_or(Reason::Malformed)?;
        let units = head[1] as u32;
        offset += if next == 51 {
            (units + 2) * 4
        } else {
            (units + 1) * 8
        };
        next = head[0];
        if offset > MAX_OFFSET - TCP_LEN {
            return Err(Reason::TooDeep);
        }
        depth += 1;
    }
    if is_extension(next) {
        Err(Reason::TooDeep)
    } else {
        Ok((next, offset))
    }
}

/// Ports, flags and numbers of the transport header, and what the network header said, into `parsed`, which knows the link
/// already.
#[inline(always)]
pub(crate) fn packet<A: Layout, P: Packet>(
    packet: &P,
    network: &Network<A>,
    parsed: &mut Parsed<A>,
) -> Result<(), Odd> {
    let (protocol, l4) = A::transport(packet, network)?;
    if protocol != TCP && protocol != UDP {
        return Err(if protocol == A::ICMP {
            Odd::Icmp
        } else {
            Odd::Reason(Reason::Protocol)
        });
    }
    transport(packet, network, protocol, l4, parsed).map_err(Odd::Reason)
}

/// The same for a TCP or UDP header at `l4`.
#[inline(always)]
pub(crate) fn transport<A: Layout, P: Packet>(
    packet: &P,
    network: &Network<A>,
    protocol: u8,
    l4: u32,
    parsed: &mut Parsed<A>,
) -> Result<(), Reason> {
    let link = parsed.link.length;
    let end = l4 - link + if protocol == TCP { TCP_LEN } else { UDP_LEN };
    if end > network.length as u32 || link + network.length as u32 > packet.length() {
        return Err(Reason::Malformed);
    }
    let ports: [u16; 2];
    if protocol == TCP {
        let tcp: [u32; 5] = packet.read(l4).ok_or(Reason::Malformed)?;
        ports = [tcp[0] as u16, (tcp[0] >> 16) as u16];
        parsed.sequence = u32::from_be(tcp[1]);
        parsed.acknowledged = u32::from_be(tcp[2]);
        parsed.flags = (tcp[3] >> 8) as u8;
    } else {
        let udp: [u32; 2] = packet.read(l4).ok_or(Reason::Malformed)?;
        ports = [udp[0] as u16, (udp[0] >> 16) as u16];
        parsed.flags = 0;
    }
    parsed.l4 = l4;
    parsed.tuple = Tuple {
        source: network.source,
        destination: network.destination,
        source_port: Be16::from_raw(ports[0]),
        destination_port: Be16::from_raw(ports[1]),
        protocol,
        pad: [0; 3],
    };
    parsed.length = network.length;
    parsed.ttl = network.ttl;
    parsed.tos = network.tos;
    Ok(())
}
