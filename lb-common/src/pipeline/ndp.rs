//! Neighbour solicitations for announced VIPs (RFC 4861, section 7.2): answered with an advertisement that names the MAC
//! of the interface they came in by. Others' probes for duplicate addresses (RFC 4862, section 5.4) are answered to all.

use super::{
    GRANTED, MAC, NOT_ANNOUNCED, Path, Step, Verdict, classify,
    parse::{ICMPV6, IPV6, IPV6_LEN, Link},
};
use crate::{
    abi::{AnnouncedKey, Reason},
    bytes::{Address as _, Macs, V6},
    checksum::Delta,
    packet::Packet,
    tables::{Home, Tables},
};

/// `ICMPv6` types.
pub(crate) const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Bytes of a solicitation without options, and of an advertisement with the one that it has.
const SOLICITATION_LEN: u32 = 24;
const ADVERTISEMENT_LEN: u32 = 32;

/// Units of 8 bytes that a solicitation has at most; longer ones (SEND, RFC 3971) are left to the stack.
const MOST_UNITS: u32 = 16;

/// Bits of the advertisement's flags (RFC 4861, section 4.4), as loaded.
const SOLICITED: u32 = u32::from_ne_bytes([0x40, 0, 0, 0]);
const OVERRIDE: u32 = u32::from_ne_bytes([0x20, 0, 0, 0]);

/// Option types: the sender's and the target's MAC.
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;

const ALL_NODES: V6 = V6([u32::from_ne_bytes([0xff, 2, 0, 0]), 0, 0, 1_u32.to_be()]);
/// 33:33:00:00:00:01 (RFC 2464, section 7), in the first six bytes.
const ALL_NODES_MAC: u64 = u64::from_le_bytes([0x33, 0x33, 0, 0, 0, 1, 0, 0]);

/// Answers a solicitation whose `ICMPv6` header follows the IPv6 header at once.
#[inline(never)]
pub(crate) fn answer<P: Packet, T: Tables>(packet: &mut P, path: &Path<'_, T>, link: &Link) -> u64 {
    if path.tables.home() == Home::Tc {
        // Has been answered in the driver.
        return Verdict::NotOurs.pack();
    }
    let l3 = link.length;
    let Some(header) = packet.read::<[u32; 10]>(l3) else {
        return Verdict::NotOurs.pack();
    };
    let Some(target) = packet.read::<[u32; 4]>(l3 + IPV6_LEN + 8) else {
        return Verdict::NotOurs.pack();
    };
    let target = V6(target);
    let source = V6([header[2], header[3], header[4], header[5]]);
    let destination = V6([header[6], header[7], header[8], header[9]]);
    // Payload length, next header, hop limit.
    let [high, low, _, hop_limit] = header[1].to_ne_bytes();
    let length = u32::from(high) << 8 | u32::from(low);
    let valid = hop_limit == 255 && is_valid(packet, l3, length, &source, &destination);
    let key = AnnouncedKey {
        ifindex: path.arrival(packet, link.length),
        address: target,
    };
    let asked = path.asked(&key, &link.macs, valid);
    if asked == NOT_ANNOUNCED {
        return if classify::is_vip(path, destination) {
            path.end(0, Reason::Icmp).pack()
        } else {
            Verdict::NotOurs.pack()
        };
    }
    if !valid {
        return path.end(0, Reason::Malformed).pack();
    }
    if asked & GRANTED == 0 {
        return path.end(0, Reason::RejectLimited).pack();
    }
    let own = asked;
    path.tables.trace(Step::Announced {
        address: target.to_addr(),
        mac: own & MAC,
    });
    let unknown = source == V6::default();
    let to = if unknown { ALL_NODES } else { source };
    let macs = if unknown {
        Macs::from_words(ALL_NODES_MAC, own)
    } else {
        link.macs.back_from(own)
    };
    // Made as long as the advertisement is: at the front, where there is always room.
    let sized = if length == SOLICITATION_LEN {
        packet.open(l3, ADVERTISEMENT_LEN - SOLICITATION_LEN, true)
    } else {
        true
    };
    let written = sized
        && advertise(packet, l3, &target, &to, own, !unknown)
        && packet.cut(l3 + IPV6_LEN + ADVERTISEMENT_LEN)
        && packet.write(0, macs.as_header());
    path.answered(written).pack()
}

/// The checks of RFC 4861, section 7.1.1, but for the hop limit and the code. `length`: of the `ICMPv6` message.
#[inline(always)]
fn is_valid<P: Packet>(packet: &P, l3: u32, length: u32, source: &V6, destination: &V6) -> bool {
    let units = length / 8;
    if !length.is_multiple_of(8) || !(SOLICITATION_LEN / 8..=MOST_UNITS).contains(&units) {
        return false;
    }
    let mut sum = Delta::default()
        .add((length as u16).to_be().into())
        .add(u16::from(ICMPV6).to_be().into());
    let mut word = 0;
    while word < 4 {
        sum = sum.add(source.0[word]).add(destination.0[word]);
        word += 1;
    }
    let mut names_mac = false;
    // Units left of the option at hand.
    let mut left = 0;
    let mut unit = 0;
    while unit < MOST_UNITS {
        if unit == units {
            break;
        }
        let Some(words) = packet.read::<[u32; 2]>(l3 + IPV6_LEN + unit * 8) else {
            return false;
        };
        sum = sum.add(words[0]).add(words[1]);
        if unit == 0 {
            let [_, code, _, _] = words[0].to_ne_bytes();
            if code != 0 {
                return false;
            }
        }
        if unit >= SOLICITATION_LEN / 8 {
            if left == 0 {
                let [kind, size, _, _] = words[0].to_ne_bytes();
                if size == 0 {
                    return false;
                }
                names_mac |= kind == SOURCE_MAC;
                left = u32::from(size);
            }
            left -= 1;
        }
        unit += 1;
    }
    let unknown = *source == V6::default();
    let solicited_node = destination.0[0] == u32::from_ne_bytes([0xff, 2, 0, 0])
        && destination.0[1] == 0
        && destination.0[2] == 1_u32.to_be()
        && destination.0[3] & 0xff == 0xff;
    let multicast = source.0[0] & 0xff == 0xff;
    left == 0 && sum.checksum() == 0 && !multicast && (!unknown || (solicited_node && !names_mac))
}

/// Writes EtherType, IPv6 header and the advertisement.
#[inline(always)]
fn advertise<P: Packet>(
    packet: &mut P,
    l3: u32,
    target: &V6,
    to: &V6,
    own: u64,
    solicited: bool,
) -> bool {
    let [t0, t1, t2, t3] = target.0;
    let [d0, d1, d2, d3] = to.0;
    let length = ADVERTISEMENT_LEN as u8;
    let header = [
        u32::from_ne_bytes([0x60, 0, 0, 0]),
        u32::from_ne_bytes([0, length, ICMPV6, 255]),
        t0,
        t1,
        t2,
        t3,
        d0,
        d1,
        d2,
        d3,
    ];
    let flags = if solicited {
        SOLICITED | OVERRIDE
    } else {
        OVERRIDE
    };
    let first = u32::from(ADVERTISEMENT);
    let option = [
        u32::from(u16::from_ne_bytes([TARGET_MAC, 1])) | (own as u32) << 16,
        (own >> 16) as u32,
    ];
    // The target stands in the pseudo-header (as the source) and in the message.
    let mut sum = Delta::default()
        .add(u16::from(length).to_be().into())
        .add(u16::from(ICMPV6).to_be().into())
        .add(first)
        .add(flags)
        .add(option[0])
        .add(option[1]);
    let mut word = 0;
    while word < 4 {
        sum = sum.add(target.0[word]).add(target.0[word]).add(to.0[word]);
        word += 1;
    }
    let first = first | u32::from(sum.checksum()) << 16;
    let message = [first, flags, t0, t1, t2, t3, option[0], option[1]];
    packet.write(l3 - 2, &IPV6)
        && packet.write(l3, &header)
        && packet.write(l3 + IPV6_LEN, &message)
}
