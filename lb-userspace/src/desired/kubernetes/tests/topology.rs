//! A5: hints.

use super::*;

fn hinted(address: &str, node: &str, zones: &[&str], nodes: &[&str]) -> Endpoint {
    Endpoint {
        zone_hints: zones.iter().map(|zone| (*zone).into()).collect(),
        node_hints: nodes.iter().map(|node| (*node).into()).collect(),
        ..endpoint(address, node)
    }
}

fn with_hints() -> Options {
    Options {
        topology_hints: true,
        ..options()
    }
}

/// Last bytes of the addresses that get new flows.
fn usable(endpoints: &[Endpoint]) -> Vec<u8> {
    let world = World::with(with_hints(), web(), endpoints.to_vec());
    last_bytes(&world)
}

fn last_bytes(world: &World) -> Vec<u8> {
    let group = world.group("web", &vip());
    let usable = group.backends.iter().filter(|backend| backend.usable());
    usable
        .map(|backend| match backend.address {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => unreachable!(),
        })
        .collect()
}

/// A5.2
#[test]
fn an_endpoint_says_which_hint_it_was_chosen_by() {
    let chosen = |endpoints: &[Endpoint]| {
        // What is for others keeps its flows here, too.
        let options = Options {
            nat_addresses: vec![ip("192.0.2.9")],
            ..with_hints()
        };
        let world = World::with(options, web(), endpoints.to_vec());
        let backends = world.group("web", &vip()).backends;
        let rule = |backend: &desired::Backend| backend.origin.as_ref().unwrap().chosen;
        backends.iter().map(rule).collect::<Vec<_>>()
    };
    let by_node = [
        hinted("10.1.0.1", "n1", &[], &["n1"]),
        hinted("10.1.0.2", "n2", &[], &["n2"]),
    ];
    assert_eq!(chosen(&by_node), [Rule::ReadyForNode, Rule::ForOthers]);
    let by_zone = [
        hinted("10.1.0.1", "n3", &["b"], &[]),
        hinted("10.1.0.2", "n2", &["a"], &[]),
    ];
    assert_eq!(chosen(&by_zone), [Rule::ForOthers, Rule::ReadyForZone]);
}

/// A5.1, A5.2
#[test]
fn node_hints_go_before_zone_hints_and_both_need_one_for_here() {
    let by_node = [
        hinted("10.1.0.1", "n1", &["a"], &["n1"]),
        hinted("10.1.0.2", "n2", &["a"], &["n2"]),
    ];
    assert_eq!(usable(&by_node), [1]);
    // No node hint names this node: zones decide.
    let by_zone = [
        hinted("10.1.0.1", "n3", &["a"], &["n3"]),
        hinted("10.1.0.2", "n2", &["b"], &["n2"]),
    ];
    assert_eq!(usable(&by_zone), [1]);
    let for_none = [
        hinted("10.1.0.1", "n3", &["b"], &[]),
        hinted("10.1.0.2", "n2", &["c"], &[]),
    ];
    assert_eq!(usable(&for_none), [1, 2]);
    let several = [
        hinted("10.1.0.1", "n3", &["c", "a"], &[]),
        hinted("10.1.0.2", "n2", &["c"], &[]),
    ];
    assert_eq!(usable(&several), [1]);
}

/// A5.3
#[test]
fn one_ready_endpoint_without_a_hint_disables_the_mode() {
    let mut endpoints = vec![
        hinted("10.1.0.1", "n1", &["a"], &["n1"]),
        hinted("10.1.0.2", "n2", &["b"], &[]),
    ];
    assert_eq!(usable(&endpoints), [1], "the zone's hints are whole");
    endpoints.push(hinted("10.1.0.3", "n2", &[], &["n2"]));
    assert_eq!(usable(&endpoints), [1, 2, 3]);
    // One that is not ready is not asked.
    endpoints[2] = conditions(endpoints[2].clone(), false, false, false);
    assert_eq!(usable(&endpoints), [1]);
}

/// A4.1
#[test]
fn what_leaves_is_used_in_the_end_whatever_its_hints_are() {
    let elsewhere = hinted("10.1.0.1", "n2", &["b"], &["n2"]);
    assert_eq!(usable(&[leaving(elsewhere)]), [1]);
}

/// A5.4
#[test]
fn a_node_that_changes_its_zone_has_every_service_built_again() {
    let endpoints = vec![
        hinted("10.1.0.1", "n3", &["a"], &[]),
        hinted("10.1.0.2", "n2", &["b"], &[]),
    ];
    let mut world = World::with(with_hints(), web(), endpoints);
    assert_eq!(last_bytes(&world), [1]);
    let moved = a_node("n1", node(&["192.0.2.1", "2001:db8::1"], Some("b")));
    assert_eq!(world.tell([moved]), ["web"]);
    assert_eq!(last_bytes(&world), [2]);
    let without = a_node("n1", node(&["192.0.2.1", "2001:db8::1"], None));
    assert_eq!(world.tell([without]), ["web"]);
    assert_eq!(last_bytes(&world), [1, 2]);
}

/// A5.6
#[test]
fn external_frontends_follow_hints_only_where_that_is_asked_for() {
    let endpoints = vec![
        hinted("10.1.0.1", "n1", &[], &["n1"]),
        hinted("10.1.0.2", "n2", &[], &["n2"]),
    ];
    let options = Options {
        cluster_ips: true,
        ..options()
    };
    let world = World::with(options, web(), endpoints.clone());
    assert_eq!(last_bytes(&world), [1, 2]);
    assert_eq!(
        world.usable("web", "10.96.0.10:80/tcp"),
        ["local 10.1.0.1:8080"]
    );
    assert_eq!(usable(&endpoints), [1]);
}

/// A4.5
#[test]
fn hints_do_not_narrow_a_local_policy() {
    let service = Service {
        external_local: true,
        ..web()
    };
    let endpoints = vec![
        hinted("10.1.0.1", "n1", &["b"], &[]),
        hinted("10.1.0.2", "n1", &["a"], &[]),
    ];
    let world = World::with(with_hints(), service, endpoints);
    assert_eq!(last_bytes(&world), [1, 2]);
}
