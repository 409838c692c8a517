//! Contract A7: which flows leave their backend, and when. The path asks at each packet how the backend stands now, so that
//! nobody has to sweep a table, and nothing depends on having seen each change.

use anyhow::{Context as _, Result};
use lb_common::{
    abi::{FrontendKey, Reason, Region, backend_state},
    bytes::{self, Address as _, Be16},
    pipeline::{Step, Verdict},
};
use lb_tests::both::{Both, Outcome};
use lb_userspace::plan::Op;

use super::{
    Kind, assert_checksums, ip,
    local::{self, PASSED, V4, V6, all_to, packet},
    stateful::{self, ends, state},
    with_both,
};

/// A backend on another node, of each service.
const PASSING: [u32; 2] = [18, 21];

/// Tells both how a backend stands.
fn set_state(both: &mut Both, id: u32, state: u32) -> Result<()> {
    let backend = both.host.backends.get_mut(&id).context("a backend")?;
    backend.state = state;
    let next_hop = backend.next_hop;
    both.apply(&[Op::BackendLink {
        id,
        next_hop,
        state,
    }])
}

/// Gives the id of a backend to another one, usable like the one before.
fn replace(both: &mut Both, id: u32) -> Result<()> {
    let backend = both.host.backends.get_mut(&id).context("a backend")?;
    backend.generation += 1;
    let value = *backend;
    both.apply(&[Op::Backend { id, value }])
}

/// Takes all backends out of a service's table, or puts a table there.
fn set_table(both: &mut Both, service: u32, table: u64) -> Result<()> {
    both.host
        .services
        .get_mut(&service)
        .context("a service")?
        .table = table;
    both.apply(&[Op::Table { service, table }])
}

/// Whether the packet's backend was looked for anew.
fn is_chosen(outcome: &Outcome) -> bool {
    let slot = |step: &Step| matches!(step, Step::Slot { .. });
    outcome.steps.iter().any(slot)
}

fn backend(outcome: &Outcome) -> Result<u32> {
    outcome.backend().context("a backend")
}

/// A7.1, A7.6
#[test]
fn a_backend_that_stops_serving_loses_its_udp_flows_only() -> Result<()> {
    with_both(|both| {
        for (at, names) in [V4, V6].into_iter().enumerate() {
            let (ours, there) = local::establish(both, names, 7000)?;
            let (udp, datagram) = local::begin(both, names, 7300, Kind::Udp, Verdict::Rewritten)?;
            let (passed, _) = local::begin(both, names, 7600, Kind::Udp, PASSED)?;
            for id in [backend(&there)?, backend(&datagram)?, PASSING[at]] {
                set_state(both, id, backend_state::DOWN)?;
            }
            let ack = both.run(&packet(names, ours, Kind::Ack).frame(both))?;
            assert_eq!(ends(&ack.frame), ends(&there.frame), "stays");
            assert!(!is_chosen(&ack));
            // One that is begun anew is chosen anew.
            for (port, kind) in [(udp, Kind::Udp), (passed, Kind::Udp), (ours, Kind::Syn)] {
                let next = both.run(&packet(names, port, kind).frame(both))?;
                assert!(is_chosen(&next), "{kind:?} is chosen anew");
            }
        }
        Ok(())
    })
}

/// A7.1
#[test]
fn udp_translated_to_a_backend_leaves_it_when_it_stops_serving() -> Result<()> {
    with_both(|both| {
        for names in [stateful::V4, stateful::V6] {
            let (port, first) = stateful::begin(both, names, 1024, Kind::Udp)?;
            set_state(both, backend(&first)?, backend_state::DOWN)?;
            let next = both.run(&stateful::packet(names, port, Kind::Udp).frame(both))?;
            // The slot still names it here; what matters is that it was chosen anew.
            assert!(is_chosen(&next));
        }
        Ok(())
    })
}

/// A7.1, A4.4
#[test]
fn a_backend_that_drains_keeps_its_flows_and_gets_no_new_ones() -> Result<()> {
    with_both(|both| {
        for (service, names) in [(7, V4), (8, V6)] {
            let (ours, there) = local::establish(both, names, 7000)?;
            let (udp, datagram) = local::begin(both, names, 7300, Kind::Udp, Verdict::Rewritten)?;
            let (passed, _) = local::begin(both, names, 7600, Kind::Udp, PASSED)?;
            let drained = [backend(&there)?, backend(&datagram)?];
            for id in drained.into_iter().chain([PASSING[service as usize - 7]]) {
                set_state(both, id, backend_state::DRAINING)?;
            }
            // The table names the fourth from now on, by `nat`.
            all_to(both, service, 3)?;
            for (port, kind, before) in [(ours, Kind::Ack, &there), (udp, Kind::Udp, &datagram)] {
                let next = both.run(&packet(names, port, kind).frame(both))?;
                assert_eq!(ends(&next.frame), ends(&before.frame), "{kind:?} stays");
                assert!(!is_chosen(&next));
            }
            let next = both.run(&packet(names, passed, Kind::Udp).frame(both))?;
            assert_eq!(next.verdict, PASSED, "stays the other's");
            assert!(!is_chosen(&next));
            for (port, kind) in [(7900, Kind::Udp), (7901, Kind::Syn), (ours, Kind::Syn)] {
                let new = both.run(&packet(names, port, kind).frame(both))?;
                assert!(is_chosen(&new) && !drained.contains(&backend(&new)?));
            }
        }
        for names in [stateful::V4, stateful::V6] {
            let (port, first) = stateful::begin(both, names, 1024, Kind::Udp)?;
            set_state(both, backend(&first)?, backend_state::DRAINING)?;
            let next = both.run(&stateful::packet(names, port, Kind::Udp).frame(both))?;
            assert_eq!(ends(&next.frame), ends(&first.frame), "stays");
        }
        Ok(())
    })
}

/// A7.3
#[test]
fn what_counts_is_how_the_backend_stands_at_the_next_packet() -> Result<()> {
    with_both(|both| {
        for names in [V4, V6] {
            let (udp, datagram) = local::begin(both, names, 7300, Kind::Udp, Verdict::Rewritten)?;
            let id = backend(&datagram)?;
            // It was down while its client was silent.
            for state in [backend_state::DOWN, backend_state::USABLE] {
                set_state(both, id, state)?;
            }
            let next = both.run(&packet(names, udp, Kind::Udp).frame(both))?;
            assert!(!is_chosen(&next));
            // Its id was given to another one meanwhile, and no change was seen.
            replace(both, id)?;
            let next = both.run(&packet(names, udp, Kind::Udp).frame(both))?;
            assert!(is_chosen(&next), "not the one that it was");
        }
        for names in [stateful::V4, stateful::V6] {
            let (port, first) = stateful::begin(both, names, 1024, Kind::Udp)?;
            replace(both, backend(&first)?)?;
            let next = both.run(&stateful::packet(names, port, Kind::Udp).frame(both))?;
            assert!(is_chosen(&next));
        }
        for (names, id) in [(V4, PASSING[0]), (V6, PASSING[1])] {
            let (port, _) = local::begin(both, names, 7600, Kind::Udp, PASSED)?;
            replace(both, id)?;
            let next = both.run(&packet(names, port, Kind::Udp).frame(both))?;
            assert!(is_chosen(&next));
        }
        Ok(())
    })
}

/// A7.2, A6.4
#[test]
fn a_service_without_backends_keeps_its_connections_and_no_udp_flow() -> Result<()> {
    with_both(|both| {
        for (service, names, port) in [(7, V4, 6000), (8, V6, 7000)] {
            let (ours, there) = local::establish(both, names, port)?;
            let (udp, datagram) =
                local::begin(both, names, port + 500, Kind::Udp, Verdict::Rewritten)?;
            for id in [backend(&there)?, backend(&datagram)?] {
                set_state(both, id, backend_state::DOWN)?;
            }
            set_table(both, service, Region::EMPTY.0)?;

            let ack = both.run(&packet(names, ours, Kind::Ack).frame(both))?;
            assert_eq!(ends(&ack.frame), ends(&there.frame), "stays");
            for (port, kind) in [(udp, Kind::Udp), (ours + 1, Kind::Syn)] {
                let next = both.run(&packet(names, port, kind).frame(both))?;
                assert_eq!(next.verdict, Verdict::Transmit);
                assert_eq!(next.reason(), Some(Reason::NoBackend), "answered");
            }
            assert_eq!(state(both, udp)?, None, "nothing is left of it");
        }
        Ok(())
    })
}

/// A7.5, A6.4
#[test]
fn a_packet_that_came_before_its_service_was_there_pins_nothing() -> Result<()> {
    with_both(|both| {
        for (service, names, client) in [(7, V4, 7300), (8, V6, 7301)] {
            all_to(both, service, 0)?;
            let frame = packet(names, client, Kind::Udp).frame(both);
            let table = both.host.services[&service].table;
            // Before it had a backend; before its port had a frontend; before anyone knew of the VIP.
            set_table(both, service, Region::EMPTY.0)?;
            assert_eq!(both.run(&frame)?.reason(), Some(Reason::NoBackend));
            assert_eq!(state(both, client)?, None);
            let [port, vip] = [53, 0].map(|port| Hidden::take(both, names[1], port));
            let mut known = port?;
            assert_eq!(both.run(&frame)?.verdict, Verdict::NotOurs);
            vip?.put_back(both)?;
            assert_eq!(both.run(&frame)?.reason(), Some(Reason::UnknownPort));
            assert_eq!(state(both, client)?, None);

            known.put_back(both)?;
            set_table(both, service, table)?;
            let there = both.run(&frame)?;
            assert_eq!(there.verdict, Verdict::Rewritten);
            assert_checksums(&there.frame);
        }
        Ok(())
    })
}

/// An entry for a frontend, or with port 0 for its address, that is taken out of both.
struct Hidden([Op; 2]);

impl Hidden {
    fn take(both: &mut Both, vip: &str, port: u16) -> Result<Self> {
        let protocol = if port == 0 { 0 } else { 17 };
        let (address, port) = (bytes::Addr::from(ip(vip)), Be16::new(port));
        let ops = if address.is_v4() {
            let key = FrontendKey::new(bytes::V4::from_addr(&address), port, protocol);
            let value = both.host.v4.frontends.remove(&key).context("an entry")?;
            [
                Op::RemoveFrontend4 { key },
                Op::InsertFrontend4 { key, value },
            ]
        } else {
            let key = FrontendKey::new(bytes::V6::from_addr(&address), port, protocol);
            let value = both.host.v6.frontends.remove(&key).context("an entry")?;
            [
                Op::RemoveFrontend6 { key },
                Op::InsertFrontend6 { key, value },
            ]
        };
        both.apply(&ops[..1])?;
        Ok(Self(ops))
    }

    fn put_back(&mut self, both: &mut Both) -> Result<()> {
        match &self.0[1] {
            Op::InsertFrontend4 { key, value } => {
                both.host.v4.frontends.insert(*key, *value);
            }
            Op::InsertFrontend6 { key, value } => {
                both.host.v6.frontends.insert(*key, *value);
            }
            _ => {}
        }
        both.apply(&self.0[1..])
    }
}

/// A7.6
#[test]
fn a_tcp_flow_outlives_its_backend_in_the_configuration() -> Result<()> {
    with_both(|both| {
        for (names, port) in [(stateful::V4, 5700), (stateful::V6, 5800)] {
            let (port, there) = stateful::establish(both, names, port)?;
            replace(both, backend(&there)?)?;
            let next = both.run(&stateful::packet(names, port, Kind::Ack).frame(both))?;
            assert_eq!(ends(&next.frame), ends(&there.frame), "as before");
            assert_checksums(&next.frame);
            assert!(!is_chosen(&next));
        }
        Ok(())
    })
}
