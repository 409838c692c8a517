//! Path MTU (RFC 1191, RFC 8201): a packet that does not fit behind an outer header, or the way to its backend, is
//! answered from the VIP's address with what fits. IPv4 packets that may be fragmented are answered as well, because
//! nothing here fragments; Linux and others heed that.

use super::{
    FamilyScratch, Path, Step, Verdict,
    parse::{ICMP, ICMP_LEN, ICMPV6, IPV4_LEN, IPV6_LEN, Layout, Parsed},
    reject, tunnel,
};
use crate::{
    abi::{Backend, Mode, Reason},
    checksum::Delta,
    packet::Packet,
    tables::{Home, Tables},
};

/// Type 3, code 4 (RFC 792, RFC 1191) and type 2, code 0 (RFC 4443, section 3.2), as loaded.
const TOO_BIG_V4: u16 = u16::from_ne_bytes([3, 4]);
const TOO_BIG_V6: u16 = u16::from_ne_bytes([2, 0]);

/// Bytes that are quoted at most: a packet whose transport header lies deeper is not answered.
const MAX_QUOTE: u32 = 128;

/// The don't-fragment bit, and more-fragments with the offset (RFC 791, section 3.1).
const DONT_FRAGMENT: u16 = 0x4000;
const IS_FRAGMENT: u16 = 0x3fff;

/// The largest packet that fits an MTU of `mtu` on the way to `backend`.
#[inline(always)]
pub(crate) fn within<A: Layout>(mtu: u32, backend: &Backend) -> u32 {
    mtu.saturating_sub(room::<A>(backend))
}

/// What a packet grows by on the way to `backend`.
#[inline(always)]
fn room<A: Layout>(backend: &Backend) -> u32 {
    let outer_v4 = backend.address.is_v4();
    if backend.mode == Mode::Dsr as u8 {
        tunnel::room(outer_v4, A::VERSION == 4)
    } else if backend.mode != Mode::Ipip as u8 {
        0
    } else if outer_v4 {
        IPV4_LEN
    } else {
        IPV6_LEN
    }
}

/// Whether a packet that is to be handed up would not fit there either: the client can be told in the driver only. Sets
/// `scratch.fits`.
#[inline(always)]
pub(crate) fn is_too_big_for_tc<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    backend: &Backend,
) -> bool {
    if room::<A>(backend) == 0 || backend.next_hop == 0 {
        return false;
    }
    let Some(next) = path.tables.next_hop(backend.next_hop) else {
        return false;
    };
    scratch.fits = within::<A>(u32::from(next.mtu()), backend);
    u32::from(scratch.parsed.length) > scratch.fits
}

/// Tells the client that `scratch.fits` bytes fit, quoting what it needs to know its packet by: the headers and 8 bytes
/// of the transport's (RFC 792; RFC 4443, section 2.4, would have as much as fits in 1280 bytes, which is more than
/// anyone needs and more than an answer to a spoofed packet should have).
#[inline(never)]
pub(crate) fn tell<A: Layout, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
) -> u64 {
    let (parsed, frontend) = (&scratch.parsed, scratch.frontend.id);
    if path.tables.home() == Home::Tc {
        // Has been answered in the driver.
        return Verdict::NotOurs.pack();
    }
    // No one sends less than the minimum.
    let mtu = scratch.fits.max(A::MINIMUM_MTU);
    if u32::from(parsed.length) <= mtu || is_free_fragment::<A, P>(packet, parsed.link.length) {
        return path.end(frontend, Reason::DoesNotFit).pack();
    }
    let quote = parsed.l4 - parsed.link.length + 8;
    if let Err(reason) = reject::owed(path, parsed, quote <= MAX_QUOTE) {
        return path.end(frontend, reason).pack();
    }
    if write(packet, parsed, mtu, quote).is_none() {
        return path.end(frontend, Reason::NoHeadroom).pack();
    }
    path.tables.trace(Step::Fits { mtu });
    path.tables.count_reason(frontend, Reason::TooBig);
    Verdict::Transmit.pack()
}

/// A fragment that the sender lets anyone fragment further: it has no use for being told.
#[inline(always)]
fn is_free_fragment<A: Layout, P: Packet>(packet: &P, l3: u32) -> bool {
    if A::VERSION == 6 {
        return false;
    }
    let field = u16::from_be(packet.read(l3 + 6).unwrap_or(0));
    field & IS_FRAGMENT != 0 && field & DONT_FRAGMENT == 0
}

#[inline(always)]
fn write<A: Layout, P: Packet>(
    packet: &mut P,
    parsed: &Parsed<A>,
    mtu: u32,
    quote: u32,
) -> Option<()> {
    let link = parsed.link.length;
    let room = A::HEADER + ICMP_LEN;
    if !packet.open(link, room, A::VERSION == 6) {
        return None;
    }
    let (protocol, first, mtu) = if A::VERSION == 4 {
        (ICMP, TOO_BIG_V4, (mtu & 0xffff).to_be())
    } else {
        (ICMPV6, TOO_BIG_V6, mtu.to_be())
    };
    let length = (ICMP_LEN + quote) as u16;
    let mut sum = if A::VERSION == 4 {
        Delta::default()
    } else {
        reject::pseudo_header(parsed, protocol, length)
    }
    .add(u32::from(first))
    .add(mtu);
    let mut at = 0;
    while at < MAX_QUOTE {
        // Headers are multiples of four bytes.
        if at >= quote {
            break;
        }
        sum = sum.add(packet.read(link + room + at)?);
        at += 4;
    }
    let icmp: [u32; 2] = [u32::from(first) | u32::from(sum.checksum()) << 16, mtu];
    reject::headers(packet, parsed, protocol, length)?;
    (packet.write(link + A::HEADER, &icmp) && packet.cut(link + room + quote)).then_some(())
}
