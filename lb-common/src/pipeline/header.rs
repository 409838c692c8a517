//! IP headers that we make: those around a packet that goes through a tunnel, and those of answers.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::parse::{IPV4, IPV4_LEN, IPV6};
use crate::{
    bytes::{Addr, Address as _, V4, V6},
    checksum::Delta,
    packet::{Packet, Typed},
};

/// TTL and hop limit (the default of RFC 1700).
const TTL: u8 = 64;

/// What an IP header says. Addresses are of the family that [`Header::write`] is told.
pub(crate) struct Header {
    pub(crate) source: Addr,
    pub(crate) destination: Addr,
    /// DSCP and ECN.
    pub(crate) tos: u8,
    /// Flow label of IPv6, 20 bits.
    pub(crate) label: u32,
    pub(crate) protocol: u8,
    /// Bytes behind the header.
    pub(crate) payload: u16,
}

impl Header {
    /// Writes EtherType and header behind the MACs and tags of a link header of `link` bytes; false if there is no room.
    #[inline(always)]
    pub(crate) fn write<P: Packet>(&self, packet: &mut P, link: u32, v4: bool) -> bool {
        if v4 {
            let (ether_type, header) = (IPV4, self.v4());
            packet.write(link - 2, &Typed { ether_type, header })
        } else {
            let (ether_type, header) = (IPV6, self.v6());
            packet.write(link - 2, &Typed { ether_type, header })
        }
    }

    /// Without options, don't-fragment set (so its id is of no use, RFC 6864).
    #[inline(always)]
    fn v4(&self) -> Ipv4Hdr {
        let (source, destination) = (
            V4::from_addr(&self.source),
            V4::from_addr(&self.destination),
        );
        let mut header = Ipv4Hdr {
            vihl: 0x45,
            tos: self.tos,
            tot_len: (self.payload + IPV4_LEN as u16).to_be_bytes(),
            id: [0; 2],
            frags: [0x40, 0],
            ttl: TTL,
            proto: self.protocol,
            check: [0; 2],
            src_addr: source.to_bytes(),
            dst_addr: destination.to_bytes(),
        };
        let check = Delta::default()
            .add(u32::from(u16::from_ne_bytes([header.vihl, header.tos])))
            .add(u32::from(u16::from_ne_bytes(header.tot_len)))
            .add(u32::from(u16::from_ne_bytes(header.frags)))
            .add(u32::from(u16::from_ne_bytes([header.ttl, header.proto])))
            .add(source.0)
            .add(destination.0)
            .checksum();
        header.check = check.to_ne_bytes();
        header
    }

    #[inline(always)]
    fn v6(&self) -> Ipv6Hdr {
        Ipv6Hdr {
            vcf: (6 << 28 | u32::from(self.tos) << 20 | self.label).to_be_bytes(),
            payload_len: self.payload.to_be_bytes(),
            next_hdr: self.protocol,
            hop_limit: TTL,
            src_addr: V6::from_addr(&self.source).to_bytes(),
            dst_addr: V6::from_addr(&self.destination).to_bytes(),
        }
    }
}
