//! ICMP and `ICMPv6`: errors find the backend or the client that they are for.

use std::net::IpAddr;

use anyhow::Result;
use lb_common::{abi::Reason, pipeline::Verdict};
use lb_tests::{
    both::Both,
    datagrams::{LINK, Message, about, fragments, headers, icmp},
};

use super::{
    Kind, Packet, assert_checksums, ip,
    stateful::{begin, ends, establish},
    with_both,
};

pub(super) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Client, a router on the way to it, a VIP each of `nat`, `ipip`, `l2` and with source ranges.
pub(super) const ENDS: [(&str, &str, [&str; 4]); 2] = [
    (
        "198.51.100.8",
        "203.0.113.99",
        ["192.0.2.10", "192.0.2.11", "192.0.2.12", "192.0.2.13"],
    ),
    (
        "2001:db8:9::1",
        "2001:db8:77::99",
        [
            "2001:db8::10",
            "2001:db8::11",
            "2001:db8::12",
            "2001:db8::13",
        ],
    ),
];

/// Errors that are steered: unreachable, too big, time exceeded, a bad header.
fn errors(v4: bool) -> Vec<Message> {
    let list: &[(u8, u8, u32)] = if v4 {
        &[(3, 1, 0), (3, 4, 1400), (3, 4, 68), (11, 0, 0), (12, 0, 0)]
    } else {
        &[(1, 4, 0), (2, 0, 1400), (2, 0, 1280), (3, 0, 0), (4, 1, 40)]
    };
    list.iter()
        .map(|&(kind, code, word)| Message { kind, code, word })
        .collect()
}

fn error(v4: bool) -> Message {
    errors(v4)[0]
}

/// An error from `teller` about a frame, as it comes to the balancer.
fn tell(both: &Both, teller: &str, message: Message, frame: &[u8], quoted: usize) -> Vec<u8> {
    about(
        frame,
        [ROUTER, both.uplinks[0].0],
        ip(teller),
        message,
        quoted,
    )
}

/// What a backend sent to the client from the VIP.
fn from_vip(both: &Both, packet: &Packet) -> Vec<u8> {
    Packet {
        from: packet.to,
        to: packet.from,
        ..*packet
    }
    .long_frame(both, 200)
}

/// A10.4
#[test]
fn an_error_about_a_vips_packet_goes_where_its_flow_goes() -> Result<()> {
    with_both(|both| {
        for (client, router, vips) in ENDS {
            let v4 = ip(client).is_ipv4();
            for (vip, port, kind) in [
                (vips[1], 80, Kind::Ack),
                (vips[1], 53, Kind::Udp),
                (vips[2], 80, Kind::Ack),
            ] {
                for source in 1024..1080 {
                    let packet = Packet::new((client, source), (vip, port), kind);
                    let flow = both.run(&packet.frame(both))?;
                    for message in errors(v4) {
                        // As little as may be quoted, and more.
                        for quoted in [if v4 { 28 } else { 48 }, 128] {
                            let sent = from_vip(both, &packet);
                            let came = tell(both, router, message, &sent, quoted);
                            let outcome = both.run(&came)?;
                            assert_eq!(outcome.verdict, flow.verdict, "{packet:?} {message:?}");
                            assert_eq!(outcome.backend(), flow.backend());
                            if matches!(outcome.verdict, Verdict::Pass(_)) {
                                continue;
                            }
                            let added = outcome.frame.len() - came.len();
                            let start = headers(&came);
                            assert_eq!(
                                outcome.frame[start + added..],
                                came[start..],
                                "what it says is unchanged"
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    })
}

/// Addresses of a network header.
pub(super) fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    if packet[0] >> 4 == 4 {
        let at = |from: usize| <[u8; 4]>::try_from(&packet[from..from + 4]).expect("4 bytes");
        (at(12).into(), at(16).into())
    } else {
        let at = |from: usize| <[u8; 16]>::try_from(&packet[from..from + 16]).expect("16 bytes");
        (at(8).into(), at(24).into())
    }
}

/// The embedded packet of an error, in a link header of its own.
fn embedded(frame: &[u8]) -> Vec<u8> {
    [&frame[..LINK], &frame[headers(frame) + 8..]].concat()
}

/// A10.4
#[test]
fn under_nat_an_error_is_translated_for_the_backend() -> Result<()> {
    with_both(|both| {
        for (client, router, vips) in ENDS {
            let v4 = ip(client).is_ipv4();
            for kind in [Kind::Syn, Kind::Udp] {
                let ends_of = (client, vips[0]);
                let (port, there) = if kind == Kind::Syn {
                    establish(both, ends_of, 1024)?
                } else {
                    begin(both, ends_of, 1024, kind)?
                };
                let frontend = if kind == Kind::Udp { 53 } else { 443 };
                let packet = Packet::new((client, port), (vips[0], frontend), kind);
                let (own, backend) = ends(&there.frame);
                for message in errors(v4) {
                    // The whole packet, so that its own checksum can be checked.
                    let came = tell(both, router, message, &from_vip(both, &packet), 2000);
                    let outcome = both.run(&came)?;
                    assert_eq!(outcome.verdict, there.verdict);
                    assert_checksums(&outcome.frame);
                    assert_eq!(addresses(&outcome.frame[LINK..]), (own.ip(), backend.ip()));
                    let quoted = embedded(&outcome.frame);
                    assert_eq!(ends(&quoted), (backend, own));
                    assert_checksums(&quoted);
                    let header = headers(&came);
                    assert_eq!(outcome.frame[header..header + 2], came[header..header + 2]);
                    assert_eq!(
                        outcome.frame[header + 4..header + 8],
                        came[header + 4..header + 8]
                    );
                }
            }
        }
        Ok(())
    })
}

#[test]
fn an_error_from_behind_reaches_the_client_with_the_vips_tuple() -> Result<()> {
    with_both(|both| {
        for (client, router, vips) in ENDS {
            let v4 = ip(client).is_ipv4();
            for kind in [Kind::Syn, Kind::Udp] {
                let (port, there) = begin(both, (client, vips[0]), 1024, kind)?;
                let frontend = if kind == Kind::Udp { 53 } else { 443 };
                let sent = Packet::new((client, port), (vips[0], frontend), kind);
                let (_, backend) = ends(&there.frame);
                let backend = backend.ip().to_string();
                for teller in [router, backend.as_str()] {
                    for message in errors(v4) {
                        let came = tell(both, teller, message, &there.frame, 2000);
                        let outcome = both.run(&came)?;
                        assert_eq!(outcome.verdict, Verdict::Transmit);
                        assert_checksums(&outcome.frame);
                        assert_eq!(addresses(&outcome.frame[LINK..]), (ip(vips[0]), ip(client)));
                        // What the client sent, with one hop less.
                        let mut known = sent;
                        known.ttl -= 1;
                        assert_eq!(
                            embedded(&outcome.frame)[LINK..],
                            known.frame(both)[LINK..],
                            "{message:?}"
                        );
                    }
                }
            }
        }
        Ok(())
    })
}

#[test]
fn eight_bytes_of_a_transport_header_are_enough() -> Result<()> {
    with_both(|both| {
        for (client, router, vips) in ENDS {
            let v4 = ip(client).is_ipv4();
            let header = if v4 { 20 } else { 40 };
            for kind in [Kind::Syn, Kind::Udp] {
                let (port, there) = begin(both, (client, vips[0]), 1024, kind)?;
                for quoted in header..header + 24 {
                    let came = tell(both, router, error(v4), &there.frame, quoted);
                    let outcome = both.run(&came)?;
                    if quoted < header + 8 {
                        // To an own address, and of no flow that can be seen: the host's.
                        assert_eq!(outcome.verdict, Verdict::NotOurs);
                        continue;
                    }
                    assert_eq!(outcome.verdict, Verdict::Transmit);
                    assert_checksums(&outcome.frame);
                    let quote = embedded(&outcome.frame);
                    let at = headers(&quote);
                    assert_eq!(quote[at..at + 2], port.to_be_bytes());
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_forged_packet_too_big_is_dropped() -> Result<()> {
    with_both(|both| {
        for (client, router, vips) in ENDS {
            let v4 = ip(client).is_ipv4();
            let (kind, code, least) = if v4 { (3, 4, 68) } else { (2, 0, 1280) };
            let packet = Packet::new((client, 1024), (vips[1], 80), Kind::Ack);
            let (_, there) = begin(both, (client, vips[0]), 1024, Kind::Udp)?;
            for word in [0, 1, least - 1] {
                let message = Message { kind, code, word };
                let came = tell(both, router, message, &from_vip(both, &packet), 128);
                let outcome = both.run(&came)?;
                assert_eq!(outcome.verdict, Verdict::Drop(Reason::IcmpMtu));
                // And one about what went to a backend.
                let came = tell(both, router, message, &there.frame, 128);
                let outcome = both.run(&came)?;
                assert_eq!(outcome.verdict, Verdict::Drop(Reason::IcmpMtu));
            }
        }
        Ok(())
    })
}

#[test]
fn an_error_that_embeds_no_packet_of_ours_is_dropped() -> Result<()> {
    with_both(|both| {
        for (client, router, vips) in ENDS {
            let v4 = ip(client).is_ipv4();
            for (vip, port) in [(vips[0], 443), (vips[1], 80)] {
                let packet = Packet::new((client, 1024), (vip, port), Kind::Ack);
                let good = tell(both, router, error(v4), &from_vip(both, &packet), 128);
                let inner = headers(&good) + 8;
                let header = if v4 { 20 } else { 40 };
                // Where, and what is there instead.
                let garbage: &[(usize, u8)] = if v4 {
                    // Version, header length, a later fragment, no transport, another source.
                    &[(0, 0x65), (0, 0x44), (7, 1), (9, 1), (9, 47), (15, 77)]
                } else {
                    &[(0, 0x45), (6, 58), (6, 59), (6, 47), (23, 77)]
                };
                for (at, value) in garbage {
                    let mut frame = good.clone();
                    frame[inner + at] = *value;
                    let outcome = both.run(&frame)?;
                    assert_eq!(
                        outcome.verdict,
                        Verdict::Drop(Reason::IcmpMalformed),
                        "byte {at}"
                    );
                }
                // Nothing, half a header, half the ports.
                for quoted in [0, 4, header - 1, header, header + 7] {
                    let frame = tell(both, router, error(v4), &from_vip(both, &packet), quoted);
                    let outcome = both.run(&frame)?;
                    assert_eq!(
                        outcome.verdict,
                        Verdict::Drop(Reason::IcmpMalformed),
                        "{quoted} bytes"
                    );
                }
                // Lengths that lie.
                let mut frame = good.clone();
                frame.truncate(good.len() - 1);
                let outcome = both.run(&frame)?;
                assert_eq!(outcome.verdict, Verdict::Drop(Reason::Malformed));
            }
        }
        Ok(())
    })
}

#[test]
fn extension_headers_without_end_in_a_quote_are_too_deep() -> Result<()> {
    with_both(|both| {
        let (client, router, vips) = ENDS[1];
        let packet = Packet::new((client, 1024), (vips[1], 80), Kind::Ack);
        let mut frame = from_vip(both, &packet);
        frame[20] = 60;
        let chain = [60, 0, 1, 4, 0, 0, 0, 0].repeat(50);
        frame.splice(54..54, chain);
        for (quoted, verdict) in [
            (48, Verdict::Drop(Reason::IcmpMalformed)),
            (440, Verdict::Pass(Reason::TooDeep)),
        ] {
            let came = tell(both, router, error(false), &frame, quoted);
            assert_eq!(both.run(&came)?.verdict, verdict);
        }
        Ok(())
    })
}

#[test]
fn an_error_about_no_flow_or_frontend_is_dropped() -> Result<()> {
    with_both(|both| {
        for (client, router, vips) in ENDS {
            let v4 = ip(client).is_ipv4();
            // A nat frontend without the flow, a port of no frontend, a service without backends.
            let empty = vips[0].replace("10", "14");
            for (vip, port) in [(vips[0], 443), (vips[1], 81), (empty.as_str(), 80)] {
                let packet = Packet::new((client, 1024), (vip, port), Kind::Ack);
                let came = tell(both, router, error(v4), &from_vip(both, &packet), 128);
                let outcome = both.run(&came)?;
                assert_eq!(
                    outcome.verdict,
                    Verdict::Drop(Reason::IcmpUnmatched),
                    "{vip}"
                );
            }
            // About what the host sent: its own affair.
            let own = if v4 { "10.0.0.1" } else { "2001:db8:1::1" };
            for port in [443, 61_500] {
                let packet = Packet::new((client, 1024), (own, port), Kind::Ack);
                let came = tell(both, router, error(v4), &from_vip(both, &packet), 128);
                let outcome = both.run(&came)?;
                assert_eq!((outcome.verdict, outcome.frame), (Verdict::NotOurs, came));
            }
        }
        Ok(())
    })
}

#[test]
fn only_errors_about_clients_within_the_source_ranges_get_through() -> Result<()> {
    with_both(|both| {
        for (clients, router, vip) in [
            (["198.51.100.5", "198.51.100.64"], ENDS[0].1, "192.0.2.13"),
            (
                ["2001:db8:9::5", "2001:db8:9::1:5"],
                ENDS[1].1,
                "2001:db8::13",
            ),
        ] {
            for (client, allowed) in clients.into_iter().zip([true, false]) {
                let v4 = ip(client).is_ipv4();
                let packet = Packet::new((client, 1024), (vip, 80), Kind::Ack);
                let came = tell(both, router, error(v4), &from_vip(both, &packet), 128);
                let outcome = both.run(&came)?;
                let denied = outcome.verdict == Verdict::Drop(Reason::SourceDenied);
                assert_eq!(denied, !allowed, "{client}");
            }
        }
        Ok(())
    })
}

#[test]
fn other_icmp_to_a_vip_is_dropped_but_for_neighbour_discovery() -> Result<()> {
    with_both(|both| {
        for ((client, _, vips), kinds) in ENDS.into_iter().zip([
            &[0, 4, 5, 9, 10, 13, 17, 255],
            &[0, 5, 100, 127, 129, 130, 143, 255],
        ]) {
            let macs = [ROUTER, both.uplinks[0].0];
            let ends = [ip(client), ip(vips[0])];
            let message = |kind| Message {
                kind,
                code: 0,
                word: 0,
            };
            for kind in kinds {
                let outcome = both.run(&icmp(macs, ends, message(*kind), &[0; 40]))?;
                assert_eq!(
                    outcome.verdict,
                    Verdict::Drop(Reason::IcmpType),
                    "type {kind}"
                );
            }
            if ends[0].is_ipv6() {
                for kind in 133..=137 {
                    let outcome = both.run(&icmp(macs, ends, message(kind), &[0; 24]))?;
                    assert_eq!(outcome.verdict, Verdict::Pass(Reason::Icmp), "type {kind}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn an_error_about_a_reply_fragment_goes_by_its_ports() -> Result<()> {
    with_both(|both| {
        for (client, router, vips) in ENDS {
            let v4 = ip(client).is_ipv4();
            let packet = Packet::new((client, 1024), (vips[1], 53), Kind::Udp);
            let flow = both.run(&packet.frame(both))?;
            let sent = Packet {
                from: packet.to,
                to: packet.from,
                ..packet
            }
            .long_frame(both, 2000);
            let pieces = fragments(&sent, 3, 1400);
            let first = tell(both, router, error(v4), &pieces[0], 128);
            let outcome = both.run(&first)?;
            assert_eq!(outcome.verdict, flow.verdict);
            assert_eq!(outcome.backend(), flow.backend());
            // A later one has no ports to go by.
            let later = tell(both, router, error(v4), &pieces[1], 128);
            let outcome = both.run(&later)?;
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::IcmpMalformed));
        }
        Ok(())
    })
}
