//! VLAN tags: those of a frame as a [`Segment`]'s word, and another word's in their place.

use super::{
    Path, egress,
    parse::{ETH, QINQ, TAG, VLAN},
};
use crate::{
    abi::{Reason, Segment, TAG_PRESENT, TAG_SERVICE, tag},
    packet::Packet,
    tables::Tables,
};

impl<T: Tables> Path<'_, T> {
    /// The interface by which the stack would see the frame come in, whose link header has `link` bytes.
    #[inline(always)]
    pub(crate) fn arrival<P: Packet>(&self, packet: &P, link: u32) -> u32 {
        self.tables.interface(&Segment {
            ifindex: packet.ingress(),
            tags: of(packet, link),
        })
    }
}

/// The tags of a frame whose link header has `link` bytes.
#[inline(always)]
pub(crate) fn of<P: Packet>(packet: &P, link: u32) -> u32 {
    let mut tags = 0;
    if link != ETH {
        if link != ETH + TAG {
            tags = read(packet, ETH + TAG - 2);
        }
        tags = tags << 16 | read(packet, ETH - 2);
    }
    match packet.stripped() {
        0 => tags,
        outer => tags << 16 | outer,
    }
}

/// The tag whose type is at `offset`.
#[inline(always)]
fn read<P: Packet>(packet: &P, offset: u32) -> u32 {
    let word: u32 = packet.read(offset).unwrap_or(0);
    tag(
        u16::from_be((word >> 16) as u16),
        word & 0xffff == u32::from(QINQ),
    )
}

/// The bytes of the tag in the low half of a word, as loaded; priority 0.
#[inline(always)]
const fn bytes(tag: u32) -> u32 {
    let kind = if tag & TAG_SERVICE != 0 { QINQ } else { VLAN };
    kind as u32 | ((tag as u16 & 0xfff).to_be() as u32) << 16
}

/// Gives a frame whose link header has `link` bytes other tags, unless it has them; [`egress::OK`] or a reason. The MACs
/// are still to be written.
#[inline(never)]
pub(crate) fn change<P: Packet>(packet: &mut P, link: u32, tags: u32) -> u64 {
    if of(packet, link) == tags {
        return egress::OK;
    }
    let count = (tags & TAG_PRESENT) / TAG_PRESENT + (tags >> 16 & TAG_PRESENT) / TAG_PRESENT;
    let Some(ether_type) = packet.read::<u16>(link - 2) else {
        return Reason::Malformed as u64;
    };
    if !packet.resize_link(link, ETH + TAG * count) {
        return Reason::NoHeadroom as u64;
    }
    let (outer, inner) = (bytes(tags), bytes(tags >> 16));
    let written = match count {
        0 => packet.write(ETH - 2, &ether_type),
        1 => packet.write(ETH - 2, &outer) && packet.write(ETH + TAG - 2, &ether_type),
        _ => packet.write(ETH - 2, &[outer, inner]) && packet.write(ETH + 2 * TAG - 2, &ether_type),
    };
    if written {
        egress::OK
    } else {
        Reason::NoHeadroom as u64
    }
}
