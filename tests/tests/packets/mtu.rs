//! What does not fit: who is told, and what.

use std::net::IpAddr;

use super::{Kind, Packet, assert_checksums, ip, with_both};
use anyhow::Result;
use etherparse::{SlicedPacket, TransportSlice};
use lb_common::{
    abi::{NextHop, Reason},
    pipeline::Verdict,
};
use lb_tests::{
    both::{Both, Outcome},
    datagrams::{LINK, fragments, headers, is_v4},
    kernel::is_at_least,
};

/// Client, and VIPs of `ipip` and of `nat`.
const ENDS: [(&str, &str, &str); 2] = [
    ("198.51.100.8", "192.0.2.11", "192.0.2.10"),
    ("2001:db8:9::1", "2001:db8::11", "2001:db8::10"),
];

/// A TCP packet of `length` bytes from its network header on, with the don't-fragment bit as asked.
fn sized(both: &Both, packet: &Packet, length: usize, dont_fragment: bool) -> Vec<u8> {
    let headers = if packet.from.0.is_ipv4() { 40 } else { 60 };
    let mut frame = packet.long_frame(both, length - headers);
    if is_v4(&frame) {
        let (mut header, _) =
            etherparse::Ipv4Header::from_slice(&frame[LINK..]).expect("a whole header");
        header.dont_fragment = dont_fragment;
        header.header_checksum = header.calc_header_checksum();
        frame[LINK..LINK + 20].copy_from_slice(&header.to_bytes());
    }
    frame
}

/// Type, code and MTU of an answer, and the packet that it quotes.
fn told(frame: &[u8]) -> (u8, u8, u32, Vec<u8>) {
    let answer = SlicedPacket::from_ethernet(frame).expect("a whole packet");
    let (kind, code, word, quote) = match answer.transport.expect("ICMP") {
        TransportSlice::Icmpv4(icmp) => (
            icmp.type_u8(),
            icmp.code_u8(),
            icmp.bytes5to8(),
            icmp.payload().to_vec(),
        ),
        TransportSlice::Icmpv6(icmp) => (
            icmp.type_u8(),
            icmp.code_u8(),
            icmp.bytes5to8(),
            icmp.payload().to_vec(),
        ),
        other => panic!("{other:?}"),
    };
    (kind, code, u32::from_be_bytes(word), quote)
}

pub(super) fn assert_told(outcome: &Outcome, came: &[u8], mtu: u32) {
    assert_eq!(outcome.verdict, Verdict::Transmit);
    assert_eq!(outcome.reason(), Some(Reason::TooBig));
    assert_checksums(&outcome.frame);
    let (kind, code, said, quote) = told(&outcome.frame);
    let expected = if is_v4(came) { (3, 4) } else { (2, 0) };
    assert_eq!((kind, code, said), (expected.0, expected.1, mtu));
    assert_eq!(quote, came[LINK..LINK + quote.len()]);
    let start = headers(came);
    assert!(quote.len() >= start - LINK + 8, "ports are quoted");
    assert!(outcome.frame.len() <= 128 + LINK + 48, "not more than that");
    // From the VIP, back where it came from.
    assert_eq!(
        (&outcome.frame[..6], &outcome.frame[6..12]),
        (&came[6..12], &came[..6])
    );
    let (from, to) = if is_v4(came) {
        (26..30, 30..34)
    } else {
        (22..38, 38..54)
    };
    assert_eq!(outcome.frame[from.clone()], came[to.clone()]);
    assert_eq!(outcome.frame[to], came[from]);
}

/// Whether the MTU of the way to the outcome's backend is known: backend 9 is behind a route of the kernel's, which says
/// it since 5.12.
fn has_mtu(outcome: &Outcome) -> bool {
    outcome.backend() != Some(9) || is_at_least(5, 12)
}

/// Overhead of the way to the backend that the steps name.
fn overhead(outcome: &Outcome) -> usize {
    match outcome.backend() {
        Some(7 | 9) => 20,
        Some(8 | 10) => 40,
        other => panic!("{other:?} is no ipip backend"),
    }
}

#[test]
fn the_client_is_told_what_fits_a_tunnel() -> Result<()> {
    with_both(|both| {
        for (client, vip, _) in ENDS {
            let mut met = [0; 41];
            for port in 1024..1100 {
                let packet = Packet::new((client, port), (vip, 80), Kind::Ack);
                let small = both.run(&packet.frame(both))?;
                if !has_mtu(&small) {
                    continue;
                }
                let room = 1500 - overhead(&small);
                for dont_fragment in [true, false] {
                    let fits = both.run(&sized(both, &packet, room, dont_fragment))?;
                    assert_eq!(fits.verdict, small.verdict);
                    for length in [room + 1, 1500] {
                        let came = sized(both, &packet, length, dont_fragment);
                        let outcome = both.run(&came)?;
                        assert_told(&outcome, &came, room as u32);
                    }
                }
                met[overhead(&small)] += 1;
            }
            assert!(met[20] > 0 && met[40] > 0);
        }
        Ok(())
    })
}

#[test]
fn fragments_that_fit_no_tunnel_are_dropped_or_told() -> Result<()> {
    with_both(|both| {
        for (client, vip, _) in ENDS {
            for port in 1024..1040 {
                let packet = Packet::new((client, port), (vip, 53), Kind::Udp);
                let whole = packet.long_frame(both, 4000);
                let size = if is_v4(&whole) { 1480 } else { 1448 };
                let pieces = fragments(&whole, port.into(), size);
                let first = both.run(&pieces[0])?;
                if !has_mtu(&first) {
                    continue;
                }
                if is_v4(&whole) {
                    assert_eq!(first.verdict, Verdict::Drop(Reason::DoesNotFit));
                } else {
                    assert_told(&first, &pieces[0], 1500 - overhead(&first) as u32);
                }
                // The first went nowhere.
                let later = both.run(&pieces[1])?;
                assert_eq!(later.verdict, Verdict::Drop(Reason::FragmentUnknown));
                // One that may not be fragmented further, though it is a fragment.
                if is_v4(&whole) {
                    let mut frame = pieces[0].clone();
                    frame[20] |= 0x40;
                    let outcome = both.run(&frame)?;
                    assert_told(&outcome, &frame, 1500 - overhead(&outcome) as u32);
                }
                // A later one that is larger than its first.
                let id = 0x1000 + u32::from(port);
                both.run(&lb_tests::datagrams::fragment(&whole, id, 0..800, true))?;
                let large = lb_tests::datagrams::fragment(&whole, id, 800..800 + size, true);
                let large = both.run(&large)?;
                assert_eq!(large.verdict, Verdict::Drop(Reason::DoesNotFit));
            }
        }
        Ok(())
    })
}

#[test]
fn being_told_is_limited() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        (settings.reject_rate, settings.reject_burst) = (0, 0);
        both.set(settings)?;
        both.host.reject_tokens.set(0);
        for (client, vip, _) in ENDS {
            for port in 1024..1040 {
                let packet = Packet::new((client, port), (vip, 80), Kind::Ack);
                let outcome = both.run(&sized(both, &packet, 1500, true))?;
                if has_mtu(&outcome) {
                    assert_eq!(outcome.verdict, Verdict::Drop(Reason::RejectLimited));
                }
            }
        }
        Ok(())
    })
}

fn set_mtu(next: &mut NextHop, mtu: u16) {
    next.source = next.source & 0xffff_ffff_ffff | u64::from(mtu) << 48;
}

#[test]
fn the_client_is_told_before_a_neighbour_is_resolved() -> Result<()> {
    with_both(|both| {
        for id in [1, 2] {
            both.change_next_hop(id, |next| next.destination &= !NextHop::RESOLVED)?;
        }
        for (client, vip, _) in ENDS {
            for port in 1024..1060 {
                let packet = Packet::new((client, port), (vip, 80), Kind::Ack);
                let small = both.run(&packet.frame(both))?;
                if small.backend() != Some(9) {
                    assert_eq!(small.verdict, Verdict::Pass(Reason::HandedUp));
                }
                if !has_mtu(&small) {
                    continue;
                }
                let came = sized(both, &packet, 1500, true);
                assert_told(&both.run(&came)?, &came, 1500 - overhead(&small) as u32);
            }
        }
        Ok(())
    })
}

#[test]
fn nobody_is_told_less_than_the_minimum() -> Result<()> {
    with_both(|both| {
        for id in [1, 2] {
            both.change_next_hop(id, |next| set_mtu(next, 1300))?;
        }
        let (client, vip, _) = ENDS[1];
        for port in 1024..1060 {
            let packet = Packet::new((client, port), (vip, 80), Kind::Ack);
            let small = both.run(&packet.frame(both))?;
            if !has_mtu(&small) {
                continue;
            }
            let room = match small.backend() {
                Some(9) => 1480,
                _ => 1300 - overhead(&small),
            };
            let came = sized(both, &packet, 1500, true);
            assert_told(&both.run(&came)?, &came, room.max(1280) as u32);
            let least = both.run(&sized(both, &packet, 1280, true))?;
            let dropped = least.verdict == Verdict::Drop(Reason::DoesNotFit);
            assert_eq!(dropped, room < 1280, "{room}");
        }
        Ok(())
    })
}

#[test]
fn under_nat_the_way_to_the_backend_counts() -> Result<()> {
    with_both(|both| {
        for id in [1, 2] {
            both.change_next_hop(id, |next| set_mtu(next, 1400))?;
        }
        for (client, _, vip) in ENDS {
            let mut met = 0;
            // Ever other clients: the IPv6 service has affinity.
            let network = &client[..client.len() - 1];
            for number in 1..40 {
                let client = format!("{network}{number}");
                let packet = Packet::new((&client, 1024), (vip, 443), Kind::Syn);
                let small = both.run(&packet.frame(both))?;
                let narrow = matches!(small.backend(), Some(1 | 2 | 4 | 5));
                if !narrow {
                    continue;
                }
                met += 1;
                let packet = Packet {
                    kind: Kind::Ack,
                    ..packet
                };
                let fits = both.run(&sized(both, &packet, 1400, true))?;
                assert_eq!(fits.verdict, small.verdict);
                let came = sized(both, &packet, 1401, true);
                assert_told(&both.run(&came)?, &came, 1400);
            }
            assert!(met > 5);
        }
        Ok(())
    })
}

#[test]
fn errors_are_never_answered_with_errors() -> Result<()> {
    with_both(|both| {
        for id in [1, 2] {
            both.change_next_hop(id, |next| set_mtu(next, 100))?;
        }
        for (client, vip, _) in ENDS {
            let v4 = ip(client).is_ipv4();
            let teller: IpAddr = ip(if v4 { "203.0.113.9" } else { "2001:db8:77::9" });
            for port in 1024..1040 {
                let packet = Packet::new((vip, 80), (client, port), Kind::Ack);
                let message = lb_tests::datagrams::Message {
                    kind: if v4 { 3 } else { 1 },
                    code: 1,
                    word: 0,
                };
                let macs = [[2, 0, 0, 0, 0, 1], both.uplinks[0].0];
                let sent = packet.long_frame(both, 200);
                let came = lb_tests::datagrams::about(&sent, macs, teller, message, 128);
                let outcome = both.run(&came)?;
                if outcome.backend() != Some(9) {
                    assert_eq!(outcome.verdict, Verdict::Drop(Reason::DoesNotFit));
                }
            }
        }
        Ok(())
    })
}
