//! What a backend of this node offers its clients to send at once (TCP's MSS option, RFC 9293, section 3.7.1). They may
//! send it by way of another node, whose tunnel takes room; those that heed this need not be told by ICMP.

use super::{
    FamilyScratch, Path,
    parse::{Layout, tcp_flag},
    tunnel,
};
use crate::{abi::Reason, checksum::Delta, packet::Packet, tables::Tables};

/// Bytes of the TCP header without options, and where in it stand its length and the checksum.
const TCP_LEN: u32 = 20;
const OFFSET: u32 = 12;
const CHECK: u32 = 16;

/// Kinds of options (RFC 9293, section 3.1), and the length of an MSS.
const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
const MSS_LEN: u8 = 4;

/// Options that are looked at: systems write the MSS first.
const MOST_OPTIONS: u32 = 10;

/// Lowers the MSS in the SYN of a connection to what fits a tunnel of whichever family between nodes.
#[inline(always)]
pub(crate) fn clamp<A: Layout, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> Result<(), Reason> {
    let (parsed, mtu) = (&scratch.parsed, path.settings.mtu);
    if mtu == 0 || parsed.tuple_is_udp() || parsed.flags & tcp_flag::SYN == 0 {
        return Ok(());
    }
    let most = mtu.saturating_sub(tunnel::room(false, A::VERSION == 4) + A::HEADER + TCP_LEN);
    let most = most.min(u32::from(u16::MAX)) as u16;
    let Some((at, offered)) = find(packet, parsed.l4, &mut scratch.option) else {
        return Ok(());
    };
    if u16::from_be(offered) <= most {
        return Ok(());
    }
    let lower = most.to_be();
    // One's-complement sums are of words that begin at even offsets.
    let change = if (at - parsed.l4) % 2 == 0 {
        Delta::default().replace16(offered, lower)
    } else {
        Delta::default().replace16(offered.swap_bytes(), lower.swap_bytes())
    };
    let none = Delta::default();
    if packet.write(at, &lower) && packet.patch_l4(parsed.l4 + CHECK, false, none, change) {
        Ok(())
    } else {
        Err(Reason::NoHeadroom)
    }
}

/// Where the value of the MSS stands in the TCP header at `l4`, and the value as loaded. `at` is memory that the verifier
/// does not follow: each option has two lengths for it, and ten of them a thousand.
#[inline(always)]
fn find<P: Packet>(packet: &P, l4: u32, at: &mut u32) -> Option<(u32, u16)> {
    let [length] = packet.read::<[u8; 1]>(l4 + OFFSET)?;
    let end = u32::from(length >> 4) * 4;
    *at = TCP_LEN;
    let mut seen = 0;
    while seen < MOST_OPTIONS && *at + u32::from(MSS_LEN) <= end {
        let [kind, length] = packet.read::<[u8; 2]>(l4 + *at)?;
        if kind == MSS && length == MSS_LEN {
            let at = l4 + *at + 2;
            return Some((at, packet.read::<u16>(at)?));
        }
        if kind == END || kind != NOTHING && length < 2 {
            return None;
        }
        *at += if kind == NOTHING {
            1
        } else {
            u32::from(length)
        };
        seen += 1;
    }
    None
}
