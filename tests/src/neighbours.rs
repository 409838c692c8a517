//! What a neighbour asks: ARP requests and neighbour solicitations, built by etherparse; odd ones by changing a good one.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};

pub const BROADCAST: [u8; 6] = [0xff; 6];

/// The neighbour who asks.
pub const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// Shortest Ethernet frame, without the checksum behind it.
const SHORTEST: usize = 60;

/// An ARP packet for `target` from `sender` at [`ASKER`], as long as the wire wants it.
pub fn arp(to: [u8; 6], operation: ArpOperation, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &ASKER,
        &sender.octets(),
        &[0; 6],
        &target.octets(),
    );
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(ASKER, to)
        .arp(packet.expect("lengths match"))
        .write(&mut frame)
        .expect("a vector takes it");
    frame.resize(SHORTEST, 0);
    frame
}

/// A neighbour solicitation's parts.
#[derive(Clone, Debug)]
pub struct Solicitation {
    /// The Ethernet header's.
    pub to: [u8; 6],
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub target: Ipv6Addr,
    pub hop_limit: u8,
    pub code: u8,
    /// All options, one after the other.
    pub options: Vec<u8>,
}

/// The sender's MAC (RFC 4861, section 4.6.1).
pub const SOURCE_MAC: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 7];
/// A nonce (RFC 7527, section 4.1), which Linux' probes for duplicates have.
pub const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];

impl Solicitation {
    /// As a neighbour asks that does not know the MAC.
    pub fn new(source: Ipv6Addr, target: Ipv6Addr) -> Self {
        Self {
            to: group_mac(solicited_node(target)),
            source,
            destination: solicited_node(target),
            target,
            hop_limit: 255,
            code: 0,
            options: SOURCE_MAC.to_vec(),
        }
    }

    /// As a host asks that is about to take the address (RFC 4862, section 5.4.2).
    pub fn probe(target: Ipv6Addr, options: &[u8]) -> Self {
        Self {
            options: options.to_vec(),
            ..Self::new(Ipv6Addr::UNSPECIFIED, target)
        }
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(ASKER, self.to)
            .ipv6(
                self.source.octets(),
                self.destination.octets(),
                self.hop_limit,
            )
            .icmpv6_raw(135, self.code, [0; 4])
            .write(
                &mut frame,
                &[&self.target.octets()[..], &self.options].concat(),
            )
            .expect("a vector takes it");
        frame
    }
}

/// RFC 4291, section 2.7.1.
pub fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = ip.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low)
}

/// RFC 2464, section 7.
pub fn group_mac(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}
