//! Pure: what is said to neighbours and heard from them, as bytes. Each frame is whole, Ethernet header first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    bytes::{Mac, V6},
    checksum::Delta,
};

use super::{Seat, Send, What};

const BROADCAST: Mac = [0xff; 6];
const NOBODY: Mac = [0; 6];

const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];

const REQUEST: u8 = 1;
const REPLY: u8 = 2;

const ICMPV6: u8 = 58;
/// `ICMPv6` types.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const LISTENER_REPORT: u8 = 143;

/// Option type: the target's MAC.
const TARGET_MAC: u8 = 2;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers that listen to reports (RFC 3810, section 5.2.14).
const ALL_REPORTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// The frames of one thing to say.
pub(super) fn frames(send: &Send) -> Vec<Vec<u8>> {
    let seat = &send.seat;
    match (send.address, send.what) {
        (IpAddr::V4(vip), What::Probe) => {
            vec![arp(REQUEST, seat.mac, Ipv4Addr::UNSPECIFIED, NOBODY, vip)]
        }
        // Both forms: there are hosts that listen to one of them only (RFC 5944, section 4.6).
        (IpAddr::V4(vip), What::Announce) => vec![
            arp(REQUEST, seat.mac, vip, NOBODY, vip),
            arp(REPLY, seat.mac, vip, seat.mac, vip),
        ],
        (IpAddr::V4(_), What::Report) => Vec::new(),
        (IpAddr::V6(vip), What::Probe) => vec![solicitation(seat.mac, vip)],
        (IpAddr::V6(vip), What::Announce) => vec![advertisement(seat.mac, vip)],
        (IpAddr::V6(vip), What::Report) => vec![report(seat, vip)],
    }
}

/// The MAC at which neighbours ask for an address (RFC 2464, section 7); None for IPv4, where they ask everyone.
pub fn group_mac(address: IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(multicast_mac(solicited_node(ip))),
    }
}

fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    V6::from(ip).solicited_node().to_bytes().into()
}

fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// RFC 826.
fn arp(operation: u8, own: Mac, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    [
        &BROADCAST[..],
        &own,
        &ARP,
        &[0, 1, 8, 0, 6, 4, 0, operation],
        &own,
        &sender.octets(),
        &target_mac,
        &target.octets(),
    ]
    .concat()
}

/// From no address to the target's group: a probe for duplicates (RFC 4862, section 5.4.2).
fn solicitation(own: Mac, target: Ipv6Addr) -> Vec<u8> {
    let body = [&[0; 4][..], &target.octets()].concat();
    let to = solicited_node(target);
    icmp(
        own,
        Ipv6Addr::UNSPECIFIED,
        to,
        255,
        &[],
        SOLICITATION,
        &body,
    )
}

/// Unsolicited, to be believed against what is known (RFC 4861, section 7.2.6).
fn advertisement(own: Mac, target: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: [u8; 4] = [0x20, 0, 0, 0];
    let body = [&OVERRIDE[..], &target.octets(), &[TARGET_MAC, 1], &own].concat();
    icmp(own, target, ALL_NODES, 255, &[], ADVERTISEMENT, &body)
}

/// "Packets to the group of `target` are wanted here, from any source" (RFC 3810, section 5.2).
fn report(seat: &Seat, target: Ipv6Addr) -> Vec<u8> {
    /// A hop-by-hop header with a router alert (RFC 2711), padded.
    const ROUTER_ALERT: [u8; 8] = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    const CHANGE_TO_EXCLUDE: u8 = 4;
    let body = [
        &[0, 0, 0, 1, CHANGE_TO_EXCLUDE, 0, 0, 0][..],
        &solicited_node(target).octets(),
    ]
    .concat();
    let source = seat.link_local.unwrap_or(Ipv6Addr::UNSPECIFIED);
    icmp(
        seat.mac,
        source,
        ALL_REPORTS,
        1,
        &ROUTER_ALERT,
        LISTENER_REPORT,
        &body,
    )
}

/// To a multicast group. `options`: a hop-by-hop header, or nothing.
fn icmp(
    own: Mac,
    from: Ipv6Addr,
    to: Ipv6Addr,
    hop_limit: u8,
    options: &[u8],
    kind: u8,
    body: &[u8],
) -> Vec<u8> {
    let length = 4 + body.len();
    let pseudo = [
        &from.octets()[..],
        &to.octets(),
        &(length as u32).to_be_bytes(),
        &[0, 0, 0, ICMPV6],
    ]
    .concat();
    let mut message = [&[kind, 0, 0, 0], body].concat();
    let check = checksum(&[&pseudo[..], &message].concat());
    message[2..4].copy_from_slice(&check);
    let first = if options.is_empty() { ICMPV6 } else { 0 };
    [
        &multicast_mac(to)[..],
        &own,
        &IPV6,
        &[0x60, 0, 0, 0],
        &((options.len() + length) as u16).to_be_bytes(),
        &[first, hop_limit],
        &from.octets(),
        &to.octets(),
        options,
        &message,
    ]
    .concat()
}

/// RFC 1071, as it lies in the packet. `bytes` is of even length.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let (words, _) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(Delta::default(), |sum, word| {
        sum.add(u16::from_ne_bytes(*word).into())
    });
    sum.checksum().to_ne_bytes()
}

/// The address that a frame claims for a MAC: an ARP reply's or announcement's sender, an advertisement's target.
pub(super) fn claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let (link, rest) = frame.split_at_checked(14)?;
    if link[12..] == ARP {
        let sender: Ipv4Addr = <[u8; 4]>::try_from(rest.get(14..18)?).ok()?.into();
        let target: Ipv4Addr = <[u8; 4]>::try_from(rest.get(24..28)?).ok()?.into();
        let of_ethernet = rest[..6] == [0, 1, 8, 0, 6, 4];
        let claims = rest[6..8] == [0, REPLY] || sender == target;
        let mac = rest[8..14].try_into().ok()?;
        return (of_ethernet && claims && !sender.is_unspecified()).then_some((sender.into(), mac));
    }
    if link[12..] != IPV6 || rest.get(6..8)? != [ICMPV6, 255] || rest.get(40)? != &ADVERTISEMENT {
        return None;
    }
    let target: Ipv6Addr = <[u8; 16]>::try_from(rest.get(48..64)?).ok()?.into();
    let mac = match rest.get(64..72) {
        Some([TARGET_MAC, 1, mac @ ..]) => mac,
        _ => &link[6..12],
    };
    Some((target.into(), mac.try_into().ok()?))
}
