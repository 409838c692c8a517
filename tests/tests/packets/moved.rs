//! Connections whose packets come where nobody knows them: who is asked, in which order, and whose they are in the end.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use lb_common::{abi::Reason, pipeline::Verdict};
use lb_tests::{datagrams::LINK, director::Receiver};
use lb_userspace::dataplane::FlowState;

use super::{
    Kind,
    dsr::{V4, V6, directors, packet, unwrapped},
    local::PASSED,
    stateful::{ends, state},
    with_both,
};

#[test]
fn a_connection_stays_with_its_backend_when_the_table_leads_elsewhere() -> Result<()> {
    with_both(|both| {
        let [knows, other] = [0; 2].map(|_| Receiver::new(both.uplinks[0].0));
        for history in [true, false] {
            for [client, vip, _] in [V4, V6] {
                let mut began = Vec::new();
                for port in 3200..3220 {
                    let outcome = both.run(&packet(client, vip, port, Kind::Syn).frame(both))?;
                    assert_eq!(knows.take(&outcome.frame).0, Verdict::Rewritten);
                    began.push((port, outcome.backend()));
                }
                both.swap_owners_elsewhere(history)?;
                for (port, backend) in began {
                    let ack = packet(client, vip, port, Kind::Ack).frame(both);
                    let asked = both.run(&ack)?;
                    assert_ne!(asked.backend(), backend);
                    let (verdict, back) = other.take(&asked.frame);
                    assert_eq!(verdict, Verdict::Transmit);
                    let on = both.run(&back)?;
                    assert_eq!(on.backend(), backend);
                    assert_eq!(unwrapped(&on, &ack)[LINK..], ack[LINK..]);
                    assert_eq!(knows.take(&on.frame).0, Verdict::Rewritten);
                    // The next ones go there at once, errors about its replies, too.
                    for _ in 0..2 {
                        let next = both.run(&ack)?;
                        assert_eq!(next.backend(), backend);
                        assert_eq!(knows.take(&next.frame).0, Verdict::Rewritten);
                        assert_eq!(state(both, port)?, Some(FlowState::Established));
                    }
                    // Where the filter has forgotten it, the entry has not.
                    both.forget_moved()?;
                    let asked = both.run(&ack)?;
                    assert_ne!(asked.backend(), backend);
                    let on = both.run(&other.take(&asked.frame).1)?;
                    assert_eq!(on.backend(), backend);
                    assert_eq!(both.run(&ack)?.backend(), backend);
                    // Its own node forgets it in the end.
                    let mut left = both.run(&ack)?;
                    while left.frame.len() > ack.len() {
                        left = both.run(&other.take(&left.frame).1)?;
                    }
                    assert_eq!(left.verdict, Verdict::Pass(Reason::NoFlow));
                    assert_eq!(both.run(&ack)?.verdict, PASSED);
                }
                both.reset()?;
            }
        }
        Ok(())
    })
}

#[test]
fn no_more_nodes_are_asked_than_new_flows_are_allowed() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        (settings.flow_rate, settings.flow_burst) = (0, 0);
        both.set(settings)?;
        both.host.flow_tokens.set(0);
        let receiver = Receiver::new(both.uplinks[0].0);
        for [client, vip, _] in [V4, V6] {
            let ack = packet(client, vip, 3300, Kind::Ack).frame(both);
            let asked = both.run(&ack)?;
            let left = both.run(&receiver.take(&asked.frame).1)?;
            assert_eq!(left.verdict, Verdict::Pass(Reason::NoFlow));
            assert_eq!(left.frame[LINK..], ack[LINK..]);
            assert_eq!(state(both, 3300)?, None);
        }
        Ok(())
    })
}

#[test]
fn a_connection_goes_on_by_a_node_that_has_not_seen_it_begin() -> Result<()> {
    with_both(|both| {
        for (number, [client, _, vip]) in (0..).zip([V4, V6]) {
            let [first, second] = directors(both);
            for port in 6000 + number * 100..6020 + number * 100 {
                let syn = packet(client, vip, port, Kind::Syn).frame(both);
                let Some(sent) = first.send(&syn) else {
                    continue;
                };
                let began = both.run(&sent)?;
                let ack = packet(client, vip, port, Kind::Ack).frame(both);
                let asked = both.run(&second.sent(&ack)?)?;
                assert_eq!(asked.verdict, Verdict::Rewritten);
                assert_eq!(asked.backend(), began.backend());
                assert_eq!(ends(&asked.frame).1, ends(&began.frame).1);
            }
        }
        Ok(())
    })
}

#[test]
fn a_connection_that_nobody_knows_is_given_back() -> Result<()> {
    with_both(|both| {
        for director in directors(both) {
            for [client, _, vip] in [V4, V6] {
                // Some go to backends that are reached otherwise.
                let mut acks =
                    (6500..6600).map(|port| packet(client, vip, port, Kind::Ack).frame(both));
                let asked = acks.find_map(|ack| Some((director.send(&ack)?, ack)));
                let (asked, ack) = asked.context("nothing is sent here")?;
                let answered = both.run(&asked)?;
                assert_eq!(answered.verdict, Verdict::Transmit);
                assert_eq!(answered.reason(), Some(Reason::NoFlow));
                let (from, to) = ends(&asked);
                let (back, on) = ends(&answered.frame);
                assert_eq!((back.ip(), on.ip()), (to.ip(), from.ip()));
                assert_eq!(answered.frame[..6], asked[6..12]);
                assert_eq!(unwrapped(&answered, &ack)[LINK..], ack[LINK..]);
                assert_eq!(state(both, ends(&ack).0.port())?, None);
            }
        }
        Ok(())
    })
}

#[test]
fn what_is_given_back_is_left_to_kube_proxy_from_then_on() -> Result<()> {
    with_both(|both| {
        let receiver = Receiver::new(both.uplinks[0].0);
        for [client, vip, _] in [V4, V6] {
            let ack = packet(client, vip, 6600, Kind::Ack).frame(both);
            let mut left = both.run(&ack)?;
            let mut asked = BTreeSet::new();
            while left.frame.len() > ack.len() {
                assert!(asked.insert(left.backend()), "{asked:?}");
                let (verdict, back) = receiver.take(&left.frame);
                assert_eq!(verdict, Verdict::Transmit);
                left = both.run(&back)?;
            }
            assert_eq!(asked.len(), 2, "each backend that may know it");
            assert_eq!(left.verdict, Verdict::Pass(Reason::NoFlow));
            assert_eq!(left.frame[LINK..], ack[LINK..], "as the client sent it");
            let next = both.run(&ack)?;
            assert_eq!((next.verdict, next.frame), (PASSED, ack));
            // It begins anew.
            let syn = packet(client, vip, 6600, Kind::Syn).frame(both);
            let began = both.run(&syn)?;
            assert_eq!(unwrapped(&began, &syn), syn);
            let (verdict, _) = receiver.take(&began.frame);
            assert_eq!(verdict, Verdict::Rewritten);
        }
        Ok(())
    })
}
