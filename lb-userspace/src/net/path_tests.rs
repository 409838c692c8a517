use lb_common::abi::tag;

use super::super::{Hop, Neighbour, Update, Vlan};
use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two uplinks: eth0 (2) with 192.0.2.1/24 and `2001:db8::1/64`, eth1 (3) with 198.51.100.1/24; default by eth0.
fn facts() -> Facts {
    let mut facts = Facts::default();
    for (index, name) in [(2, "eth0"), (3, "eth1")] {
        let link = Link {
            name: name.into(),
            up: true,
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 1, index as u8]),
            xdp_send: true,
            ..Link::default()
        };
        facts.apply(Update::Link(index, Some(link)));
    }
    for (ifindex, net, global) in [
        (2, "192.0.2.1/24", true),
        (2, "2001:db8::1/64", true),
        (2, "fe80::1/64", false),
        (3, "198.51.100.1/24", true),
    ] {
        facts.apply(Update::AddAddress(Address {
            ifindex,
            net: net.parse().unwrap(),
            global,
            preferred: true,
        }));
    }
    for (destination, ifindex, gateway) in [
        ("0.0.0.0/0", 2, Some("192.0.2.254")),
        ("192.0.2.0/24", 2, None),
        ("198.51.100.0/24", 3, None),
        ("10.0.0.0/8", 3, Some("198.51.100.9")),
        ("::/0", 2, Some("fe80::ff")),
        ("2001:db8::/64", 2, None),
    ] {
        facts.apply(Update::AddRoute(route(destination, ifindex, gateway)));
    }
    facts
}

fn route(destination: &str, ifindex: u32, gateway: Option<&str>) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        metric: 0,
        tos: 0,
        hops: vec![Hop {
            ifindex,
            gateway: gateway.map(ip),
        }],
        source: None,
        mtu: None,
    }
}

fn way(facts: &Facts, to: &str) -> Option<(u32, IpAddr, IpAddr)> {
    resolve(facts, ip(to)).map(|path| (path.ifindex, path.gateway, path.source))
}

#[test]
fn the_longest_prefix_wins_and_names_its_own_source() {
    let facts = facts();
    assert_eq!(
        way(&facts, "203.0.113.1"),
        Some((2, ip("192.0.2.254"), ip("192.0.2.1")))
    );
    assert_eq!(
        way(&facts, "10.1.2.3"),
        Some((3, ip("198.51.100.9"), ip("198.51.100.1")))
    );
    assert_eq!(
        way(&facts, "192.0.2.7"),
        Some((2, ip("192.0.2.7"), ip("192.0.2.1")))
    );
    assert_eq!(
        way(&facts, "2001:db8:9::1"),
        Some((2, ip("fe80::ff"), ip("2001:db8::1")))
    );
}

#[test]
fn own_addresses_and_missing_routes_have_no_path() {
    let mut facts = facts();
    assert_eq!(resolve(&facts, ip("192.0.2.1")), None);
    assert_eq!(resolve(&facts, ip("127.0.0.1")), None);
    facts.apply(Update::RemoveRoute(route(
        "0.0.0.0/0",
        2,
        Some("192.0.2.254"),
    )));
    assert_eq!(resolve(&facts, ip("203.0.113.1")), None);
}

#[test]
fn a_rejecting_route_hides_the_default() {
    let mut facts = facts();
    let mut reject = route("203.0.113.0/24", 2, None);
    reject.hops.clear();
    facts.apply(Update::AddRoute(reject));
    assert_eq!(resolve(&facts, ip("203.0.113.1")), None);
}

#[test]
fn a_downed_link_leaves_the_next_route() {
    let mut facts = facts();
    let mut link = facts.links[&3].clone();
    link.up = false;
    facts.apply(Update::Link(3, Some(link)));
    assert_eq!(
        way(&facts, "10.1.2.3").map(|(index, ..)| index),
        Some(2),
        "the default route takes over"
    );
}

#[test]
fn the_lowest_metric_wins_and_its_removal_restores_the_other() {
    let mut facts = facts();
    let mut better = route("10.0.0.0/8", 2, Some("192.0.2.9"));
    let mut known = route("10.0.0.0/8", 3, Some("198.51.100.9"));
    facts.apply(Update::RemoveRoute(known.clone()));
    known.metric = 100;
    better.metric = 50;
    facts.apply(Update::AddRoute(known));
    facts.apply(Update::AddRoute(better.clone()));
    assert_eq!(way(&facts, "10.1.2.3").map(|(index, ..)| index), Some(2));
    facts.apply(Update::RemoveRoute(better));
    assert_eq!(way(&facts, "10.1.2.3").map(|(index, ..)| index), Some(3));
}

#[test]
fn a_gateway_of_the_other_family_keeps_the_source_in_the_destinations() {
    let mut facts = facts();
    facts.apply(Update::AddRoute(route("10.9.0.0/16", 2, Some("fe80::9"))));
    assert_eq!(
        way(&facts, "10.9.0.1"),
        Some((2, ip("fe80::9"), ip("192.0.2.1")))
    );
}

#[test]
fn the_routes_own_source_and_mtu_count() {
    let mut facts = facts();
    let mut special = route("10.9.0.0/16", 2, None);
    special.source = Some(ip("198.51.100.1"));
    special.mtu = Some(1400);
    facts.apply(Update::AddRoute(special));
    let path = resolve(&facts, ip("10.9.0.1")).unwrap();
    assert_eq!((path.source, path.mtu), (ip("198.51.100.1"), 1400));
}

#[test]
fn neighbours_come_and_go() {
    let mut facts = facts();
    let neighbour = Neighbour {
        mac: MAC,
        permanent: false,
        fresh: true,
    };
    let gateway = ip("198.51.100.9");
    assert_eq!(resolve(&facts, ip("10.1.2.3")).unwrap().neighbour, None);
    assert!(facts.apply(Update::Neighbour(3, gateway, Some(neighbour))));
    assert!(!facts.apply(Update::Neighbour(3, gateway, Some(neighbour))));
    assert_eq!(
        resolve(&facts, ip("10.1.2.3")).unwrap().neighbour,
        Some(MAC)
    );
    assert!(facts.apply(Update::Neighbour(3, gateway, None)));
    assert_eq!(resolve(&facts, ip("10.1.2.3")).unwrap().neighbour, None);
}

#[test]
fn a_vanished_link_takes_its_routes_along() {
    let mut facts = facts();
    facts.apply(Update::Link(3, None));
    assert_eq!(way(&facts, "10.1.2.3").map(|(index, ..)| index), Some(2));
    assert!(!facts.is_host_address(ip("198.51.100.1")));
}

#[test]
fn the_first_way_of_a_multipath_route_that_is_up_is_taken() {
    let mut facts = facts();
    let mut multi = route("10.9.0.0/16", 3, Some("198.51.100.7"));
    multi.hops.push(Hop {
        ifindex: 2,
        gateway: Some(ip("192.0.2.7")),
    });
    facts.apply(Update::AddRoute(multi));
    assert_eq!(way(&facts, "10.9.0.1").map(|(index, ..)| index), Some(3));
    let mut link = facts.links[&3].clone();
    link.up = false;
    facts.apply(Update::Link(3, Some(link)));
    assert_eq!(way(&facts, "10.9.0.1").map(|(index, ..)| index), Some(2));
}

#[test]
fn over_a_vlan_xdp_sends_by_the_device_below() {
    let mut facts = facts();
    let vlan = Link {
        name: "eth1.7".into(),
        up: true,
        mtu: 1500,
        mac: Some(MAC),
        kind: "vlan".into(),
        vlan: Some(Vlan {
            below: 3,
            tag: tag(7, false),
        }),
        ..Link::default()
    };
    facts.apply(Update::Link(4, Some(vlan)));
    facts.apply(Update::AddRoute(route("10.7.0.0/16", 4, None)));
    let neighbour = Neighbour {
        mac: [4; 6],
        permanent: false,
        fresh: true,
    };
    // On the VLAN device, not on the one below.
    facts.apply(Update::Neighbour(4, ip("10.7.0.9"), Some(neighbour)));
    let path = resolve(&facts, ip("10.7.0.9")).unwrap();
    let segment = Segment {
        ifindex: 3,
        tags: tag(7, false),
    };
    assert_eq!((path.ifindex, path.segment), (4, segment));
    assert_eq!((path.own_mac, path.neighbour), (MAC, Some([4; 6])));
    assert!(path.xdp_send, "eth1 can");
    let mut below = facts.links[&3].clone();
    below.xdp_send = false;
    facts.apply(Update::Link(3, Some(below)));
    assert!(!resolve(&facts, ip("10.7.0.9")).unwrap().xdp_send);
}
