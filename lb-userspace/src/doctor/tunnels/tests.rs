use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::doctor::State;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn way(other: &str, is_used: bool, met: Met) -> Way {
    let own = if other.contains(':') {
        "2001:db8::11"
    } else {
        "192.0.2.11"
    };
    Way {
        own: ip(own),
        other: ip(other),
        is_used,
        met,
    }
}

fn answer(most: u32) -> Met {
    let after = Duration::from_micros(340);
    Met::Answer { after, most }
}

fn tunnels(mtu: u32, ways: &[Way]) -> Tunnels {
    Tunnels {
        port: 16_081,
        mtu,
        ways: ways.to_vec(),
    }
}

/// What is said of a node.
fn said(is_used: bool, met: Met) -> Line {
    let mut lines = tunnels(1500, &[way("192.0.2.12", is_used, met)]).lines();
    let line = lines.remove(0);
    assert_eq!(line.check, "tunnel to 192.0.2.12");
    // Whoever is told of trouble is told what to do.
    assert_eq!(line.state == State::Ok, line.fix.is_none(), "{line:?}");
    line
}

/// What is said of the room on ways that carry so much.
fn room(mtu: u32, ways: &[(&str, u32)]) -> Option<Line> {
    let ways: Vec<_> = ways
        .iter()
        .map(|(other, most)| way(other, true, answer(*most)))
        .collect();
    let mut lines = tunnels(mtu, &ways).lines().into_iter();
    lines.find(|line| line.check == "tunnel room")
}

#[test]
fn a_node_that_answers_is_well() {
    for is_used in [false, true] {
        let line = said(is_used, answer(1500));
        assert_eq!(line.state, State::Ok);
        assert_eq!(line.found, "answered in 0.3 ms");
    }
}

#[test]
fn a_node_that_is_sent_packets_must_answer() {
    let fault = || Met::Fault("no route to host".into());
    for (met, if_used, else_) in [
        (Met::Silence, State::Unfit, State::Limit),
        // Without an agent, which need not be on every node.
        (Met::Refusal, State::Unfit, State::Ok),
        (fault(), State::Unfit, State::Limit),
    ] {
        assert_eq!(said(true, met.clone()).state, if_used, "{met:?}");
        assert_eq!(said(false, met.clone()).state, else_, "{met:?}");
    }
    for is_used in [false, true] {
        let fix = said(is_used, Met::Silence).fix.unwrap();
        assert!(
            fix.contains("UDP 16081 between 192.0.2.11 and 192.0.2.12"),
            "{fix}"
        );
        assert!(said(is_used, fault()).found.contains("no route to host"));
    }
}

#[test]
fn a_clients_full_size_packet_needs_room() {
    let state = |mtu, ways: &[(&str, u32)]| room(mtu, ways).unwrap().state;
    // IPv6 in a tunnel over IPv4, and over IPv6: 68 and 88 bytes.
    assert_eq!(state(1568, &[("192.0.2.12", 1568)]), State::Ok);
    assert_eq!(state(1568, &[("2001:db8::12", 1568)]), State::Limit);
    assert_eq!(state(1588, &[("2001:db8::12", 1588)]), State::Ok);
    assert_eq!(state(9000, &[("2001:db8::12", 9000)]), State::Ok);
    let line = room(1500, &[("192.0.2.12", 1500)]).unwrap();
    assert_eq!(line.state, State::Limit);
    assert!(line.found.contains("up to 1500 bytes"), "{line:?}");
    assert!(line.fix.unwrap().contains("an MTU of 1568"));
}

#[test]
fn what_gets_lost_between_nodes_is_found_by_the_worst_way() {
    let ways = [
        ("192.0.2.12", 1500),
        ("192.0.2.13", 1450),
        ("2001:db8::12", 1500),
    ];
    let line = room(1500, &ways).unwrap();
    assert_eq!(line.state, State::Unfit);
    assert!(line.found.contains("1450 bytes come through to 192.0.2.13"));
    let fix = line.fix.unwrap();
    assert!(fix.contains("1568") && fix.contains("1450"), "{fix}");
    // Clients of jumbo frames only.
    let jumbo = room(9000, &[("192.0.2.12", 4000)]).unwrap();
    assert_eq!(jumbo.state, State::Limit);
    assert!(jumbo.found.contains("4000 bytes") && jumbo.fix.unwrap().contains("9000"));
}

#[test]
fn of_nodes_that_do_not_answer_no_room_is_known() {
    let silent = way("192.0.2.12", true, Met::Silence);
    assert_eq!(tunnels(1500, &[silent]).lines().len(), 1);
    assert_eq!(tunnels(1500, &[]).lines(), Vec::new());
    assert_eq!(room(0, &[("192.0.2.12", 1500)]), None, "no uplinks");
}

#[test]
fn each_address_is_asked_from_the_one_that_is_used() {
    let set = |ips: &[&str]| -> BTreeSet<IpAddr> { ips.iter().map(|text| ip(text)).collect() };
    let mut maps = dataplane::Tunnels {
        port: 16_081,
        mtu: 1500,
        nat_ports: None,
        own: set(&["192.0.2.11", "192.0.2.21", "2001:db8::11"]),
        others: set(&["192.0.2.12", "192.0.2.13", "2001:db8::12"]),
        used: BTreeMap::from([(ip("192.0.2.13"), ip("192.0.2.21"))]),
    };
    let pairs = |maps: &dataplane::Tunnels| -> Vec<[String; 2]> {
        let ends = ends(maps).into_iter();
        ends.map(|ends| ends.map(|ip| ip.to_string())).collect()
    };
    assert_eq!(
        pairs(&maps),
        [
            ["192.0.2.11", "192.0.2.12"],
            ["192.0.2.21", "192.0.2.13"],
            ["2001:db8::11", "2001:db8::12"],
        ]
    );
    // No end here that its packets could come out of.
    maps.own.remove(&ip("2001:db8::11"));
    assert_eq!(pairs(&maps).len(), 2);
}
