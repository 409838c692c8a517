//! Changes of the network and transport headers: TTL, addresses, ports, checksums.

use network_types::ip::Ipv4Hdr;

use super::{
    FamilyScratch, Path, Step,
    parse::{Layout, TCP},
};
use crate::{
    abi::Reason,
    bytes::{Address, V4},
    checksum::Delta,
    packet::Packet,
    tables::Tables,
};

/// Decrements the TTL or hop limit of the packet whose network header is at `offset`.
#[inline(always)]
pub(crate) fn decrement_ttl<A: Layout, P: Packet>(
    packet: &mut P,
    offset: u32,
    ttl: u8,
) -> Result<(), Reason> {
    let written = if A::VERSION == 4 {
        // TTL, protocol and checksum. One less in the first byte is one more in the checksum's, and a carry goes around
        // (RFC 1624, section 3); a sum that comes out as minus zero is written as zero.
        let Some(word) = packet.read::<u32>(offset + 8) else {
            return Err(Reason::Malformed);
        };
        let check = (word >> 16) + 1;
        let check = check + (check >= 0xffff) as u32;
        packet.write(offset + 8, &((word & 0xffff) - 1 | check << 16))
    } else {
        packet.write(offset + 7, &[ttl - 1])
    };
    if written {
        Ok(())
    } else {
        Err(Reason::NoHeadroom)
    }
}

/// Gives the packet the addresses and ports of its flow entry, and `ttl` hops to live.
#[inline(always)]
pub(crate) fn translate<A: Layout, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
    ttl: u8,
) -> Result<(), Reason> {
    let (parsed, new) = (&scratch.parsed, &scratch.flow);
    path.tables.trace(Step::Rewrite {
        source: new.source.to_addr(),
        source_port: new.source_port,
        destination: new.destination.to_addr(),
        destination_port: new.destination_port,
    });
    let old = &parsed.tuple;
    let addresses = addresses((old.source, old.destination), (new.source, new.destination));
    let ports = Delta::default()
        .replace16(old.source_port.raw(), new.source_port.raw())
        .replace16(old.destination_port.raw(), new.destination_port.raw());

    let l3 = parsed.link.length;
    let written = network(packet, l3, ttl, (new.source, new.destination), addresses);
    let ports_word = u32::from(new.source_port.raw()) | u32::from(new.destination_port.raw()) << 16;
    let udp = old.protocol != TCP;
    let check = parsed.l4 + if udp { 6 } else { 16 };
    if written
        && packet.write(parsed.l4, &ports_word)
        && packet.patch_l4(check, udp, addresses, ports)
    {
        Ok(())
    } else {
        Err(Reason::NoHeadroom)
    }
}

/// The difference that other addresses make: source and destination.
#[inline(always)]
pub(crate) fn addresses<A: Address>(old: (A, A), new: (A, A)) -> Delta {
    let mut addresses = Delta::default();
    let mut word = 0;
    while word < A::WORDS {
        addresses = addresses
            .replace32(old.0.word(word), new.0.word(word))
            .replace32(old.1.word(word), new.1.word(word));
        word += 1;
    }
    addresses
}

/// Gives the network header at `l3` other addresses, which make a difference of `addresses`, and `ttl` hops to live.
#[inline(always)]
pub(crate) fn network<A: Layout, P: Packet>(
    packet: &mut P,
    l3: u32,
    ttl: u8,
    new: (A, A),
    addresses: Delta,
) -> bool {
    if A::VERSION == 4 {
        let Some(mut header) = packet.read::<Ipv4Hdr>(l3) else {
            return false;
        };
        let from = u16::from_ne_bytes([header.ttl, header.proto]);
        header.ttl = ttl;
        let to = u16::from_ne_bytes([header.ttl, header.proto]);
        let check = addresses
            .replace16(from, to)
            .patch(u16::from_ne_bytes(header.check));
        header.check = check.to_ne_bytes();
        header.src_addr = V4(new.0.word(0)).to_bytes();
        header.dst_addr = V4(new.1.word(0)).to_bytes();
        packet.write(l3, &header)
    } else {
        let words = |address: &A| {
            [
                address.word(0),
                address.word(1),
                address.word(2),
                address.word(3),
            ]
        };
        packet.write(l3 + 7, &[ttl])
            && packet.write(l3 + 8, &words(&new.0))
            && packet.write(l3 + 24, &words(&new.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bytes::Be16, sim::Frame};

    /// The checksum of the whole header, its own field left out.
    fn full(header: &[u8]) -> u16 {
        header
            .chunks_exact(2)
            .enumerate()
            .filter(|(at, _)| *at != 5)
            .fold(Delta::default(), |sum, (_, word)| {
                sum.add(u32::from(u16::from_ne_bytes([word[0], word[1]])))
            })
            .checksum()
    }

    #[test]
    fn one_hop_less_keeps_every_header_checksum_true() {
        // The identification runs through all values, so the checksum does, too.
        for id in 0..=u16::MAX {
            let mut bytes = [
                0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7,
            ];
            bytes[4..6].copy_from_slice(&Be16::new(id).to_bytes());
            let check = full(&bytes).to_ne_bytes();
            bytes[10..12].copy_from_slice(&check);
            let mut frame = Frame {
                bytes: bytes.to_vec(),
                ingress: 1,
            };
            decrement_ttl::<V4, _>(&mut frame, 0, 64).expect("a whole header");
            assert_eq!(frame.bytes[8], 63);
            let check = u16::from_ne_bytes([frame.bytes[10], frame.bytes[11]]);
            assert_eq!(check, full(&frame.bytes), "identification {id}");
        }
    }
}
