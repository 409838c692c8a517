//! `dsr`: what goes through a tunnel to a backend's node, and fragments and errors both ways. The other end is
//! [`lb_tests::director`].

use anyhow::{Context as _, Result};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_common::{
    abi::{Reason, backend_state},
    pipeline::Verdict,
};
use lb_tests::{
    both::{Both, Outcome},
    datagrams::{self, LINK, Message, fragments, headers, is_v4, reassembled},
    director::Director,
    world::{OWN, PEER, TUNNEL_PORT},
};
use lb_userspace::dataplane::FlowState;

use super::{
    Kind, Packet,
    arriving::arrive,
    assert_checksums, ip,
    local::PASSED,
    mtu::assert_told,
    stateful::{answer, ends, state},
    with_both,
};

/// Client, frontend of backends elsewhere, frontend of backends here.
pub(super) const V4: [&str; 3] = ["198.51.100.8", "192.0.2.17", "192.0.2.15"];
pub(super) const V6: [&str; 3] = ["2001:db8:9::1", "2001:db8::17", "2001:db8::15"];

/// A packet of one of them.
pub(super) fn packet(client: &str, vip: &str, port: u16, kind: Kind) -> Packet {
    let to = if kind == Kind::Udp { 53 } else { 80 };
    Packet::new((client, port), (vip, to), kind)
}

/// Bytes between the link header and the client's packet.
pub(super) fn room(outer_v4: bool, inner_v4: bool) -> usize {
    (if outer_v4 { 20 } else { 40 }) + 8 + 8 + 4 + 12 + if inner_v4 { 4 } else { 16 }
}

/// Whether the node of the chosen backend is reached over IPv4.
fn is_over_v4(outcome: &Outcome) -> bool {
    outcome.frame[12] == 8
}

/// The client's packet out of a tunnel, behind the link header of `came`.
pub(super) fn unwrapped(outcome: &Outcome, came: &[u8]) -> Vec<u8> {
    let room = room(is_over_v4(outcome), is_v4(came));
    let mut inner = came[..LINK].to_vec();
    inner.extend_from_slice(&outcome.frame[LINK + room..]);
    inner
}

/// Every kind of packet that begins something, to backends elsewhere.
fn sent(
    both: &mut Both,
    mut check: impl FnMut(&mut Both, &Packet, &Outcome) -> Result<()>,
) -> Result<()> {
    for [client, vip, _] in [V4, V6] {
        for kind in [Kind::Syn, Kind::Udp] {
            let mut over = [false; 2];
            for port in 2000..2040 {
                let packet = packet(client, vip, port, kind);
                let outcome = both.run(&packet.frame(both))?;
                over[usize::from(is_over_v4(&outcome))] = true;
                check(both, &packet, &outcome)?;
            }
            assert_eq!(over, [true; 2], "networks of both families");
        }
    }
    Ok(())
}

/// Both networks that another node may send by.
pub(super) fn directors(both: &Both) -> [Director; 2] {
    [true, false].map(|outer_v4| Director::new(outer_v4, both.uplinks[0].0))
}

#[test]
fn a_backend_elsewhere_is_sent_the_clients_packet_as_it_is() -> Result<()> {
    with_both(|both| {
        sent(both, |both, packet, outcome| {
            let came = packet.frame(both);
            assert!(matches!(
                outcome.verdict,
                Verdict::Transmit | Verdict::Redirect { .. }
            ));
            assert_eq!(unwrapped(outcome, &came), came);
            let outer = SlicedPacket::from_ethernet(&outcome.frame)?;
            let family = usize::from(!is_over_v4(outcome));
            let (from, to) = match outer.net.context("network")? {
                NetSlice::Ipv4(ip) => (
                    ip.header().source_addr().into(),
                    ip.header().destination_addr().into(),
                ),
                NetSlice::Ipv6(ip) => (
                    ip.header().source_addr().into(),
                    ip.header().destination_addr().into(),
                ),
                NetSlice::Arp(_) => anyhow::bail!("ARP"),
            };
            assert_eq!((from, to), (ip(OWN[family]), ip(PEER[family])));
            let Some(TransportSlice::Udp(udp)) = outer.transport else {
                anyhow::bail!("no UDP");
            };
            assert_eq!(udp.destination_port(), TUNNEL_PORT);
            assert!(udp.source_port() >= 0xc000);
            assert_eq!(udp.checksum(), 0);
            assert_eq!(
                usize::from(udp.length()),
                outcome.frame.len() - LINK - [20, 40][family]
            );
            Ok(())
        })
    })
}

#[test]
fn all_of_a_flow_goes_to_one_node_and_only_of_udp_it_is_remembered_which() -> Result<()> {
    with_both(|both| {
        for [client, vip, _] in [V4, V6] {
            let mut began = Vec::new();
            for (port, kind) in
                (3000..3040).map(|port| (port, if port % 2 == 0 { Kind::Syn } else { Kind::Udp }))
            {
                let outcome = both.run(&packet(client, vip, port, kind).frame(both))?;
                began.push((port, kind, outcome.backend()));
                let remembered = (kind == Kind::Udp).then_some(FlowState::Half);
                assert_eq!(state(both, port)?, remembered, "{kind:?}");
            }
            // Nobody gets new flows.
            both.set_states_elsewhere(backend_state::AWAY)?;
            for (port, kind, backend) in began {
                let kind = if kind == Kind::Syn { Kind::Ack } else { kind };
                let outcome = both.run(&packet(client, vip, port, kind).frame(both))?;
                assert_eq!(outcome.backend(), backend);
                assert!(outcome.frame.len() > packet(client, vip, port, kind).frame(both).len());
            }
            for kind in [Kind::Syn, Kind::Udp, Kind::Ack] {
                let new = packet(client, vip, 3100, kind).frame(both);
                let outcome = both.run(&new)?;
                assert_eq!((outcome.verdict, outcome.frame), (PASSED, new), "{kind:?}");
            }
            // What passed goes on so, until it begins anew.
            both.set_states_elsewhere(backend_state::USABLE)?;
            for kind in [Kind::Ack, Kind::Udp] {
                let known = both.run(&packet(client, vip, 3100, kind).frame(both))?;
                assert_eq!(known.verdict, PASSED, "{kind:?}");
            }
            let syn = both.run(&packet(client, vip, 3100, Kind::Syn).frame(both))?;
            assert!(matches!(
                syn.verdict,
                Verdict::Transmit | Verdict::Redirect { .. }
            ));
        }
        Ok(())
    })
}

/// A10.5
#[test]
fn fragments_go_through_tunnels_behind_their_first() -> Result<()> {
    with_both(|both| {
        for [client, vip, _] in [V4, V6] {
            let whole = packet(client, vip, 6000, Kind::Udp).long_frame(both, 3000);
            let pieces = fragments(&whole, 77, 1200);
            let early = both.run(&pieces[1])?;
            assert_eq!(early.verdict, Verdict::Drop(Reason::FragmentUnknown));
            let first = both.run(&pieces[0])?;
            for piece in &pieces {
                let outcome = both.run(piece)?;
                assert_eq!(outcome.verdict, first.verdict);
                assert_eq!(unwrapped(&outcome, piece), *piece);
                assert_eq!(is_over_v4(&outcome), is_over_v4(&first));
            }
        }
        for director in directors(both) {
            for names in [V4, V6] {
                let (port, _) = arrive(both, &director, names, 6100, Kind::Udp)?;
                let whole = packet(names[0], names[2], port, Kind::Udp).long_frame(both, 3000);
                let pieces = fragments(&whole, 78, 1200);
                let sent = pieces
                    .iter()
                    .map(|piece| director.sent(piece))
                    .collect::<Result<Vec<_>>>()?;
                let early = both.run(&sent[1])?;
                assert_eq!(early.verdict, Verdict::Drop(Reason::FragmentUnknown));
                let mut arrived = Vec::new();
                for frame in &sent {
                    let outcome = both.run(frame)?;
                    assert_eq!(outcome.verdict, Verdict::Rewritten);
                    arrived.push(outcome.frame);
                }
                let arrived = reassembled(&arrived);
                assert_checksums(&arrived);
                let start = headers(&whole);
                assert_eq!(arrived[start + 8..], whole[start + 8..], "payload");
                assert_eq!(ends(&arrived).1.port(), 8080);

                // A tag of another backend, and one with another key.
                let tag = LINK + room(is_v4(&sent[1]), names == V4);
                for at in [tag - 1, tag - room(true, names == V4) + 20 + 8 + 8 + 4 + 4] {
                    let mut forged = sent[1].clone();
                    forged[at] ^= 1;
                    let outcome = both.run(&forged)?;
                    assert_eq!(outcome.verdict, Verdict::Drop(Reason::TunnelTag));
                }
                both.reset()?;
            }
        }
        Ok(())
    })
}

/// Of a datagram to the end of the tunnels nothing is remembered, so that no later fragment follows the flow of another packet.
#[test]
fn a_tunnel_takes_no_fragments() -> Result<()> {
    with_both(|both| {
        for director in directors(both) {
            for names in [V4, V6] {
                let (_, sent) = arrive(both, &director, names, 6200, Kind::Syn)?;
                assert_eq!(both.run(&sent)?.verdict, Verdict::Rewritten);
                let pieces = fragments(&sent, 79, 64);
                let first = both.run(&pieces[0])?;
                assert_eq!(first.verdict, Verdict::Drop(Reason::TunnelMalformed));
                let later = both.run(&pieces[1])?;
                assert_eq!(later.verdict, Verdict::NotOurs);
                assert_eq!(later.frame, pieces[1]);
            }
        }
        Ok(())
    })
}

/// A router's word that a packet was too big.
fn error(both: &Both, about: &[u8], teller: &str) -> Vec<u8> {
    let (kind, code) = if is_v4(about) { (3, 4) } else { (2, 0) };
    let message = Message {
        kind,
        code,
        word: 1400,
    };
    let macs = [[2, 0, 0, 0, 0, 1], both.uplinks[0].0];
    datagrams::about(about, macs, ip(teller), message, 128)
}

/// A10.4
#[test]
fn an_error_about_a_reply_goes_through_the_tunnel_to_the_backend() -> Result<()> {
    with_both(|both| {
        for ([client, elsewhere, here], router) in [(V4, "203.0.113.1"), (V6, "2001:db8:77::1")] {
            // On the node that the router's message comes to.
            for kind in [Kind::Syn, Kind::Udp] {
                let asked = packet(client, elsewhere, 7000, kind);
                let began = both.run(&asked.frame(both))?;
                let reply = Packet {
                    from: asked.to,
                    to: asked.from,
                    ..asked
                };
                let told = error(both, &reply.frame(both), router);
                let outcome = both.run(&told)?;
                assert_eq!(outcome.backend(), began.backend());
                assert_eq!(unwrapped(&outcome, &told), told);
                // About what nobody sent.
                let reply = Packet {
                    to: (asked.from.0, 7001),
                    ..reply
                };
                let told = error(both, &reply.frame(both), router);
                let outcome = both.run(&told)?;
                if kind == Kind::Udp {
                    assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoFlow));
                } else {
                    // Of connections the table knows no more.
                    assert_eq!(unwrapped(&outcome, &told), told);
                }
            }
            // On the backend's.
            for director in directors(both) {
                let names = [client, elsewhere, here];
                let (port, sent) = arrive(both, &director, names, 7100, Kind::Udp)?;
                let there = both.run(&sent)?;
                let pod = ends(&there.frame).1;
                let reply = both.leave(&answer(&there.frame, Kind::Udp).frame(both))?;
                let told = director.sent(&error(both, &reply.frame, router))?;
                let came = both.run(&told)?;
                assert_eq!(came.verdict, Verdict::Rewritten, "{port}");
                let outer = SlicedPacket::from_ethernet(&came.frame)?;
                let to: std::net::IpAddr = match outer.net.context("network")? {
                    NetSlice::Ipv4(ip) => ip.header().destination_addr().into(),
                    NetSlice::Ipv6(ip) => ip.header().destination_addr().into(),
                    NetSlice::Arp(_) => anyhow::bail!("ARP"),
                };
                assert_eq!(to, pod.ip());
                assert_checksums(&came.frame);
                both.reset()?;
            }
        }
        Ok(())
    })
}

#[test]
fn what_fits_no_tunnel_is_told_to_the_client() -> Result<()> {
    with_both(|both| {
        for [client, vip, _] in [V4, V6] {
            let v4 = ip(client).is_ipv4();
            let mut met = [0; 2];
            for port in 8000..8040 {
                let asked = packet(client, vip, port, Kind::Syn);
                let over_v4 = is_over_v4(&both.run(&asked.frame(both))?);
                let fits = 1500 - room(over_v4, v4);
                let headers = if v4 { 40 } else { 60 };
                let ack = packet(client, vip, port, Kind::Ack);
                let whole = both.run(&ack.long_frame(both, fits - headers))?;
                assert_eq!(whole.frame.len(), LINK + 1500);
                let long = ack.long_frame(both, fits - headers + 1);
                assert_told(&both.run(&long)?, &long, fits as u32);
                met[usize::from(over_v4)] += 1;
            }
            assert!(met[0] > 3 && met[1] > 3, "{met:?}");
        }
        Ok(())
    })
}

#[test]
fn nobody_is_told_about_an_error_that_fits_no_tunnel() -> Result<()> {
    with_both(|both| {
        // The MTU is above the MAC.
        for id in [1, 2] {
            both.change_next_hop(id, |hop| {
                hop.source = hop.source & 0xffff_ffff_ffff | 100 << 48;
            })?;
        }
        for ([client, elsewhere, _], router) in [(V4, "203.0.113.1"), (V6, "2001:db8:77::1")] {
            let asked = packet(client, elsewhere, 7300, Kind::Ack);
            let reply = Packet {
                from: asked.to,
                to: asked.from,
                ..asked
            };
            let told = error(both, &reply.frame(both), router);
            let outcome = both.run(&told)?;
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::DoesNotFit));
        }
        Ok(())
    })
}
