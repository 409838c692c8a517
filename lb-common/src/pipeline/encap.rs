//! `ipip`: an outer IPv4 or IPv6 header in front of the packet (RFC 2003, RFC 2473), DSCP and ECN copied to it
//! (RFC 6040, section 4.1, normal mode).

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{
    FamilyScratch, Path, Step,
    parse::{IPV4, IPV4_LEN, IPV6, IPV6_LEN, Layout},
    rewrite,
};
use crate::{
    abi::{Backend, Reason},
    bytes::{Address as _, Be16, V4, V6},
    checksum::Delta,
    packet::{Packet, Typed},
    tables::{Home, Tables},
};

/// IP protocol numbers of an inner IPv4 and IPv6 packet.
const INNER_V4: u8 = 4;
const INNER_V6: u8 = 41;

/// TTL of the outer header (the default of RFC 1700).
pub(crate) const OUTER_TTL: u8 = 64;

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
    // What reaches tc was seen to fit in the driver, and may be several packets in one by now.
    if path.tables.home() == Home::Xdp && u32::from(parsed.length) + room > scratch.exit.mtu {
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
    let inner = if A::VERSION == 4 { INNER_V4 } else { INNER_V6 };
    let written = if outer_v4 {
        let header = outer4(
            V4::from_addr(&backend.source),
            V4::from_addr(&backend.address),
            parsed.tos,
            parsed.length + IPV4_LEN as u16,
            inner,
        );
        packet.write(
            link - 2,
            &Typed {
                ether_type: IPV4,
                header,
            },
        )
    } else {
        // The flow's hash as label spreads the tunnel over paths and queues (RFC 6438).
        let label = (hash >> 44) as u32;
        let header = Ipv6Hdr {
            vcf: (6 << 28 | u32::from(parsed.tos) << 20 | label).to_be_bytes(),
            payload_len: parsed.length.to_be_bytes(),
            next_hdr: inner,
            hop_limit: OUTER_TTL,
            src_addr: V6::from_addr(&backend.source).to_bytes(),
            dst_addr: V6::from_addr(&backend.address).to_bytes(),
        };
        packet.write(
            link - 2,
            &Typed {
                ether_type: IPV6,
                header,
            },
        )
    };
    if written {
        Ok(())
    } else {
        Err(Reason::NoHeadroom)
    }
}

/// An IPv4 header without options, don't-fragment set (so its id is of no use, RFC 6864).
#[inline(always)]
pub(crate) fn outer4(source: V4, destination: V4, tos: u8, length: u16, protocol: u8) -> Ipv4Hdr {
    let mut header = Ipv4Hdr {
        vihl: 0x45,
        tos,
        tot_len: length.to_be_bytes(),
        id: [0; 2],
        frags: [0x40, 0],
        ttl: OUTER_TTL,
        proto: protocol,
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
