//! Fragments: what follows what, and what is none.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use etherparse::{IpFragOffset, IpNumber, Ipv6FragmentHeader};
use lb_common::{abi::Reason, pipeline::Verdict};
use lb_tests::{
    both::{Both, Outcome},
    datagrams::{LINK, fragment, fragments, headers, is_v4, reassembled},
};

use super::{
    Kind, Packet, assert_checksums,
    stateful::{answer, begin, ends, establish, state},
    with_both,
};

/// Client, frontend and kind of a packet that is long enough for three fragments; all modes, both families.
const DATAGRAMS: [(&str, (&str, u16), Kind); 8] = [
    ("198.51.100.8", ("192.0.2.10", 53), Kind::Udp),
    ("2001:db8:9::1", ("2001:db8::10", 53), Kind::Udp),
    ("198.51.100.8", ("192.0.2.10", 443), Kind::Syn),
    ("2001:db8:9::1", ("2001:db8::10", 443), Kind::Syn),
    ("198.51.100.8", ("192.0.2.11", 53), Kind::Udp),
    ("2001:db8:9::1", ("2001:db8::11", 53), Kind::Udp),
    ("198.51.100.8", ("192.0.2.12", 80), Kind::Ack),
    ("2001:db8:9::1", ("2001:db8::12", 80), Kind::Ack),
];

/// What an `ipip` frame has in front of the packet.
fn outer(outcome: &Outcome, came: &[u8]) -> usize {
    outcome.frame.len() - came.len()
}

fn ttl_at(frame: &[u8]) -> usize {
    if is_v4(frame) { LINK + 8 } else { LINK + 7 }
}

/// A10.5
#[test]
fn fragments_of_a_datagram_take_one_way() -> Result<()> {
    with_both(|both| {
        let (mut met, mut handed) = (0, 0);
        for (number, (client, vip, kind)) in (0_u32..).zip(DATAGRAMS) {
            for port in 2000..2040 {
                let packet = Packet::new((client, port), vip, kind);
                let whole = packet.long_frame(both, 3000);
                let pieces = fragments(&whole, number << 8 | u32::from(port), 1400);
                assert_eq!(pieces.len(), 3);
                let first = both.run(&pieces[0])?;
                if let Verdict::Drop(reason) = first.verdict {
                    assert_eq!(reason, Reason::NoRoute);
                    continue;
                }
                let mut left = vec![first.frame.clone()];
                for piece in &pieces[1..] {
                    let later = both.run(piece)?;
                    assert_eq!(later.verdict, first.verdict, "{packet:?}");
                    left.push(later.frame.clone());
                    if first.verdict == Verdict::Pass(Reason::HandedUp) {
                        assert_eq!(later.frame, *piece, "unchanged");
                    } else {
                        assert_eq!(outer(&later, piece), outer(&first, &pieces[0]));
                        assert_eq!(later.frame[..LINK], first.frame[..LINK]);
                    }
                }
                if first.verdict == Verdict::Pass(Reason::HandedUp) {
                    handed += 1;
                    continue;
                }
                met += 1;
                let added = outer(&first, &pieces[0]);
                for (frame, piece) in left.iter_mut().zip(&pieces) {
                    let outer: Vec<_> = frame.drain(LINK..LINK + added).collect();
                    if added > 0 {
                        // An outer header says how long its packet is.
                        let length = if outer[0] >> 4 == 4 {
                            usize::from(u16::from_be_bytes([outer[2], outer[3]])) - added
                        } else {
                            usize::from(u16::from_be_bytes([outer[4], outer[5]]))
                        };
                        assert_eq!(length, piece.len() - LINK);
                    }
                    frame[12..LINK].copy_from_slice(&piece[12..LINK]);
                }
                let arrived = reassembled(&left);
                assert_checksums(&arrived);
                let start = headers(&whole);
                assert_eq!(arrived[start + 20..], whole[start + 20..], "payload");
                if vip.0.ends_with("10") {
                    assert_eq!(ends(&arrived).1.port(), 8080);
                } else {
                    assert_eq!(arrived[start..], whole[start..], "nothing translated");
                }
                let hops = u8::from(!vip.0.ends_with("12"));
                assert_eq!(arrived[ttl_at(&whole)], whole[ttl_at(&whole)] - hops);
            }
        }
        assert!(met > 100 && handed > 3, "{met} went, {handed} went up");
        Ok(())
    })
}

#[test]
fn fragments_of_a_backends_reply_reach_the_client() -> Result<()> {
    with_both(|both| {
        for flow in [
            ("198.51.100.8", "192.0.2.10"),
            ("2001:db8:9::1", "2001:db8::10"),
        ] {
            let (port, there) = begin(both, flow, 1024, Kind::Udp)?;
            let reply = answer(&there.frame, Kind::Udp).long_frame(both, 4000);
            let mut left = Vec::new();
            for piece in fragments(&reply, 77, 1400) {
                let outcome = both.run(&piece)?;
                assert_eq!(outcome.verdict, Verdict::Transmit);
                assert_eq!(&outcome.frame[..6], [2, 0, 0, 0, 0, 0xfe]);
                left.push(outcome.frame);
            }
            let arrived = reassembled(&left);
            assert_checksums(&arrived);
            let (from, to) = ends(&arrived);
            assert_eq!((from.ip().to_string().as_str(), from.port()), (flow.1, 53));
            assert_eq!((to.ip().to_string().as_str(), to.port()), (flow.0, port));
            let start = headers(&reply);
            assert_eq!(arrived[start + 8..], reply[start + 8..]);
        }
        Ok(())
    })
}

/// Two fragments of a datagram to an `ipip` service.
fn two(both: &Both, vip: usize, id: u32) -> Vec<Vec<u8>> {
    let (client, vip, kind) = DATAGRAMS[vip];
    fragments(
        &Packet::new((client, 3000), vip, kind).long_frame(both, 1600),
        id,
        1400,
    )
}

const IPIP: [usize; 2] = [4, 5];

/// A10.5
#[test]
fn a_later_fragment_before_its_first_is_dropped() -> Result<()> {
    with_both(|both| {
        for vip in IPIP {
            let pieces = two(both, vip, 5);
            let early = both.run(&pieces[1])?;
            assert_eq!(early.verdict, Verdict::Drop(Reason::FragmentUnknown));
            let first = both.run(&pieces[0])?;
            let later = both.run(&pieces[1])?;
            assert_eq!(later.verdict, first.verdict);
            // Neither another datagram nor another client follows it.
            let other = both.run(&two(both, vip, 6)[1])?;
            assert_eq!(other.verdict, Verdict::Drop(Reason::FragmentUnknown));
            let mut stranger = pieces[1].clone();
            let source = if is_v4(&stranger) { 29 } else { 37 };
            stranger[source] ^= 1;
            let stranger = both.run(&stranger)?;
            assert_eq!(stranger.verdict, Verdict::Drop(Reason::FragmentUnknown));
        }
        Ok(())
    })
}

#[test]
fn a_first_fragment_is_forgotten_after_half_a_minute() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        settings.hz = 0;
        both.set(settings)?;
        for vip in IPIP {
            let pieces = two(both, vip, 7);
            both.place.inject(&pieces[0], both.uplinks[0].1)?;
            // The clock of this test has no seconds: the kernel's next tick is the end of any.
            let deadline = Instant::now() + Duration::from_secs(5);
            while both.place.inject(&pieces[1], both.uplinks[0].1)?.0 != 1 {
                ensure!(Instant::now() < deadline, "never forgotten");
            }
            // The host counts what the kernel counted.
            *both
                .host
                .reasons
                .borrow_mut()
                .entry((0, Reason::FragmentUnknown))
                .or_default() += 1;
        }
        let pieces = two(both, IPIP[0], 8);
        both.host.now = 100;
        let mut frame = lb_common::sim::Frame {
            bytes: pieces[0].clone(),
            ingress: both.uplinks[0].1,
        };
        let mut scratch = lb_common::pipeline::Scratch::default();
        lb_common::pipeline::process(&mut frame, &both.host, &settings, &mut scratch);
        both.host.now = 101;
        let outcome = both.run(&pieces[1])?;
        assert_eq!(outcome.verdict, Verdict::Drop(Reason::FragmentUnknown));
        Ok(())
    })
}

#[test]
fn a_fragment_that_overlaps_the_first_is_dropped() -> Result<()> {
    with_both(|both| {
        for vip in IPIP {
            let (client, to, kind) = DATAGRAMS[vip];
            let whole = Packet::new((client, 3000), to, kind).long_frame(both, 1600);
            let first = both.run(&fragment(&whole, 9, 0..800, true))?;
            for (part, more) in [(8..16, true), (8..1608, false), (792..1600, true)] {
                let overlaps = both.run(&fragment(&whole, 9, part, more))?;
                assert_eq!(overlaps.verdict, Verdict::Drop(Reason::FragmentOverlap));
            }
            let last = both.run(&fragment(&whole, 9, 800..1608, false))?;
            assert_eq!(last.verdict, first.verdict);
        }
        Ok(())
    })
}

#[test]
fn a_first_fragment_without_its_whole_transport_header_is_dropped() -> Result<()> {
    with_both(|both| {
        for (client, vip, kind) in DATAGRAMS {
            let whole = Packet::new((client, 3000), vip, kind).long_frame(both, 200);
            let least = if kind == Kind::Udp { 8 } else { 24 };
            for length in [8, 16, 24] {
                let outcome = both.run(&fragment(&whole, 10, 0..length, true))?;
                let tiny = outcome.verdict == Verdict::Drop(Reason::FragmentTiny);
                assert_eq!(tiny, length < least, "{length} bytes of {kind:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn impossible_fragments_are_dropped() -> Result<()> {
    with_both(|both| {
        for vip in IPIP {
            let (client, to, kind) = DATAGRAMS[vip];
            let whole = Packet::new((client, 3000), to, kind).long_frame(both, 1600);
            both.run(&fragment(&whole, 11, 0..800, true))?;
            // One that is not a multiple of 8 bytes and not the last, an empty one, a cut one.
            let mut cut = fragment(&whole, 11, 800..1600, true);
            cut.truncate(cut.len() - 1);
            // And one that ends beyond the largest datagram.
            let mut beyond = fragment(&whole, 11, 800..1600, true);
            let at = if is_v4(&beyond) {
                20
            } else {
                headers(&beyond) + 2
            };
            let field: u16 = if is_v4(&beyond) { 0x1fff } else { 0xfff8 };
            beyond[at..at + 2].copy_from_slice(&field.to_be_bytes());
            for frame in [
                fragment(&whole, 11, 800..1205, true),
                fragment(&whole, 11, 800..800, false),
                cut,
                beyond,
            ] {
                let outcome = both.run(&frame)?;
                assert_eq!(outcome.verdict, Verdict::Drop(Reason::Malformed));
            }
        }
        Ok(())
    })
}

#[test]
fn fragments_of_other_protocols_are_not_balanced() -> Result<()> {
    with_both(|both| {
        for vip in IPIP {
            for piece in two(both, vip, 12) {
                let v4 = is_v4(&piece);
                let at = if v4 { 23 } else { headers(&piece) };
                for (protocol, verdict) in [
                    (132, Verdict::Pass(Reason::Protocol)),
                    (if v4 { 1 } else { 58 }, Verdict::Drop(Reason::IcmpType)),
                ] {
                    let mut frame = piece.clone();
                    frame[at] = protocol;
                    assert_eq!(both.run(&frame)?.verdict, verdict);
                }
            }
        }
        Ok(())
    })
}

#[test]
fn first_fragments_are_limited() -> Result<()> {
    with_both(|both| {
        let mut flows = Vec::new();
        for flow in [
            ("198.51.100.8", "192.0.2.10"),
            ("2001:db8:9::1", "2001:db8::10"),
        ] {
            flows.push(begin(both, flow, 1024, Kind::Udp)?.1.frame);
        }
        let mut settings = both.settings;
        (settings.fragment_rate, settings.fragment_burst) = (0, 0);
        both.set(settings)?;
        both.host.fragment_tokens.set(0);
        for vip in 0..DATAGRAMS.len() {
            let outcome = both.run(&two(both, vip, 13)[0])?;
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::FragmentLimited));
        }
        for left in flows {
            let reply = answer(&left, Kind::Udp).long_frame(both, 2000);
            let outcome = both.run(&fragments(&reply, 13, 1400)[0])?;
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::FragmentLimited));
        }
        Ok(())
    })
}

#[test]
fn the_hosts_own_fragments_pass() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        (settings.fragment_rate, settings.fragment_burst) = (0, 0);
        both.set(settings)?;
        both.host.fragment_tokens.set(0);
        for (client, own) in [
            ("198.51.100.8", "10.0.0.1"),
            ("2001:db8:9::1", "2001:db8:1::1"),
        ] {
            for port in [22, 61_500] {
                let whole =
                    Packet::new((client, 3000), (own, port), Kind::Udp).long_frame(both, 4000);
                for piece in fragments(&whole, 14, 1400) {
                    let outcome = both.run(&piece)?;
                    let verdict = match outcome.verdict {
                        // The first has a port, which may have been a flow's.
                        Verdict::Pass(Reason::NoFlow) if port == 61_500 => Verdict::NotOurs,
                        verdict => verdict,
                    };
                    assert_eq!((verdict, outcome.frame), (Verdict::NotOurs, piece));
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_fragment_that_is_alone_is_a_whole_packet() -> Result<()> {
    with_both(|both| {
        let (client, vip, kind) = DATAGRAMS[5];
        let whole = Packet::new((client, 3000), vip, kind).frame(both);
        let alone = fragment(&whole, 15, 0..whole.len() - headers(&whole), false);
        let (plain, atomic) = (both.run(&whole)?, both.run(&alone)?);
        assert_eq!(atomic.verdict, plain.verdict, "RFC 6946");
        assert_eq!(atomic.backend(), plain.backend());
        let later = fragment(&whole, 15, 40..48, false);
        let later = both.run(&later)?;
        assert_eq!(later.verdict, Verdict::Drop(Reason::FragmentUnknown));
        Ok(())
    })
}

#[test]
fn headers_around_a_fragment_header_are_read() -> Result<()> {
    with_both(|both| {
        let (client, vip, kind) = DATAGRAMS[5];
        let whole = Packet::new((client, 3000), vip, kind).long_frame(both, 1600);
        let pieces = fragments(&whole, 16, 1400);
        let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let mut verdicts = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            // Hop-by-hop options before it; destination options behind it are in the first only, and all name them.
            let mut frame = piece.clone();
            let added = if number == 0 { 16_u16 } else { 8 };
            let length = u16::from_be_bytes([frame[18], frame[19]]) + added;
            frame[18..20].copy_from_slice(&length.to_be_bytes());
            frame[20] = 0;
            let offset = if number == 0 { 0 } else { 1400 / 8 + 1 };
            let header = Ipv6FragmentHeader::new(
                IpNumber(60),
                IpFragOffset::try_new(offset)?,
                number == 0,
                16,
            );
            frame[54..62].copy_from_slice(&header.to_bytes());
            if number == 0 {
                frame.splice(62..62, options(17));
            }
            frame.splice(54..54, options(44));
            verdicts.push(both.run(&frame)?);
        }
        assert!(matches!(
            verdicts[0].verdict,
            Verdict::Transmit | Verdict::Redirect { .. }
        ));
        assert_eq!(verdicts[1].verdict, verdicts[0].verdict);
        assert_eq!(verdicts[1].backend(), verdicts[0].backend());
        // A fragment of a fragment is none.
        let mut nested = pieces[0].clone();
        nested[54] = 44;
        let nested = both.run(&nested)?;
        assert_eq!(nested.verdict, Verdict::Drop(Reason::Malformed));
        Ok(())
    })
}

#[test]
fn a_flood_of_first_fragments_evicts_no_flow() -> Result<()> {
    with_both(|both| {
        let flow = ("198.51.100.8", "192.0.2.10");
        let (port, _) = establish(both, flow, 1024)?;
        let (client, vip, kind) = DATAGRAMS[4];
        let whole = Packet::new((client, 3000), vip, kind).long_frame(both, 1600);
        // More than the table holds.
        for id in 0..20_000 {
            both.run(&fragment(&whole, id, 0..800, true))?;
        }
        assert!(state(both, port)?.is_some());
        let newest = both.run(&fragment(&whole, 19_999, 800..1608, false))?;
        assert!(!matches!(newest.verdict, Verdict::Drop(_)));
        Ok(())
    })
}
