//! A7: which endpoints keep the UDP flows that they have. The packet path follows the state of each backend.

use lb_common::abi::{Mode, backend_state};

use super::*;

/// A Service over UDP and TCP on port 53.
fn dns() -> Service {
    Service {
        ports: vec![port("http", "UDP", 53, 0), port("tcp", "TCP", 53, 0)],
        ..web()
    }
}

fn dns_slice(endpoints: Vec<Endpoint>) -> Slice {
    Slice {
        ports: vec![
            slice_port("http", "UDP", 5353),
            slice_port("tcp", "TCP", 5353),
        ],
        ..slice(endpoints)
    }
}

fn world(service: Service, endpoints: Vec<Endpoint>) -> World {
    let mut world = World::new(options());
    world.tell([
        a_service("web", service),
        a_slice("web-1", dns_slice(endpoints)),
    ]);
    world
}

/// How the endpoints of a frontend stand, by mode and address.
fn states(world: &World, protocol: &str) -> Vec<(Mode, String, u32)> {
    let group = world.group("web", &format!("{VIP}:53/{protocol}"));
    let state = |one: &desired::Backend| (one.mode, one.address.to_string(), one.state());
    group.backends.iter().map(state).collect()
}

fn as_told(told: &[(Mode, &str, u32)]) -> Vec<(Mode, String, u32)> {
    let owned = |(mode, address, state): &(Mode, &str, u32)| (*mode, (*address).to_owned(), *state);
    told.iter().map(owned).collect()
}

/// A7.1
#[test]
fn an_endpoint_keeps_its_udp_flows_as_long_as_it_serves() {
    use backend_state::{DOWN, DRAINING, USABLE};
    let (here, there) = (endpoint("10.1.0.1", "n1"), endpoint("10.2.0.1", "n2"));
    let stays = endpoint("10.1.0.9", "n1");
    let cases = [
        ((true, true, false), USABLE),
        // It leaves, and serves still.
        ((false, true, true), DRAINING),
        ((false, true, false), DRAINING),
        ((false, false, true), DOWN),
        ((false, false, false), DOWN),
    ];
    for ((ready, serving, terminating), state) in cases {
        let now = |one: &Endpoint| conditions(one.clone(), ready, serving, terminating);
        let world = world(dns(), vec![now(&here), now(&there), stays.clone()]);
        let mut expected = vec![
            (Mode::Local, "10.1.0.1", state),
            (Mode::Local, "10.1.0.9", USABLE),
            (Mode::Pass, "10.2.0.1", state),
        ];
        // Whoever is down and elsewhere need not be known at all.
        expected.retain(|(mode, _, state)| (*mode, *state) != (Mode::Pass, DOWN));
        assert_eq!(states(&world, "udp"), as_told(&expected));
    }
}

/// A7.1
#[test]
fn what_policy_or_topology_no_longer_selects_keeps_its_udp_flows() {
    use backend_state::{DRAINING, USABLE};
    let (here, there) = (endpoint("10.1.0.1", "n1"), endpoint("10.2.0.1", "n2"));
    let policy = Service {
        external_local: true,
        ..dns()
    };
    let expected = as_told(&[
        (Mode::Local, "10.1.0.1", USABLE),
        (Mode::Pass, "10.2.0.1", DRAINING),
    ]);
    let of_policy = world(policy, vec![here.clone(), there.clone()]);
    assert_eq!(states(&of_policy, "udp"), expected);
    // A connection that passed has no entry here, so that nobody is to be remembered for it.
    assert_eq!(states(&of_policy, "tcp"), expected[..1]);

    let hinted = |one: Endpoint, zone: &str| Endpoint {
        zone_hints: vec![zone.into()],
        ..one
    };
    let mut of_topology = World::new(Options {
        topology_hints: true,
        ..options()
    });
    let endpoints = vec![hinted(here, "a"), hinted(there, "b")];
    of_topology.tell([
        a_node("n1", node(&["192.0.2.1", "2001:db8::1"], Some("a"))),
        a_service("web", dns()),
        a_slice("web-1", dns_slice(endpoints)),
    ]);
    assert_eq!(states(&of_topology, "udp"), expected);
}

/// A7.2
#[test]
fn a_service_without_endpoints_is_still_there_and_remembers_none() {
    let mut world = world(dns(), vec![endpoint("10.1.0.1", "n1")]);
    let group = |world: &World| world.group("web", &format!("{VIP}:53/udp"));
    assert_eq!(group(&world).backends.len(), 1);
    let without = [
        a_slice("web-1", dns_slice(vec![])),
        Change::Deleted(Kind::EndpointSlice, key("web-1")),
    ];
    for change in without {
        world.tell([change]);
        assert_eq!(group(&world).backends, []);
        assert_eq!(group(&world).frontends.len(), 1, "packets still come here");
        assert!(!group(&world).drop, "they are answered");
    }
}
