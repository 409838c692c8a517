//! What comes out of a tunnel: the client's packet for a backend here, or a drop with its reason.

use anyhow::Result;
use lb_common::{
    abi::{Reason, Tunnel},
    pipeline::Verdict,
};
use lb_tests::{
    both::Both,
    datagrams::{self, LINK, headers, is_v4},
    director::Director,
    world::{OWN, PEER, TUNNEL_PORT},
};
use lb_userspace::dataplane::FlowState;

use super::{
    Kind, Packet, assert_checksums,
    dsr::{V4, V6, directors, packet, room},
    stateful::{answer, ends, state},
    with_both,
};

#[test]
fn a_packet_out_of_a_tunnel_reaches_the_backend_and_is_answered_by_the_vip() -> Result<()> {
    with_both(|both| {
        for director in directors(both) {
            for [client, _, vip] in [V4, V6] {
                for kind in [Kind::Syn, Kind::Udp] {
                    let mut arrived = 0;
                    for port in 4000..4020 {
                        let asked = packet(client, vip, port, kind);
                        let came = asked.frame(both);
                        let Some(sent) = director.send(&came) else {
                            continue;
                        };
                        arrived += 1;
                        let there = both.run(&sent)?;
                        assert_eq!(there.verdict, Verdict::Rewritten);
                        assert_eq!(there.frame.len(), came.len());
                        assert_checksums(&there.frame);
                        let (from, to) = ends(&there.frame);
                        assert_eq!((from.ip(), from.port()), asked.from, "the client's own");
                        assert_eq!(to.port(), 8080);
                        let start = headers(&came);
                        assert_eq!(there.frame[start + 20..], came[start + 20..]);

                        let reply = answer(&there.frame, kind.answered()).frame(both);
                        let left = both.leave(&reply)?;
                        assert_eq!(left.verdict, Verdict::Rewritten);
                        assert_checksums(&left.frame);
                        let (from, to) = ends(&left.frame);
                        assert_eq!((from.ip(), from.port()), asked.to, "from the VIP");
                        assert_eq!((to.ip(), to.port()), asked.from);
                        if kind == Kind::Syn {
                            let ack = packet(client, vip, port, Kind::Ack).frame(both);
                            both.run(&director.sent(&ack)?)?;
                            assert_eq!(state(both, port)?, Some(FlowState::Established));
                        }
                    }
                    assert!(arrived > 3, "{vip}: {arrived}");
                    both.reset()?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_tunnel_over_vlans_ends_like_any_other() -> Result<()> {
    const TAGS: [[u8; 4]; 2] = [[0x88, 0xa8, 0, 9], [0x81, 0, 0, 7]];
    with_both(|both| {
        for director in directors(both) {
            for names in [V4, V6] {
                for kind in [Kind::Syn, Kind::Udp] {
                    let (_, sent) = arrive(both, &director, names, 5200, kind)?;
                    let plain = both.run(&sent)?;
                    for tags in [&TAGS[1..], &TAGS] {
                        let tagged = both.run(&datagrams::tagged(&sent, tags))?;
                        assert_eq!(tagged.verdict, Verdict::Rewritten);
                        assert_eq!(tagged.frame, datagrams::tagged(&plain.frame, tags));
                    }
                }
            }
        }
        Ok(())
    })
}

/// The first packet of a flow that a director sends here, and what arrived.
pub(super) fn arrive(
    both: &mut Both,
    director: &Director,
    [client, _, vip]: [&str; 3],
    port: u16,
    kind: Kind,
) -> Result<(u16, Vec<u8>)> {
    for port in port..port + 200 {
        let came = packet(client, vip, port, kind).frame(both);
        if let Some(sent) = director.send(&came) {
            return Ok((port, sent));
        }
    }
    anyhow::bail!("no flow is sent here")
}

#[test]
fn every_bit_of_a_tunnel_that_is_turned_is_a_drop() -> Result<()> {
    with_both(|both| {
        for director in directors(both) {
            for names in [V4, V6] {
                let (_, sent) = arrive(both, &director, names, 5000, Kind::Syn)?;
                let outer = if is_v4(&sent) { 20 } else { 40 };
                let inner = LINK + room(outer == 20, names == V4);
                for bit in (LINK + outer + 8) * 8..inner * 8 {
                    let mut forged = sent.clone();
                    forged[bit / 8] ^= 1 << (bit % 8);
                    let outcome = both.run(&forged)?;
                    assert!(
                        matches!(outcome.verdict, Verdict::Drop(_)),
                        "bit {bit}: {outcome:?}"
                    );
                }
                // Cut short, with outer headers that say so.
                for length in LINK + outer + 8..inner + 20 {
                    let mut cut = sent[..length].to_vec();
                    let (at, whole) = if outer == 20 {
                        (2, length - LINK)
                    } else {
                        (4, length - LINK - 40)
                    };
                    cut[LINK + at..][..2].copy_from_slice(&(whole as u16).to_be_bytes());
                    let datagram = (length - LINK - outer) as u16;
                    cut[LINK + outer + 4..][..2].copy_from_slice(&datagram.to_be_bytes());
                    let outcome = both.run(&cut)?;
                    assert!(
                        matches!(outcome.verdict, Verdict::Drop(_)),
                        "{length}: {outcome:?}"
                    );
                }
                assert_eq!(both.run(&sent)?.verdict, Verdict::Rewritten);
            }
        }
        Ok(())
    })
}

#[test]
fn strangers_retired_keys_and_lost_backends_are_dropped_and_counted() -> Result<()> {
    with_both(|both| {
        for director in directors(both) {
            for names in [V4, V6] {
                let (_, sent) = arrive(both, &director, names, 5000, Kind::Syn)?;
                let settings = both.settings;
                let dropped = |both: &mut Both, frame: &[u8], reason| -> Result<()> {
                    assert_eq!(both.run(frame)?.verdict, Verdict::Drop(reason));
                    Ok(())
                };
                let mut stranger = sent.clone();
                // The last byte of the outer source.
                stranger[if is_v4(&sent) { LINK + 15 } else { LINK + 23 }] ^= 4;
                dropped(both, &stranger, Reason::SourceDenied)?;

                let mut retired = settings;
                retired.tag_ids = Tunnel::accepted(&[8, 9]);
                both.set(retired)?;
                dropped(both, &sent, Reason::TunnelTag)?;
                let mut other = settings;
                other.tag_keys = [[1, 2], [3, 4]];
                both.set(other)?;
                dropped(both, &sent, Reason::TunnelTag)?;
                both.set(settings)?;

                // The same packet once more around it.
                let mut nested = sent.clone();
                let outer = sent[LINK..LINK + room(is_v4(&sent), names == V4)].to_vec();
                nested.splice(LINK..LINK, outer);
                let reason = if is_v4(&sent) == (names == V4) {
                    Reason::TunnelTag
                } else {
                    Reason::TunnelMalformed
                };
                dropped(both, &nested, reason)?;

                both.mix_targets_up()?;
                dropped(both, &sent, Reason::TunnelTarget)?;
                both.forget_targets()?;
                dropped(both, &sent, Reason::TunnelTarget)?;
                both.reset()?;
            }
        }
        Ok(())
    })
}

#[test]
fn other_ports_of_a_nodes_address_are_the_hosts() -> Result<()> {
    with_both(|both| {
        for family in 0..2 {
            for (port, kind) in [(22, Kind::Syn), (TUNNEL_PORT, Kind::Syn), (6081, Kind::Udp)] {
                let frame =
                    Packet::new((PEER[family], 4000), (OWN[family], port), kind).frame(both);
                let outcome = both.run(&frame)?;
                assert_eq!((outcome.verdict, outcome.frame), (Verdict::NotOurs, frame));
            }
        }
        Ok(())
    })
}
