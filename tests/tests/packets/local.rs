//! `local` and `pass`: what goes on to a backend of this node, what its replies leave as, and what is left to whoever
//! serves the VIP beside us.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use etherparse::SlicedPacket;
use lb_common::{
    abi::{Mode, Reason, Tuple, setting_flag, slot_of},
    bytes, hash,
    pipeline::{Step, Verdict},
};
use lb_tests::{
    both::{Both, Outcome},
    datagrams::{self, Message},
};
use lb_userspace::{
    dataplane::{Dataplane as _, FlowState},
    plan::Op,
};

use super::{
    Kind, Packet, assert_checksums, ip,
    stateful::{answer, ends, state},
    with_both,
};

/// Client, frontend, and the other frontend of the same service.
pub(super) const V4: [&str; 3] = ["198.51.100.8", "192.0.2.15", "192.0.2.16"];
pub(super) const V6: [&str; 3] = ["2001:db8:9::1", "2001:db8::15", "2001:db8::16"];

pub(super) fn packet(names: [&str; 3], port: u16, kind: Kind) -> Packet {
    let to = if kind == Kind::Udp { 53 } else { 80 };
    Packet::new((names[0], port), (names[1], to), kind)
}

/// The first packet of a flow with this verdict: client ports are tried from `port` on.
pub(super) fn begin(
    both: &mut Both,
    names: [&str; 3],
    port: u16,
    kind: Kind,
    wanted: Verdict,
) -> Result<(u16, Outcome)> {
    for port in port..port + 200 {
        let outcome = both.run(&packet(names, port, kind).frame(both))?;
        if outcome.verdict == wanted {
            return Ok((port, outcome));
        }
    }
    anyhow::bail!("no flow ends as {wanted:?}")
}

pub(super) const PASSED: Verdict = Verdict::Pass(Reason::Pass);

/// A connection both ends of which know of each other.
pub(super) fn establish(both: &mut Both, names: [&str; 3], port: u16) -> Result<(u16, Outcome)> {
    let (port, there) = begin(both, names, port, Kind::Syn, Verdict::Rewritten)?;
    both.leave(&answer(&there.frame, Kind::SynAck).frame(both))?;
    both.run(&packet(names, port, Kind::Ack).frame(both))?;
    anyhow::ensure!(
        state(both, port)? == Some(FlowState::Established),
        "not established"
    );
    Ok((port, there))
}

fn ttl(frame: &[u8]) -> u8 {
    frame[if frame[12] == 8 { 22 } else { 21 }]
}

#[test]
fn a_backend_of_this_node_sees_the_client_and_the_client_sees_the_vip() -> Result<()> {
    with_both(|both| {
        for (names, kind) in [
            (V4, Kind::Syn),
            (V4, Kind::Udp),
            (V6, Kind::Syn),
            (V6, Kind::Udp),
        ] {
            let (port, there) = begin(both, names, 2000, kind, Verdict::Rewritten)?;
            let asked = packet(names, port, kind);
            let came = asked.frame(both);
            assert_checksums(&there.frame);
            let (from, to) = ends(&there.frame);
            assert_eq!((from.ip(), from.port()), asked.from, "the client's own");
            assert_eq!(to.port(), 8080);
            assert_eq!(there.frame[..14], came[..14], "as it came, on the link");
            assert_eq!(ttl(&there.frame), 64, "the stack takes the hop");

            let reply = answer(&there.frame, kind.answered()).frame(both);
            let back = both.leave(&reply)?;
            assert_eq!(back.verdict, Verdict::Rewritten);
            assert_checksums(&back.frame);
            let (from, to) = ends(&back.frame);
            assert_eq!((from.ip(), from.port()), asked.to, "from the VIP");
            assert_eq!((to.ip(), to.port()), asked.from);
            assert_eq!(ttl(&back.frame), 64);
            assert_eq!(back.frame[..14], reply[..14]);
        }
        Ok(())
    })
}

#[test]
fn a_flow_is_established_by_the_clients_ack_and_closed_by_both_ends() -> Result<()> {
    with_both(|both| {
        for names in [V4, V6] {
            let (port, there) = begin(both, names, 3000, Kind::Syn, Verdict::Rewritten)?;
            both.run(&packet(names, port, Kind::Ack).frame(both))?;
            assert_eq!(state(both, port)?, Some(FlowState::Half), "unproven");
            both.leave(&answer(&there.frame, Kind::SynAck).frame(both))?;
            let ack = both.run(&packet(names, port, Kind::Ack).frame(both))?;
            assert_eq!(state(both, port)?, Some(FlowState::Established));
            assert_eq!(ends(&ack.frame), ends(&there.frame));
            both.run(&packet(names, port, Kind::Fin).frame(both))?;
            both.leave(&answer(&there.frame, Kind::Fin).frame(both))?;
            assert_eq!(state(both, port)?, Some(FlowState::Closing));
            both.run(&packet(names, port, Kind::Syn).frame(both))?;
            assert_eq!(state(both, port)?, Some(FlowState::Half), "begun anew");
        }
        Ok(())
    })
}

#[test]
fn a_checksum_that_is_not_there_stays_so() -> Result<()> {
    with_both(|both| {
        let (port, there) = begin(both, V4, 2500, Kind::Udp, Verdict::Rewritten)?;
        let mut frame = packet(V4, port, Kind::Udp).frame(both);
        frame[40..42].fill(0);
        assert_eq!(both.run(&frame)?.frame[40..42], [0, 0], "RFC 768");
        let mut reply = answer(&there.frame, Kind::Udp).frame(both);
        reply[40..42].fill(0);
        assert_eq!(both.leave(&reply)?.frame[40..42], [0, 0]);
        Ok(())
    })
}

#[test]
fn what_began_without_us_goes_on_without_us() -> Result<()> {
    with_both(|both| {
        for names in [V4, V6] {
            for (port, kind) in (5000..5100).zip([Kind::Ack, Kind::Fin, Kind::Rst].iter().cycle()) {
                let frame = packet(names, port, *kind).frame(both);
                let outcome = both.run(&frame)?;
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoFlow));
                assert_eq!(outcome.frame, frame, "unchanged");
                assert_eq!(state(both, port)?, None, "and not remembered");
            }
        }
        Ok(())
    })
}

/// Publishes a table in which every slot of a service belongs to the member at `ordinal`.
pub(super) fn all_to(both: &mut Both, service: u32, ordinal: u16) -> Result<()> {
    let slots = vec![slot_of([ordinal, u16::MAX, u16::MAX, u16::MAX]); 64];
    let base = (service - 1) << 6;
    both.host.slots.extend((base..).zip(slots.iter().copied()));
    let op = Op::Slots { base, slots };
    both.place.installation.dataplane()?.apply(&[op])?;
    Ok(())
}

#[test]
fn the_choice_between_us_and_the_other_is_made_once() -> Result<()> {
    with_both(|both| {
        for (service, names) in [(7, V4), (8, V6)] {
            let (ours, there) = establish(both, names, 6000)?;
            let (udp, datagram) = begin(both, names, 6300, Kind::Udp, Verdict::Rewritten)?;
            let (passed, frame) = begin(both, names, 6600, Kind::Udp, PASSED)?;
            assert_eq!(frame.frame, packet(names, passed, Kind::Udp).frame(both));

            // All to another node: what is ours stays.
            all_to(both, service, 2)?;
            let next = both.run(&packet(names, ours, Kind::Ack).frame(both))?;
            assert_eq!(ends(&next.frame), ends(&there.frame));
            let next = both.run(&packet(names, udp, Kind::Udp).frame(both))?;
            assert_eq!(ends(&next.frame), ends(&datagram.frame));
            let new = both.run(&packet(names, 6900, Kind::Syn).frame(both))?;
            assert_eq!(new.verdict, PASSED);
            // All to this one: what is the other's stays.
            all_to(both, service, 0)?;
            let next = both.run(&packet(names, passed, Kind::Udp).frame(both))?;
            assert_eq!(next.verdict, PASSED);
            assert!(next.steps.contains(&Step::Flow { known: true }));
            let ack = both.run(&packet(names, 6900, Kind::Ack).frame(both))?;
            assert_eq!(ack.verdict, Verdict::Pass(Reason::NoFlow));
            let new = both.run(&packet(names, 6901, Kind::Syn).frame(both))?;
            assert_eq!(new.verdict, Verdict::Rewritten);
        }
        Ok(())
    })
}

#[test]
fn one_port_of_a_client_to_two_frontends_is_two_connections_at_the_backend() -> Result<()> {
    with_both(|both| {
        for (service, names) in [(7, V4), (8, V6)] {
            all_to(both, service, 0)?;
            let [client, one, other] = names;
            let (port, there) = establish(both, names, 8000)?;
            let second = Packet::new((client, port), (other, 80), Kind::Syn);
            let translated = both.run(&second.frame(both))?;
            assert_eq!(translated.verdict, Verdict::Rewritten);
            assert_checksums(&translated.frame);
            let (from, to) = ends(&translated.frame);
            assert_eq!(to, ends(&there.frame).1, "one backend");
            assert_eq!(from.ip(), ip(client));
            assert_ne!(from.port(), port, "another port there");
            assert!(from.port() >= 1024);
            // Each reply finds its own way back.
            for (left, vip) in [(&there, one), (&translated, other)] {
                let back = both.leave(&answer(&left.frame, Kind::SynAck).frame(both))?;
                let (from, to) = ends(&back.frame);
                assert_eq!((from.ip(), from.port()), (ip(vip), 80));
                assert_eq!((to.ip(), to.port()), (ip(client), port));
                assert_checksums(&back.frame);
            }
            let again = both.run(&second.frame(both))?;
            assert_eq!(ends(&again.frame), ends(&translated.frame), "and stays so");
        }
        Ok(())
    })
}

#[test]
fn a_client_whose_every_port_is_taken_is_dropped_and_counted() -> Result<()> {
    with_both(|both| {
        all_to(both, 7, 0)?;
        let [client, one, other] = V4;
        let tuple = Tuple {
            source: bytes::V4::from_bytes([198, 51, 100, 8]),
            destination: bytes::V4::from_bytes([192, 0, 2, 16]),
            source_port: bytes::Be16::new(3000),
            destination_port: bytes::Be16::new(80),
            protocol: 6,
            pad: [0; 3],
        };
        let hash = hash::flow(&both.settings.hash_key, &tuple);
        let tried = (0..4).map(|at| 1024 + ((hash >> (16 * at) & 0xffff) * 64_512 >> 16) as u16);
        let syn = Packet::new((client, 3000), (other, 80), Kind::Syn).frame(both);
        for port in tried.chain([3000]) {
            let taken = Packet::new((client, port), (one, 80), Kind::Syn).frame(both);
            assert_eq!(both.run(&taken)?.verdict, Verdict::Rewritten);
        }
        let outcome = both.run(&syn)?;
        assert_eq!(outcome.verdict, Verdict::Drop(Reason::TupleTaken));
        Ok(())
    })
}

#[test]
fn a_reply_in_fragments_leaves_whole() -> Result<()> {
    with_both(|both| {
        for names in [V4, V6] {
            let (_, there) = begin(both, names, 9000, Kind::Udp, Verdict::Rewritten)?;
            let whole = answer(&there.frame, Kind::Udp).long_frame(both, 4000);
            let pieces = datagrams::fragments(&whole, 77, 1480);
            // A later one before its first goes as it is, counted.
            let early = both.leave(&pieces[1])?;
            assert_eq!(early.verdict, Verdict::Pass(Reason::ReplyMissed));
            let mut left = Vec::new();
            for piece in &pieces {
                let outcome = both.leave(piece)?;
                assert_eq!(outcome.verdict, Verdict::Rewritten);
                left.push(outcome.frame);
            }
            let back = datagrams::reassembled(&left);
            assert_checksums(&back);
            assert_eq!(ends(&back).0.ip(), ip(names[1]));
            let headers = datagrams::headers(&back) + 8;
            assert_eq!(back[headers..], whole[headers..], "all of it");
        }
        Ok(())
    })
}

#[test]
fn a_clients_fragments_go_one_way() -> Result<()> {
    with_both(|both| {
        for names in [V4, V6] {
            for wanted in [Verdict::Rewritten, PASSED] {
                let (port, _) = begin(both, names, 9500, Kind::Udp, wanted)?;
                let whole = packet(names, port, Kind::Udp).long_frame(both, 3000);
                let mut left = Vec::new();
                for piece in datagrams::fragments(&whole, 78, 1480) {
                    let outcome = both.run(&piece)?;
                    assert_eq!(outcome.verdict, wanted);
                    left.push(outcome.frame);
                }
                let there = datagrams::reassembled(&left);
                assert_checksums(&there);
                let other = ends(&there).1.ip() != ip(names[1]);
                assert_eq!(other, wanted == Verdict::Rewritten);
            }
        }
        Ok(())
    })
}

/// An error about `about`, from `teller`.
fn error(both: &Both, about: &[u8], teller: &str) -> Vec<u8> {
    let message = if datagrams::is_v4(about) {
        Message {
            kind: 3,
            code: 4,
            word: 1400,
        }
    } else {
        Message {
            kind: 2,
            code: 0,
            word: 1400,
        }
    };
    let macs = [[2, 0, 0, 0, 0, 1], both.uplinks[0].0];
    datagrams::about(about, macs, ip(teller), message, 128)
}

/// Addresses of an ICMP error, and the ends of what it embeds.
fn told(frame: &[u8]) -> Result<[String; 2]> {
    assert_checksums(frame);
    let outer = SlicedPacket::from_ethernet(frame)?;
    let headers = datagrams::headers(frame);
    let addresses = |net: &etherparse::NetSlice<'_>| match net {
        etherparse::NetSlice::Ipv4(ip) => format!(
            "{} > {}",
            ip.header().source_addr(),
            ip.header().destination_addr()
        ),
        etherparse::NetSlice::Ipv6(ip) => format!(
            "{} > {}",
            ip.header().source_addr(),
            ip.header().destination_addr()
        ),
        etherparse::NetSlice::Arp(_) => String::new(),
    };
    let inner = &frame[headers + 8..];
    let start = if datagrams::is_v4(frame) { 20 } else { 40 };
    let ports: Vec<u16> = inner[start..start + 4]
        .as_chunks::<2>()
        .0
        .iter()
        .map(|port| u16::from_be_bytes(*port))
        .collect();
    let (from, to) = if start == 20 {
        (
            format!("{:?}", &inner[12..16]),
            format!("{:?}", &inner[16..20]),
        )
    } else {
        (
            format!("{:?}", &inner[8..24]),
            format!("{:?}", &inner[24..40]),
        )
    };
    let net = outer.net.context("a network header")?;
    Ok([
        addresses(&net),
        format!("{from}:{} > {to}:{}", ports[0], ports[1]),
    ])
}

fn octets(address: &str) -> String {
    match ip(address) {
        std::net::IpAddr::V4(ip) => format!("{:?}", ip.octets()),
        std::net::IpAddr::V6(ip) => format!("{:?}", ip.octets()),
    }
}

#[test]
fn errors_about_packets_to_and_from_the_backend_tell_of_the_vip() -> Result<()> {
    with_both(|both| {
        for (names, node, router) in [
            (V4, "10.0.0.1", "203.0.113.1"),
            (V6, "2001:db8:1::1", "2001:db8:77::1"),
        ] {
            let [client, vip, _] = names;
            let (port, there) = begin(both, names, 9800, Kind::Udp, Verdict::Rewritten)?;
            let pod = ends(&there.frame).1;
            // By the backend itself and by this node's stack, about what the client sent.
            for teller in [&*pod.ip().to_string(), node] {
                let left = both.leave(&error(both, &there.frame, teller))?;
                assert_eq!(left.verdict, Verdict::Rewritten);
                let [outer, inner] = told(&left.frame)?;
                assert_eq!(outer, format!("{vip} > {client}"));
                let (from, to) = (octets(client), octets(vip));
                assert_eq!(inner, format!("{from}:{port} > {to}:53"));
            }
            // By a router on the way to the client, about what the backend sent.
            let reply = answer(&there.frame, Kind::Udp).frame(both);
            let sent = both.leave(&reply)?.frame;
            let came = both.run(&error(both, &sent, router))?;
            assert_eq!(came.verdict, Verdict::Rewritten);
            let [outer, inner] = told(&came.frame)?;
            assert_eq!(outer, format!("{router} > {}", pod.ip()));
            let (from, to) = (octets(&pod.ip().to_string()), octets(client));
            assert_eq!(inner, format!("{from}:8080 > {to}:{port}"));
            assert_eq!(ttl(&came.frame), 64);

            // About what no flow of ours sent: the other's.
            let stranger = Packet::new((vip, 53), (client, 999), Kind::Udp).frame(both);
            let came = both.run(&error(both, &stranger, router))?;
            assert_eq!(came.verdict, Verdict::Pass(Reason::NoFlow));
            let foreign = Packet::new((client, 999), (&*pod.ip().to_string(), 8080), Kind::Udp);
            let left = both.leave(&error(both, &foreign.frame(both), node))?;
            assert_eq!(left.verdict, Verdict::Pass(Reason::ReplyMissed));
        }
        Ok(())
    })
}

#[test]
fn what_else_leaves_is_left_alone() -> Result<()> {
    with_both(|both| {
        for names in [V4, V6] {
            let (_, there) = begin(both, names, 4000, Kind::Syn, Verdict::Rewritten)?;
            let pod = ends(&there.frame).1.ip().to_string();
            // From another port of the backend, from another address, from the VIP itself.
            for from in [(&*pod, 40_000), (names[0], 8080), (names[1], 80)] {
                let packet = Packet::new(from, (names[0], 4000), Kind::Ack).frame(both);
                let outcome = both.leave(&packet)?;
                assert_eq!(outcome.verdict, Verdict::NotOurs);
                assert_eq!(outcome.frame, packet);
            }
            // Of no flow, from where one could be.
            let packet = Packet::new((&pod, 8080), (names[0], 4), Kind::Ack).frame(both);
            let outcome = both.leave(&packet)?;
            assert_eq!(outcome.verdict, Verdict::Pass(Reason::ReplyMissed));
            assert_eq!(outcome.frame, packet);
            // In bypass, even that of a flow.
            let mut settings = both.settings;
            settings.flags |= setting_flag::BYPASS;
            both.set(settings)?;
            let reply = answer(&there.frame, Kind::SynAck).frame(both);
            assert_eq!(both.leave(&reply)?.verdict, Verdict::NotOurs);
            settings.flags = 0;
            both.set(settings)?;
        }
        Ok(())
    })
}

#[test]
fn a_reply_brings_back_the_half_of_its_flow_that_was_lost() -> Result<()> {
    with_both(|both| {
        for (names, port) in [(V4, 4400), (V6, 4700)] {
            let (port, there) = establish(both, names, port)?;
            super::stateful::lose(both, port, false)?;
            // A FIN is news for the other half at once.
            both.leave(&answer(&there.frame, Kind::Fin).frame(both))?;
            let next = both.run(&packet(names, port, Kind::Ack).frame(both))?;
            assert_eq!(next.verdict, Verdict::Rewritten);
            assert_eq!(ends(&next.frame), ends(&there.frame));
        }
        Ok(())
    })
}

#[test]
fn nat_and_the_others_serve_one_service() -> Result<()> {
    with_both(|both| {
        for names in [V4, V6] {
            let mut seen = BTreeSet::new();
            for port in 1100..1160 {
                let outcome = both.run(&packet(names, port, Kind::Syn).frame(both))?;
                let mode = outcome.steps.iter().find_map(|step| match step {
                    Step::Backend { mode, .. } => Some(*mode),
                    _ => None,
                });
                let mode = mode.context("a backend")?;
                let expected = match outcome.verdict {
                    Verdict::Rewritten => Mode::Local,
                    PASSED => Mode::Pass,
                    Verdict::Transmit => Mode::Nat,
                    other => anyhow::bail!("{other:?}"),
                };
                assert_eq!(mode, expected as u8);
                seen.insert(mode);
                if expected == Mode::Nat {
                    let back = both.run(&answer(&outcome.frame, Kind::SynAck).frame(both))?;
                    assert_eq!(ends(&back.frame).0.ip(), ip(names[1]));
                    let ack = both.run(&packet(names, port, Kind::Ack).frame(both))?;
                    assert_eq!(ends(&ack.frame), ends(&outcome.frame));
                }
            }
            assert_eq!(seen.len(), 3);
        }
        Ok(())
    })
}
