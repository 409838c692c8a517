//! What is not for a backend: answers, drops, passes; and headers of unusual shape.

use anyhow::Result;
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use lb_common::{
    abi::{Reason, Settings, service_flag, setting_flag},
    pipeline::Verdict,
    tables::Tables as _,
};
use lb_tests::both::Both;
use lb_userspace::attach::Clock;

use super::{Kind, Packet, assert_checksums, with_both};

/// Client, and a VIP whose service is `ipip`.
const ENDS: [(&str, &str); 2] = [
    ("198.51.100.8", "192.0.2.11"),
    ("2001:db8:9::1", "2001:db8::11"),
];

fn unknown((client, vip): (&str, &str), kind: Kind) -> Packet {
    Packet::new((client, 1024), (vip, 81), kind)
}

fn known((client, vip): (&str, &str), port: u16) -> Packet {
    Packet::new((client, port), (vip, 80), Kind::Ack)
}

/// A packet whose backend is on the interface it came in by, by an entry of ours.
fn nearby(both: &mut Both, ends: (&str, &str)) -> Result<Packet> {
    for port in 1024..2048 {
        let packet = known(ends, port);
        let outcome = both.run(&packet.frame(both))?;
        if outcome.verdict == Verdict::Transmit && outcome.frame[..6] == [2, 0, 0, 9, 0, 1] {
            return Ok(packet);
        }
    }
    anyhow::bail!("no backend nearby")
}

/// A2.11
#[test]
fn an_unknown_port_of_a_vip_is_reset() -> Result<()> {
    with_both(|both| {
        for ends in ENDS {
            for kind in [Kind::Syn, Kind::Ack, Kind::Fin] {
                let packet = unknown(ends, kind);
                let frame = packet.frame(both);
                let outcome = both.run(&frame)?;
                assert_eq!(outcome.verdict, Verdict::Transmit);
                assert_eq!(outcome.reason(), Some(Reason::UnknownPort));
                assert_checksums(&outcome.frame);
                assert_eq!(
                    (&outcome.frame[..6], &outcome.frame[6..12]),
                    (&frame[6..12], &frame[..6])
                );
                let answer = SlicedPacket::from_ethernet(&outcome.frame)?;
                let Some(TransportSlice::Tcp(tcp)) = answer.transport else {
                    panic!("{answer:?}")
                };
                assert_eq!((tcp.source_port(), tcp.destination_port()), (81, 1024));
                assert!(tcp.rst());
                assert!(tcp.payload().is_empty());
                // RFC 9293, section 3.10.7.1.
                if kind == Kind::Syn {
                    assert_eq!(
                        (tcp.ack(), tcp.acknowledgment_number()),
                        (true, 1000 + 40 + 1)
                    );
                } else {
                    assert_eq!((tcp.ack(), tcp.sequence_number()), (false, 7001));
                }
            }
            let silent = both.run(&unknown(ends, Kind::Rst).frame(both))?;
            assert_eq!(silent.verdict, Verdict::Drop(Reason::NotAnswered));
        }
        Ok(())
    })
}

/// A2.11, A6.3
#[test]
fn an_unknown_udp_port_of_a_vip_is_unreachable() -> Result<()> {
    with_both(|both| {
        for ends in ENDS {
            let frame = unknown(ends, Kind::Udp).frame(both);
            let outcome = both.run(&frame)?;
            assert_eq!(outcome.verdict, Verdict::Transmit);
            let answer = SlicedPacket::from_ethernet(&outcome.frame)?;
            let quoted = match (&answer.transport, &answer.net) {
                (Some(TransportSlice::Icmpv4(icmp)), Some(NetSlice::Ipv4(ip))) => {
                    let header = ip.header();
                    assert_eq!(
                        header.header_checksum(),
                        header.to_header().calc_header_checksum()
                    );
                    assert!(matches!(
                        icmp.icmp_type(),
                        Icmpv4Type::DestinationUnreachable(_)
                    ));
                    assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, 3));
                    let computed = icmp.icmp_type().calc_checksum(icmp.payload());
                    assert_eq!(icmp.checksum(), computed);
                    icmp.payload().to_vec()
                }
                (Some(TransportSlice::Icmpv6(icmp)), Some(NetSlice::Ipv6(ip))) => {
                    assert!(matches!(
                        icmp.icmp_type(),
                        Icmpv6Type::DestinationUnreachable(_)
                    ));
                    assert_eq!((icmp.type_u8(), icmp.code_u8()), (1, 4));
                    let header = ip.header();
                    let computed = icmp.icmp_type().calc_checksum(
                        header.source(),
                        header.destination(),
                        icmp.payload(),
                    )?;
                    assert_eq!(icmp.checksum(), computed);
                    icmp.payload().to_vec()
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(quoted, frame[14..14 + quoted.len()], "contract A6.3");
            assert!(outcome.frame.len() <= frame.len() + 48);
        }
        Ok(())
    })
}

#[test]
fn answers_are_limited() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        (settings.reject_rate, settings.reject_burst) = (0, 0);
        both.set(settings)?;
        both.host.reject_tokens.set(0);
        for ends in ENDS {
            for kind in [Kind::Syn, Kind::Udp] {
                let outcome = both.run(&unknown(ends, kind).frame(both))?;
                assert_eq!(outcome.verdict, Verdict::Drop(Reason::RejectLimited));
            }
        }
        Ok(())
    })
}

/// A6.1
#[test]
fn a_service_without_backends_answers() -> Result<()> {
    with_both(|both| {
        for (client, vip) in [
            ("198.51.100.8", "192.0.2.14"),
            ("2001:db8:9::1", "2001:db8::14"),
        ] {
            let packet = Packet::new((client, 1024), (vip, 80), Kind::Syn);
            let outcome = both.run(&packet.frame(both))?;
            assert_eq!(outcome.reason(), Some(Reason::NoBackend), "contract A6.1");
            assert_eq!(outcome.verdict, Verdict::Transmit);
        }
        Ok(())
    })
}

/// A6.2
#[test]
fn a_service_whose_backends_are_elsewhere_drops() -> Result<()> {
    with_both(|both| {
        let empty = 6;
        both.set_flags(empty, service_flag::LIVE | service_flag::DROP)?;
        for (client, vip) in [
            ("198.51.100.8", "192.0.2.14"),
            ("2001:db8:9::1", "2001:db8::14"),
        ] {
            let packet = Packet::new((client, 1024), (vip, 80), Kind::Syn);
            let outcome = both.run(&packet.frame(both))?;
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::NoLocalBackend));
        }
        both.set_flags(empty, service_flag::LIVE)
    })
}

/// A9.1
#[test]
fn only_clients_within_the_source_ranges_get_through() -> Result<()> {
    with_both(|both| {
        for (client, vip, allowed) in [
            ("198.51.100.5", "192.0.2.13", true),
            ("198.51.100.64", "192.0.2.13", false),
            ("198.51.100.130", "192.0.2.13", true),
            ("2001:db8:9::5", "2001:db8::13", true),
            ("2001:db8:9::1:5", "2001:db8::13", false),
        ] {
            let packet = Packet::new((client, 1024), (vip, 80), Kind::Syn);
            let outcome = both.run(&packet.frame(both))?;
            let denied = outcome.verdict == Verdict::Drop(Reason::SourceDenied);
            assert_eq!(denied, !allowed, "{client} to {vip} (contract A9.1)");
        }
        Ok(())
    })
}

/// A10.6
#[test]
fn the_last_hop_is_not_forwarded() -> Result<()> {
    with_both(|both| {
        for ends in ENDS {
            let packet = Packet {
                ttl: 1,
                ..nearby(both, ends)?
            };
            let outcome = both.run(&packet.frame(both))?;
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::TtlExpired));
        }
        Ok(())
    })
}

#[test]
fn an_unknown_neighbour_is_the_stacks_to_resolve() -> Result<()> {
    with_both(|both| {
        let mut handed = 0;
        for port in 1024..1200 {
            let packet = Packet::new(("198.51.100.8", port), ("192.0.2.10", 443), Kind::Syn);
            let frame = packet.frame(both);
            let outcome = both.run(&frame)?;
            if outcome.verdict == Verdict::Pass(Reason::HandedUp) {
                assert_eq!(outcome.frame, frame, "unchanged");
                handed += 1;
            }
        }
        assert!(handed > 0);
        Ok(())
    })
}

/// Puts tags behind the MACs.
fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], &tags.concat(), &frame[12..]].concat()
}

/// A10.6
#[test]
fn up_to_two_vlan_tags_are_read() -> Result<()> {
    with_both(|both| {
        let tags = [[0x88, 0xa8, 0, 7], [0x81, 0, 0, 8]];
        for ends in ENDS {
            let packet = nearby(both, ends)?;
            let plain = both.run(&packet.frame(both))?.frame;
            for depth in [1, 2] {
                let tags = &tags[2 - depth..];
                let outcome = both.run(&tagged(&packet.frame(both), tags))?;
                assert_eq!(outcome.verdict, Verdict::Transmit);
                assert_eq!(outcome.frame, plain, "its next hop has none");
                let answer = both.run(&tagged(&unknown(ends, Kind::Udp).frame(both), tags))?;
                assert_eq!(answer.reason(), Some(Reason::UnknownPort));
                assert_eq!(&answer.frame[12..12 + 4 * depth], tags.concat());
            }
            let three = [tags[0], tags[1], tags[1]];
            let outcome = both.run(&tagged(&packet.frame(both), &three))?;
            assert_eq!(outcome.verdict, Verdict::NotOurs);
        }
        Ok(())
    })
}

/// A10.6
#[test]
fn ipv4_options_travel_along() -> Result<()> {
    with_both(|both| {
        let packet = nearby(both, ENDS[0])?;
        let mut frame = packet.frame(both);
        frame[14] = 0x46;
        let total = u16::from_be_bytes([frame[16], frame[17]]) + 4;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame.splice(34..34, [1, 1, 1, 0]);
        let outcome = both.run(&frame)?;
        assert_eq!(outcome.verdict, Verdict::Transmit);
        assert_eq!(
            outcome.frame[outcome.frame.len() - 64..],
            frame[frame.len() - 64..]
        );
        Ok(())
    })
}

/// A10.6
#[test]
fn up_to_eight_extension_headers_are_read() -> Result<()> {
    with_both(|both| {
        let packet = nearby(both, ENDS[1])?;
        for depth in [1_usize, 8, 9] {
            let mut frame = packet.frame(both);
            let next = std::mem::replace(&mut frame[20], 60);
            let length = u16::from_be_bytes([frame[18], frame[19]]) + 8 * depth as u16;
            frame[18..20].copy_from_slice(&length.to_be_bytes());
            let chain = (0..depth)
                .flat_map(|at| [if at + 1 == depth { next } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
            frame.splice(54..54, chain.collect::<Vec<u8>>());
            let outcome = both.run(&frame)?;
            let expected = if depth > 8 {
                Verdict::Pass(Reason::TooDeep)
            } else {
                Verdict::Transmit
            };
            assert_eq!(outcome.verdict, expected, "{depth} headers");
        }
        Ok(())
    })
}

#[test]
fn other_protocols_pass_and_are_counted() -> Result<()> {
    with_both(|both| {
        // The other family's ICMP is as foreign as SCTP.
        for (ends, at, values) in [(ENDS[0], 23, [132, 58]), (ENDS[1], 20, [132, 1])] {
            for value in values {
                let mut frame = known(ends, 1024).frame(both);
                frame[at] = value;
                let outcome = both.run(&frame)?;
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::Protocol));
            }
        }
        let mut frame = known(ENDS[1], 1024).frame(both);
        frame[20] = 59;
        let outcome = both.run(&frame)?;
        assert_eq!(outcome.verdict, Verdict::Pass(Reason::Protocol));
        Ok(())
    })
}

#[test]
fn a_cut_or_lying_header_is_dropped() -> Result<()> {
    with_both(|both| {
        for ends in ENDS {
            let whole = known(ends, 1024).frame(both);
            let header = if ends.0.contains(':') { 54 } else { 34 };
            for length in [header, header + 7, header + 19, whole.len() - 1] {
                let outcome = both.run(&whole[..length])?;
                assert_eq!(
                    outcome.verdict,
                    Verdict::Drop(Reason::Malformed),
                    "{length} bytes"
                );
            }
            // Not even an IP header: nobody's.
            assert_eq!(both.run(&whole[..header - 1])?.verdict, Verdict::NotOurs);
        }
        Ok(())
    })
}

#[test]
fn bypass_passes_everything() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        settings.flags |= setting_flag::BYPASS;
        both.set(settings)?;
        for ends in ENDS {
            assert_eq!(
                both.run(&known(ends, 1024).frame(both))?.verdict,
                Verdict::NotOurs
            );
            assert_eq!(
                both.run(&unknown(ends, Kind::Syn).frame(both))?.verdict,
                Verdict::NotOurs
            );
        }
        Ok(())
    })
}

#[test]
fn what_has_expired_passes_everything_in_both_homes() -> Result<()> {
    with_both(|both| {
        let now = Clock::load()?.now()?;
        both.host.now = now;
        for (expires, passes) in [
            (0, false),
            (now, true),
            (1, true),
            (now + (1 << 24), false),
            // As far away as 32 bits reach: what is over does not come alive again.
            (now.saturating_sub(1 << 32).max(1), true),
            (now + (1 << 32), false),
            (u64::MAX, false),
        ] {
            both.set(Settings {
                expires,
                ..both.settings
            })?;
            for ends in ENDS {
                let verdict = both.run(&known(ends, 1024).frame(both))?.verdict;
                assert_eq!(verdict == Verdict::NotOurs, passes, "{expires}, now {now}");
            }
            let denied = Packet::new(("203.0.113.9", 1024), ("192.0.2.13", 80), Kind::Syn);
            let denied = denied.frame(both);
            let expected = if passes {
                Verdict::NotOurs
            } else {
                Verdict::Drop(Reason::SourceDenied)
            };
            assert_eq!(both.run(&denied)?.verdict, expected);
            // TC_ACT_SHOT, TC_ACT_UNSPEC.
            let action = if passes { -1 } else { 2 };
            assert_eq!(
                both.place.inject_at_tc(&denied)?,
                action,
                "{expires}, now {now}"
            );
            if !passes {
                both.host.count_reason(11, Reason::SourceDenied);
            }
        }
        Ok(())
    })
}

#[test]
fn what_is_for_nobody_here_leaves_at_once() -> Result<()> {
    with_both(|both| {
        for (client, other) in [
            ("198.51.100.8", "203.0.113.9"),
            ("2001:db8:9::1", "2001:db8:5::9"),
        ] {
            for kind in [Kind::Syn, Kind::Udp] {
                let packet = Packet::new((client, 1024), (other, 80), kind);
                let frame = packet.frame(both);
                let outcome = both.run(&frame)?;
                assert_eq!((outcome.verdict, outcome.frame), (Verdict::NotOurs, frame));
                assert!(outcome.steps.is_empty());
            }
        }
        Ok(())
    })
}
