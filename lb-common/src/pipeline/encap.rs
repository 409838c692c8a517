//! `ipip`: an outer IPv4 or IPv6 header in front of the packet (RFC 2003, RFC 2473), DSCP and ECN copied to it
//! (RFC 6040, section 4.1, normal mode).

use super::{
    FamilyScratch, Path, Step, egress,
    header::Header,
    parse::{IPV4_LEN, IPV6_LEN, Layout},
    rewrite,
};
use crate::{
    abi::{Backend, Reason},
    bytes::Be16,
    packet::Packet,
    tables::Tables,
};

/// IP protocol numbers of an inner IPv4 and IPv6 packet.
const INNER_V4: u8 = 4;
const INNER_V6: u8 = 41;

#[inline(always)]
pub(crate) fn ipip<A: Layout, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
    backend: &Backend,
    hash: u64,
) -> Result<(), Reason> {
    let parsed = &scratch.parsed;
    let outer_v4 = backend.address.is_v4();
    let room = if outer_v4 { IPV4_LEN } else { IPV6_LEN };
    if !egress::has_room(path, scratch, room) {
        return Err(Reason::TooBig);
    }
    if parsed.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    path.tables.trace(Step::Rewrite {
        source: backend.source,
        source_port: Be16::new(0),
        destination: backend.address,
        destination_port: Be16::new(0),
    });
    let link = parsed.link.length;
    rewrite::decrement_ttl::<A, P>(packet, link, parsed.ttl)?;
    if !packet.open(link, room, !outer_v4) {
        return Err(Reason::NoHeadroom);
    }
    let header = Header {
        source: backend.source,
        destination: backend.address,
        tos: parsed.tos,
        // The flow's hash spreads the tunnel over paths and queues (RFC 6438).
        label: (hash >> 44) as u32,
        protocol: if A::VERSION == 4 { INNER_V4 } else { INNER_V6 },
        payload: parsed.length,
    };
    if header.write(packet, link, outer_v4) {
        Ok(())
    } else {
        Err(Reason::NoHeadroom)
    }
}
