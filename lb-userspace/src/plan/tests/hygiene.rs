//! Contract A7: how backends stand in the map, which is what the packet path asks before a UDP flow goes on.

use std::collections::BTreeMap;

use super::*;

/// States by address, of every element that was ever written; where an address has several, of the last.
fn states(watch: &Watch) -> BTreeMap<IpAddr, u32> {
    let backends = watch.fake.backends.values();
    backends
        .map(|backend| (backend.address.to_ip(), backend.state))
        .collect()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// A7.1, A7.2
#[test]
fn a_backend_is_usable_drains_or_is_down() {
    use backend_state::{DOWN, DRAINING, USABLE};
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let mut dns = service(&[frontend(10, 53)], backends(1..=6));
    step(&mut planner, &mut watch, &desired(&[("dns", &dns)]));
    let all = &mut dns.groups[0].backends;
    all[1].drain = true;
    all[2].weight = 0;
    all[3].down = true;
    (all[4].drain, all[4].down) = (true, true);
    all[5].path = None;
    step(&mut planner, &mut watch, &desired(&[("dns", &dns)]));
    let expected = [USABLE, DRAINING, DRAINING, DOWN, DOWN, DOWN];
    let expected = (1..).map(address).zip(expected).collect();
    assert_eq!(states(&watch), expected);
    // From none of them to each of them.
    for backend in &mut dns.groups[0].backends {
        (backend.drain, backend.down) = (true, !backend.down);
    }
    step(&mut planner, &mut watch, &desired(&[("dns", &dns)]));
    let expected = [DOWN, DOWN, DOWN, DRAINING, DRAINING, DOWN];
    let expected = (1..).map(address).zip(expected).collect();
    assert_eq!(states(&watch), expected);
    // All are gone; the frontend is not.
    dns.groups[0].backends.clear();
    step(&mut planner, &mut watch, &desired(&[("dns", &dns)]));
    assert!(states(&watch).values().all(|state| *state == DOWN));
    assert_eq!(planner.placed(&name("dns"))[0].frontends.len(), 1);
}

/// A7.4
#[test]
fn a_restart_leaves_serving_backends_as_they_are() {
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let mut dns = service(&[frontend(10, 53)], backends(1..=4));
    step(&mut planner, &mut watch, &desired(&[("dns", &dns)]));
    dns.groups[0].backends[0].drain = true;
    let wanted = desired(&[("dns", &dns)]);
    step(&mut planner, &mut watch, &wanted);
    let before = watch.fake.backends.clone();
    let mut again = Planner::restore(LIMITS, KEY, watch.fake.dump().unwrap(), &wanted);
    assert_eq!(step(&mut again, &mut watch, &wanted), []);
    assert_eq!(watch.fake.backends, before, "states and generations");
}

/// A7.3
#[test]
fn whatever_a_dead_agent_left_is_made_as_it_should_be() {
    let states = [
        backend_state::DOWN,
        backend_state::USABLE,
        backend_state::DRAINING,
    ];
    for left in states {
        let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
        let mut dns = service(&[frontend(10, 53)], backends(1..=5));
        step(&mut planner, &mut watch, &desired(&[("dns", &dns)]));
        // One is gone, and its id rests.
        dns.groups[0].backends.pop();
        dns.groups[0].backends[1].drain = true;
        dns.groups[0].backends[2].down = true;
        let wanted = desired(&[("dns", &dns)]);
        step(&mut planner, &mut watch, &wanted);
        let before = watch.fake.backends.clone();
        for backend in watch.fake.backends.values_mut() {
            backend.state = left;
        }
        let mut again = Planner::restore(LIMITS, KEY, watch.fake.dump().unwrap(), &wanted);
        step(&mut again, &mut watch, &wanted);
        assert_eq!(watch.fake.backends, before, "left at {left}");
    }
}
