//! ARP and neighbour discovery for announced VIPs.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use etherparse::{ArpOperation, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use lb_common::{
    abi::{AnnouncedKey, Reason},
    bytes::{V4, V6},
    pipeline::Verdict,
};
use lb_tests::{
    both::{Both, Outcome},
    neighbours::{ASKER, BROADCAST, NONCE, SOURCE_MAC, Solicitation, arp, group_mac},
};

use super::with_both;

const ASKER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const ASKER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77);
/// Announced.
const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// A VIP that is not.
const SILENT4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
const SILENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x12);
/// No VIP, in the same solicited-node group as [`VIP6`].
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x10);

fn request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(BROADCAST, ArpOperation::REQUEST, sender, target)
}

/// Puts tags behind the MACs.
fn tagged(frame: &[u8], depth: usize) -> Vec<u8> {
    let tags = [[0x88, 0xa8, 0, 7], [0x81, 0, 0, 8]].concat();
    [&frame[..12], &tags[8 - 4 * depth..], &frame[12..]].concat()
}

/// Takes them off again.
fn untagged(frame: &[u8], depth: usize) -> Vec<u8> {
    [&frame[..12], &frame[12 + 4 * depth..]].concat()
}

fn assert_passes(both: &mut Both, frame: &[u8], why: &str) -> Result<()> {
    let outcome = both.run(frame)?;
    assert_eq!(outcome.verdict, Verdict::NotOurs, "{why}");
    assert_eq!(outcome.frame, frame, "{why}: unchanged");
    Ok(())
}

fn assert_answered(outcome: &Outcome) {
    assert_eq!(outcome.verdict, Verdict::Transmit);
    assert_eq!(outcome.reason(), Some(Reason::Neighbour));
}

/// The answers to a question without tags and behind one and two, which they keep; from `own`, tags taken off.
fn answers(both: &mut Both, question: &[u8], own: [u8; 6]) -> Result<Vec<Vec<u8>>> {
    let answer = |depth| {
        let asked = tagged(question, depth);
        let outcome = both.run(&asked)?;
        assert_answered(&outcome);
        let tags = 12..12 + 4 * depth;
        assert_eq!(outcome.frame[tags.clone()], asked[tags], "tags are kept");
        let answer = untagged(&outcome.frame, depth);
        assert_eq!((&answer[..6], &answer[6..12]), (&ASKER[..], &own[..]));
        Ok(answer)
    };
    (0..=2).map(answer).collect()
}

#[test]
fn an_arp_request_for_an_announced_vip_is_answered() -> Result<()> {
    with_both(|both| {
        let own = both.uplinks[0].0;
        // A neighbour, one that checks for duplicates (RFC 5227), and one that asks us alone.
        let own_only = arp(own, ArpOperation::REQUEST, ASKER4, VIP4);
        let probe = request(Ipv4Addr::UNSPECIFIED, VIP4);
        for (frame, sender) in [
            (request(ASKER4, VIP4), ASKER4),
            (probe, Ipv4Addr::UNSPECIFIED),
            (own_only, ASKER4),
        ] {
            for answer in answers(both, &frame, own)? {
                assert_eq!(answer.len(), frame.len());
                let answer = SlicedPacket::from_ethernet(&answer)?;
                let Some(NetSlice::Arp(answer)) = answer.net else {
                    panic!("{answer:?}")
                };
                assert_eq!(answer.operation(), ArpOperation::REPLY);
                assert_eq!(answer.sender_hw_addr(), own);
                assert_eq!(answer.sender_protocol_addr(), VIP4.octets());
                assert_eq!(answer.target_hw_addr(), ASKER);
                assert_eq!(answer.target_protocol_addr(), sender.octets());
            }
        }
        let key = AnnouncedKey {
            ifindex: both.uplinks[0].1,
            address: V4::from(VIP4),
        };
        let counted = both.host.v4.announced.borrow()[&key];
        assert_eq!((counted.requests, counted.responses), (9, 9));
        Ok(())
    })
}

#[test]
fn other_arp_is_the_stacks() -> Result<()> {
    with_both(|both| {
        let good = request(ASKER4, VIP4);
        let other = [2, 0, 0, 0, 0, 99];
        for (why, frame) in [
            ("no VIP", request(ASKER4, Ipv4Addr::new(192, 0, 2, 99))),
            ("a VIP that is not announced", request(ASKER4, SILENT4)),
            (
                "an answer",
                arp(BROADCAST, ArpOperation::REPLY, ASKER4, VIP4),
            ),
            ("another host's claim", request(VIP4, VIP4)),
            (
                "asks another host",
                arp(other, ArpOperation::REQUEST, ASKER4, VIP4),
            ),
        ] {
            assert_passes(both, &frame, why)?;
            assert_passes(both, &tagged(&frame, 1), why)?;
        }
        assert_passes(both, &tagged(&tagged(&good, 2), 1), "three tags")?;
        for (at, value, why) in [
            (15, 6, "not of Ethernet"),
            (16, 0x86, "not about IPv4"),
            (18, 8, "longer MACs"),
            (19, 16, "longer addresses"),
            (21, 3, "reverse ARP"),
            (6, 3, "from a group"),
        ] {
            let mut frame = good.clone();
            frame[at] = value;
            assert_passes(both, &frame, why)?;
        }
        for length in [14, 21, 41] {
            assert_passes(both, &good[..length], "cut")?;
        }
        assert_eq!(
            both.run(&good[..42])?.verdict,
            Verdict::Transmit,
            "whole, unpadded"
        );
        let [_, (mac, elsewhere)] = both.uplinks;
        both.announce(elsewhere, SILENT4, mac)?;
        let frame = request(ASKER4, SILENT4);
        assert_passes(both, &frame, "announced on the other interface")
    })
}

/// The advertisement in `frame`, checked for form: destination, flags (solicited, override), target, MAC.
fn advertisement(frame: &[u8]) -> Result<(Ipv6Addr, [bool; 3], Ipv6Addr, [u8; 6])> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) =
        (&packet.net, &packet.transport)
    else {
        panic!("{packet:?}")
    };
    let header = ip.header();
    assert_eq!(header.hop_limit(), 255, "RFC 4861, section 7.1.2");
    assert_eq!(usize::from(header.payload_length()), icmp.slice().len());
    let computed =
        icmp.icmp_type()
            .calc_checksum(header.source(), header.destination(), icmp.payload())?;
    assert_eq!(icmp.checksum(), computed);
    let Icmpv6Type::NeighborAdvertisement(flags) = icmp.icmp_type() else {
        panic!("{icmp:?}")
    };
    let payload = icmp.payload();
    assert_eq!((payload.len(), &payload[16..18]), (24, &[2, 1][..]));
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(&payload[..16])?);
    assert_eq!(header.source_addr(), target, "who answers");
    Ok((
        header.destination_addr(),
        [flags.router, flags.solicited, flags.r#override],
        target,
        payload[18..].try_into()?,
    ))
}

#[test]
fn a_solicitation_for_an_announced_vip_is_answered() -> Result<()> {
    with_both(|both| {
        let own = both.uplinks[0].0;
        let asked = Solicitation::new(ASKER6, VIP6);
        // Whether a known neighbour is still there is asked without a group, and may be without a MAC.
        let known = Solicitation {
            to: own,
            destination: VIP6,
            options: Vec::new(),
            ..asked.clone()
        };
        let two = Solicitation {
            options: [SOURCE_MAC, NONCE].concat(),
            ..asked.clone()
        };
        for solicitation in [asked, known, two] {
            let frame = solicitation.frame();
            for answer in answers(both, &frame, own)? {
                let expected = (ASKER6, [false, true, true], VIP6, own);
                assert_eq!(advertisement(&answer)?, expected);
            }
        }
        let key = AnnouncedKey {
            ifindex: both.uplinks[0].1,
            address: V6::from(VIP6),
        };
        let counted = both.host.v6.announced.borrow()[&key];
        assert_eq!((counted.requests, counted.responses), (9, 9));
        Ok(())
    })
}

#[test]
fn who_is_about_to_take_a_vip_is_told_with_all_others() -> Result<()> {
    with_both(|both| {
        let own = both.uplinks[0].0;
        let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        for options in [&[][..], &NONCE] {
            let outcome = both.run(&Solicitation::probe(VIP6, options).frame())?;
            assert_answered(&outcome);
            assert_eq!(outcome.frame[..6], group_mac(all));
            let expected = (all, [false, false, true], VIP6, own);
            assert_eq!(
                advertisement(&outcome.frame)?,
                expected,
                "RFC 4861, section 7.2.4"
            );
        }
        Ok(())
    })
}

#[test]
fn solicitations_for_others_are_the_stacks() -> Result<()> {
    with_both(|both| {
        let own = both.uplinks[0].0;
        for target in [SILENT6, STRANGER6] {
            let frame = Solicitation::new(ASKER6, target).frame();
            assert_passes(both, &frame, "not announced")?;
        }
        let frame = Solicitation {
            to: [2, 0, 0, 0, 0, 99],
            ..Solicitation::new(ASKER6, VIP6)
        };
        assert_passes(both, &frame.frame(), "for another host")?;
        let frame = Solicitation {
            to: own,
            destination: SILENT6,
            ..Solicitation::new(ASKER6, SILENT6)
        };
        let outcome = both.run(&frame.frame())?;
        assert_eq!(
            outcome.verdict,
            Verdict::Pass(Reason::Icmp),
            "ICMP to a VIP"
        );
        Ok(())
    })
}

#[test]
fn an_invalid_solicitation_is_dropped() -> Result<()> {
    with_both(|both| {
        let good = Solicitation::new(ASKER6, VIP6);
        let with = |options: &[u8]| Solicitation {
            options: options.to_vec(),
            ..good.clone()
        };
        let mut cases = vec![
            (
                "came over a router",
                Solicitation {
                    hop_limit: 254,
                    ..good.clone()
                }
                .frame(),
            ),
            (
                "a code",
                Solicitation {
                    code: 1,
                    ..good.clone()
                }
                .frame(),
            ),
            (
                "an option of no length",
                with(&[1, 0, 2, 0, 0, 0, 0, 7]).frame(),
            ),
            (
                "an option beyond its end",
                with(&[1, 2, 2, 0, 0, 0, 0, 7]).frame(),
            ),
            ("half an option", with(&SOURCE_MAC[..4]).frame()),
            (
                "more options than are read",
                with(&NONCE.repeat(14)).frame(),
            ),
            (
                "a probe with a MAC",
                Solicitation::probe(VIP6, &SOURCE_MAC).frame(),
            ),
            (
                "a probe to one host",
                Solicitation {
                    destination: VIP6,
                    ..Solicitation::probe(VIP6, &NONCE)
                }
                .frame(),
            ),
            (
                "from a group",
                Solicitation {
                    source: Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
                    ..good.clone()
                }
                .frame(),
            ),
        ];
        let mut wrong = good.frame();
        wrong[57] ^= 1;
        cases.push(("a wrong checksum", wrong));
        let whole = good.frame();
        cases.push(("cut in its option", whole[..whole.len() - 1].to_vec()));
        let mut short = whole.clone();
        short[19] = 16;
        cases.push(("shorter than it says", short));
        for (why, frame) in cases {
            let outcome = both.run(&frame)?;
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::Malformed), "{why}");
        }
        // Not even a target: nobody's.
        assert_passes(both, &whole[..14 + 40 + 23], "cut in its target")
    })
}

#[test]
fn answers_to_neighbours_share_the_budget_of_all_answers() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        (settings.reject_rate, settings.reject_burst) = (0, 0);
        both.set(settings)?;
        both.host.reject_tokens.set(0);
        for frame in [
            request(ASKER4, VIP4),
            Solicitation::new(ASKER6, VIP6).frame(),
        ] {
            let outcome = both.run(&frame)?;
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::RejectLimited));
        }
        Ok(())
    })
}

#[test]
fn the_kernel_counts_what_the_host_counts() -> Result<()> {
    with_both(|both| {
        for _ in 0..3 {
            both.run(&request(ASKER4, VIP4))?;
            both.run(&Solicitation::new(ASKER6, VIP6).frame())?;
        }
        both.check_announced()?;
        let dropped = Solicitation {
            hop_limit: 1,
            ..Solicitation::new(ASKER6, VIP6)
        };
        both.run(&dropped.frame())?;
        both.check_announced()
    })
}
