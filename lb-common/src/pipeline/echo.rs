//! Echo: a VIP answers a ping here, out of the budget that all answers share (RFC 1122, section 3.2.2.6; RFC 4443, section
//! 4.2). The answer is the request with its ends swapped.

use network_types::ip::Ipv4Hdr;

use super::{FamilyScratch, Path, Verdict, parse::Layout, reject};
use crate::{
    abi::Reason,
    checksum::Delta,
    packet::Packet,
    tables::{Home, Tables},
};

/// TTL of an answer (the default of RFC 1700).
const TTL: u8 = 64;

/// Answers the request that [`super::icmp::arrive`] has read.
#[inline(never)]
pub(crate) fn answer<A: Layout, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
) -> u64 {
    let parsed = &scratch.parsed;
    if path.tables.home() == Home::Tc {
        // Has been answered in the driver.
        return Verdict::NotOurs.pack();
    }
    let is_plain = parsed.l4 == parsed.link.length + A::HEADER;
    if let Err(reason) = reject::owed(path, parsed, is_plain) {
        return path.end(0, reason).pack();
    }
    if turn(packet, scratch).is_none() {
        return path.end(0, Reason::NoHeadroom).pack();
    }
    path.tables.count_reason(0, Reason::Echo);
    Verdict::Transmit.pack()
}

#[inline(always)]
fn turn<A: Layout, P: Packet>(packet: &mut P, scratch: &FamilyScratch<A>) -> Option<()> {
    let parsed = &scratch.parsed;
    let (l3, l4) = (parsed.link.length, parsed.l4);
    let turned = if A::VERSION == 4 {
        let mut header: Ipv4Hdr = packet.read(l3)?;
        let old = u16::from_ne_bytes([header.ttl, header.proto]);
        header.ttl = TTL;
        let new = u16::from_ne_bytes([header.ttl, header.proto]);
        let check = u16::from_ne_bytes(header.check);
        header.check = Delta::default()
            .replace16(old, new)
            .patch(check)
            .to_ne_bytes();
        (header.src_addr, header.dst_addr) = (header.dst_addr, header.src_addr);
        packet.write(l3, &header)
    } else {
        let [from, to]: [[u32; 4]; 2] = [packet.read(l3 + 8)?, packet.read(l3 + 24)?];
        packet.write(l3 + 7, &[TTL]) && packet.write(l3 + 8, &to) && packet.write(l3 + 24, &from)
    };
    let [kind, check]: [u16; 2] = [packet.read(l4)?, packet.read(l4 + 2)?];
    // Echo (8) to echo reply (0); in ICMPv6 128 to 129. The pseudo-header's sum does not care about directions.
    let reply = if A::VERSION == 4 {
        kind & u16::from_ne_bytes([0, 0xff])
    } else {
        kind | u16::from_ne_bytes([1, 0])
    };
    let check = Delta::default().replace16(kind, reply).patch(check);
    (turned
        && packet.write(l4, &reply.to_ne_bytes())
        && packet.write(l4 + 2, &check.to_ne_bytes())
        && packet.write(0, parsed.link.macs.swapped().as_header()))
    .then_some(())
}
