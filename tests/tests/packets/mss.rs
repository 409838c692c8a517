//! What a backend of this node offers its clients to send at once: no more than what fits a tunnel, by whichever node it
//! may come.

use anyhow::Result;
use lb_common::pipeline::Verdict;
use lb_tests::{both::Both, world::UPLINK_MTU};

use super::{
    Kind, Packet, assert_checksums,
    local::{V4, V6, begin},
    stateful::answer,
    with_both,
};

/// What fits between two nodes over IPv6, by the client's family: less outer IPv6, UDP, Geneve and its option with an
/// address, and less the client's own headers.
const FITS: [u16; 2] = [
    UPLINK_MTU as u16 - (40 + 8 + 8 + 16 + 4) - 40,
    UPLINK_MTU as u16 - (40 + 8 + 8 + 16 + 16) - 60,
];

/// Options in front of the MSS, and behind it.
const AROUND: [(&[u8], &[u8]); 6] = [
    (&[], &[]),
    (&[], &[1, 3, 3, 7, 4, 2, 0, 0]),
    (&[1], &[1, 1, 1]),
    (&[4, 2, 1, 3, 3, 7], &[0, 0]),
    (&[8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1], &[]),
    (&[253, 7, 1, 2, 3, 4, 5], &[0]),
];

fn options(around: (&[u8], &[u8]), mss: u16) -> Vec<u8> {
    [around.0, &[2, 4], &mss.to_be_bytes(), around.1].concat()
}

/// The backend's answers to SYNs of either family, one after the other: a function of the answer and of what fits.
fn answers(
    both: &mut Both,
    mut check: impl FnMut(&mut Both, &Packet, u16) -> Result<()>,
) -> Result<()> {
    for (names, fits) in [V4, V6].into_iter().zip(FITS) {
        let (_, there) = begin(both, names, 2000, Kind::Syn, Verdict::Rewritten)?;
        check(both, &answer(&there.frame, Kind::SynAck), fits)?;
    }
    Ok(())
}

/// What leaves of `frame`, behind the addresses and ports.
fn options_left(both: &mut Both, frame: &[u8]) -> Result<Vec<u8>> {
    let left = both.leave(frame)?;
    assert_eq!(left.verdict, Verdict::Rewritten);
    assert_checksums(&left.frame);
    let tcp = if left.frame[12] == 8 { 34 } else { 54 };
    let end = tcp + usize::from(left.frame[tcp + 12] >> 4) * 4;
    Ok(left.frame[tcp + 20..end].to_vec())
}

#[test]
fn an_offer_that_fits_no_tunnel_is_lowered_wherever_it_stands() -> Result<()> {
    with_both(|both| {
        answers(both, |both, answer, fits| {
            for around in AROUND {
                for offer in [fits + 1, 1460, 9000, u16::MAX] {
                    let frame = answer.frame_with(both, &options(around, offer));
                    assert_eq!(options_left(both, &frame)?, options(around, fits));
                }
            }
            Ok(())
        })
    })
}

#[test]
fn an_offer_that_fits_stays() -> Result<()> {
    with_both(|both| {
        answers(both, |both, answer, fits| {
            for around in AROUND {
                for offer in [fits, 536, 1, 0] {
                    let offered = options(around, offer);
                    let frame = answer.frame_with(both, &offered);
                    assert_eq!(options_left(both, &frame)?, offered);
                }
            }
            Ok(())
        })
    })
}

#[test]
fn where_there_are_no_tunnels_any_offer_stays() -> Result<()> {
    with_both(|both| {
        both.set(lb_common::abi::Settings {
            mtu: 0,
            ..both.settings
        })?;
        answers(both, |both, answer, _| {
            let offered = options(AROUND[0], 9000);
            let frame = answer.frame_with(both, &offered);
            assert_eq!(options_left(both, &frame)?, offered);
            Ok(())
        })
    })
}

#[test]
fn what_only_looks_like_an_offer_stays() -> Result<()> {
    with_both(|both| {
        answers(both, |both, answer, _| {
            for odd in [
                // Behind the end; of another length; cut off; behind a length that is none; behind ten others.
                &[0, 2, 4, 0xff, 0xff, 0, 0, 0][..],
                &[2, 3, 0xff, 0xff],
                &[1, 1, 2, 4],
                &[3, 1, 2, 4, 0xff, 0xff, 0, 0],
                &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 0xff, 0xff, 0, 0],
            ] {
                let frame = answer.frame_with(both, odd);
                assert_eq!(options_left(both, &frame)?, odd);
            }
            // Data that looks like one.
            let plain = answer.frame(both);
            assert_eq!(options_left(both, &plain)?, [0; 0]);
            Ok(())
        })
    })
}
