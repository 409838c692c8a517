//! Probes: another node asks whether packets come through, and is answered where tunnels end.

use anyhow::Result;
use lb_common::{
    abi::Reason,
    pipeline::{
        Verdict,
        probe::{LENGTH, OWN, answered, question},
    },
};
use lb_tests::{
    both::Both,
    datagrams::{self, LINK, headers},
    world::{OWN as NODE, PEER, TUNNEL_PORT},
};

use super::{Kind, Packet, with_both};

/// Of the asking socket.
const PORT: u16 = 0xc123;

const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// What the asking side wants back.
const MARK: [u8; OWN] = *b"mark of mine";

/// From the other node, by the network of this family, with this behind the UDP header.
fn asked(both: &Both, family: usize, payload: &[u8]) -> Vec<u8> {
    let ends = ((PEER[family], PORT), (NODE[family], TUNNEL_PORT));
    let packet = Packet::new(ends.0, ends.1, Kind::Udp);
    let frame = packet.with_payload(ROUTER, both.uplinks[0].0, payload);
    datagrams::without_checksum(&frame)
}

/// What goes back for it.
fn answer(both: &Both, family: usize) -> Vec<u8> {
    let ends = ((NODE[family], TUNNEL_PORT), (PEER[family], PORT));
    let packet = Packet::new(ends.0, ends.1, Kind::Udp);
    let mut payload = vec![0, 0x80, 0x88, 0xb5, 0, 0, 0, 0, 0, 0, 0, 1];
    payload.extend(MARK);
    let frame = packet.with_payload(both.uplinks[0].0, ROUTER, &payload);
    datagrams::without_checksum(&frame)
}

/// A question of so many bytes behind the UDP header.
fn of_length(length: usize) -> Vec<u8> {
    let mut payload = question(MARK).to_vec();
    payload.resize(length, 0);
    payload
}

fn dropped(both: &mut Both, frame: &[u8], reason: Reason) -> Result<()> {
    let outcome = both.run(frame)?;
    assert_eq!(outcome.verdict, Verdict::Drop(reason), "{frame:02x?}");
    assert_eq!(outcome.reason(), Some(reason));
    Ok(())
}

#[test]
fn a_question_of_any_size_is_answered_with_the_shortest_one() -> Result<()> {
    with_both(|both| {
        for family in 0..2 {
            for length in [LENGTH, LENGTH + 1, 100, 1472 - 20 * family] {
                let outcome = both.run(&asked(both, family, &of_length(length)))?;
                assert_eq!(outcome.verdict, Verdict::Transmit);
                assert_eq!(outcome.reason(), Some(Reason::TunnelProbe));
                assert_eq!(outcome.frame, answer(both, family), "{length} bytes");
                let payload = &outcome.frame[headers(&outcome.frame) + 8..];
                assert_eq!(answered(payload), Some(MARK));
            }
        }
        Ok(())
    })
}

#[test]
fn a_question_over_vlans_is_answered_over_them() -> Result<()> {
    const TAGS: [[u8; 4]; 2] = [[0x88, 0xa8, 0, 9], [0x81, 0, 0, 7]];
    with_both(|both| {
        for family in 0..2 {
            let (came, goes) = (asked(both, family, &of_length(400)), answer(both, family));
            for tags in [&TAGS[1..], &TAGS] {
                let outcome = both.run(&datagrams::tagged(&came, tags))?;
                assert_eq!(outcome.verdict, Verdict::Transmit);
                assert_eq!(outcome.frame, datagrams::tagged(&goes, tags));
            }
        }
        Ok(())
    })
}

#[test]
fn an_answer_is_for_the_socket_that_asked() -> Result<()> {
    with_both(|both| {
        for family in 0..2 {
            let ends = ((PEER[family], TUNNEL_PORT), (NODE[family], PORT));
            let packet = Packet::new(ends.0, ends.1, Kind::Udp);
            let answer = answer(both, family);
            let payload = &answer[headers(&answer) + 8..];
            let came = packet.with_payload(ROUTER, both.uplinks[0].0, payload);
            let came = datagrams::without_checksum(&came);
            let outcome = both.run(&came)?;
            assert_eq!((outcome.verdict, outcome.frame), (Verdict::NotOurs, came));
        }
        Ok(())
    })
}

#[test]
fn an_answer_is_never_answered() -> Result<()> {
    with_both(|both| {
        for family in 0..2 {
            let answer = answer(both, family);
            let payload = &answer[headers(&answer) + 8..];
            let came = asked(both, family, payload);
            dropped(both, &came, Reason::TunnelMalformed)?;
        }
        Ok(())
    })
}

#[test]
fn a_question_is_of_another_node_and_whole() -> Result<()> {
    with_both(|both| {
        for family in 0..2 {
            let whole = asked(both, family, &of_length(LENGTH));
            let mut stranger = whole.clone();
            // The last byte of the source.
            stranger[[LINK + 15, LINK + 23][family]] ^= 4;
            dropped(both, &stranger, Reason::SourceDenied)?;
            for length in 0..LENGTH {
                let cut = asked(both, family, &of_length(LENGTH)[..length]);
                dropped(both, &cut, Reason::TunnelMalformed)?;
            }
            // Any other head is of nothing that is known.
            for bit in 0..(LENGTH - OWN) * 8 {
                let mut payload = of_length(LENGTH);
                payload[bit / 8] ^= 1 << (bit % 8);
                let other = asked(both, family, &payload);
                dropped(both, &other, Reason::TunnelMalformed)?;
            }
            let odd = datagrams::with_options(&whole);
            dropped(both, &odd, Reason::TunnelMalformed)?;
        }
        Ok(())
    })
}

#[test]
fn questions_are_answered_within_the_budget_of_all_answers() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        (settings.reject_rate, settings.reject_burst) = (0, 0);
        both.set(settings)?;
        both.host.reject_tokens.set(0);
        for family in 0..2 {
            let came = asked(both, family, &of_length(LENGTH));
            dropped(both, &came, Reason::RejectLimited)?;
        }
        Ok(())
    })
}
