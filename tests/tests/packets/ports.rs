//! `nat`: which port of the balancer a flow gets.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Reason;

use super::{
    Kind,
    stateful::{V4, answer, ends, establish, packet},
    with_both,
};

#[test]
fn the_port_of_a_closed_flow_rests_while_another_is_free() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        // Two ports: 61000 and 61001.
        settings.nat_ports = 0xee49_ee48;
        both.set(settings)?;
        let (port, there) = establish(both, V4, 5500)?;
        both.run(&packet(V4, port, Kind::Fin).frame(both))?;
        both.run(&answer(&there.frame, Kind::Fin).frame(both))?;
        let resting = ends(&there.frame).0.port();
        let mut taken = Vec::new();
        for port in port + 1..port + 200 {
            let next = both.run(&packet(V4, port, Kind::Syn).frame(both))?;
            if next.backend() != there.backend() {
                continue;
            }
            match next.reason() {
                Some(reason) => {
                    assert_eq!(reason, Reason::PortsExhausted);
                    break;
                }
                None => taken.push(ends(&next.frame).0.port()),
            }
        }
        // Better a port in TIME-WAIT than none, but only then.
        assert_eq!(taken, [61_001 - (resting - 61_000), resting]);
        Ok(())
    })
}

#[test]
fn no_free_port_is_a_counted_drop() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        // Four ports: 61000 to 61003.
        settings.nat_ports = 0xee4b_ee48;
        both.set(settings)?;
        let mut reasons = BTreeSet::new();
        for port in 9000..9200 {
            reasons.insert(both.run(&packet(V4, port, Kind::Syn).frame(both))?.reason());
        }
        assert!(
            reasons.contains(&Some(Reason::PortsExhausted)),
            "{reasons:?}"
        );
        Ok(())
    })
}

#[test]
fn each_flow_finds_a_port_while_half_of_them_are_free() -> Result<()> {
    with_both(|both| {
        let mut settings = both.settings;
        let mut client = 10_000..;
        // Numbers of ports with many divisors.
        let mut first = 61_000;
        for ports in [60, 120, 180, 240, 360] {
            settings.nat_ports = first | (first + ports - 1) << 16;
            both.set(settings)?;
            let mut used = BTreeMap::<_, u32>::new();
            while used.values().all(|used| used * 2 < ports) {
                let port = client.next().context("a port")?;
                let new = both.run(&packet(V4, port, Kind::Syn).frame(both))?;
                match new.reason() {
                    None => *used.entry(new.backend()).or_default() += 1,
                    reason => ensure!(
                        reason != Some(Reason::PortsExhausted),
                        "{used:?} of {ports} are in use"
                    ),
                }
            }
            first += ports;
        }
        Ok(())
    })
}
