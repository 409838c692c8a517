//! `dsr`: backends of other nodes, this node's own as others name them, and where tunnels end.

use super::*;

fn on_node(last: u8) -> desired::Backend {
    desired::Backend {
        mode: Mode::Dsr,
        node_address: Some(IpAddr::from([192, 0, 2, 7])),
        ..backend(last)
    }
}

fn here(last: u8) -> desired::Backend {
    desired::Backend {
        mode: Mode::Local,
        source: None,
        path: None,
        ..backend(last)
    }
}

fn web(backends: Vec<desired::Backend>) -> Service {
    Service {
        mode: Mode::Dsr,
        ..service(&[frontend(10, 80)], backends)
    }
}

fn position(ops: &[Op], is: impl Fn(&Op) -> bool) -> usize {
    ops.iter()
        .position(is)
        .unwrap_or_else(|| panic!("{ops:#?}"))
}

const fn inserts(op: &Op) -> bool {
    matches!(op, Op::InsertTarget4 { .. } | Op::InsertTarget6 { .. })
}

const fn removes(op: &Op) -> bool {
    matches!(op, Op::RemoveTarget4 { .. } | Op::RemoveTarget6 { .. })
}

#[test]
fn a_backend_of_another_node_is_known_by_its_nodes_address_and_its_own() {
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let wanted = desired(&[("web", &web(vec![on_node(1), on_node(2)]))]);
    step(&mut planner, &mut watch, &wanted);
    let text = |ip: lb_common::bytes::Addr| ip.to_ip().to_string();
    for (value, pod) in watch.fake.backends.values().zip(["10.0.0.1", "10.0.0.2"]) {
        assert_eq!(text(value.address), "192.0.2.7");
        assert_eq!(text(value.source), "192.0.2.1");
        assert_eq!(text(value.target), pod);
        assert_ne!(value.next_hop, 0, "the node's");
    }
    assert!(watch.fake.targets.is_empty());
    // It is the same backend for the agent that comes next.
    let dump = watch.fake.dump().unwrap();
    let mut again = Planner::restore(LIMITS, KEY, dump, &wanted);
    assert_eq!(step(&mut again, &mut watch, &wanted), []);
    // A node that moved is another one to send to.
    let mut moved = wanted;
    let web = moved.services.get_mut(&name("web")).unwrap();
    web.groups[0].backends[0].node_address = Some(IpAddr::from([192, 0, 2, 8]));
    let ops = step(&mut again, &mut watch, &moved);
    assert!(ops.iter().any(|op| matches!(op, Op::Backend { .. })));
}

#[test]
fn a_backend_of_this_node_is_named_once_it_is_written_and_not_when_its_id_rests() {
    let limits = Limits {
        backends: 1,
        ..LIMITS
    };
    let (mut planner, mut watch) = (Planner::new(limits, KEY), Watch::new(limits));
    planner.pools.backends = Ids::new(2);
    let ops = step(
        &mut planner,
        &mut watch,
        &desired(&[("web", &web(vec![here(1)]))]),
    );
    let written = position(&ops, |op| matches!(op, Op::Backend { .. }));
    assert!(written < position(&ops, inserts));
    assert_eq!(
        watch
            .fake
            .to_string()
            .lines()
            .find(|line| line.starts_with("target")),
        Some("target 10.0.0.1:80 of service 1: backend 1")
    );
    let ops = step(
        &mut planner,
        &mut watch,
        &desired(&[("web", &web(Vec::new()))]),
    );
    assert!(ops.iter().any(removes));
    // The only id there is.
    let ops = step(
        &mut planner,
        &mut watch,
        &desired(&[("web", &web(vec![here(2)]))]),
    );
    let rested = position(&ops, |op| *op == Op::Grace);
    assert!(rested < position(&ops, |op| matches!(op, Op::Backend { .. })));
    step(&mut planner, &mut watch, &desired(&[]));
    assert!(watch.fake.targets.is_empty());
}

#[test]
fn backends_of_this_node_come_and_go_without_a_wait() {
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    for last in 1..=4 {
        let backends = vec![here(last), here(last + 1)];
        let ops = step(
            &mut planner,
            &mut watch,
            &desired(&[("web", &web(backends))]),
        );
        assert_eq!(graces(&ops), 0);
    }
}

#[test]
fn names_are_taken_over_missing_ones_given_and_strays_removed() {
    let wanted = desired(&[("web", &web(vec![here(1), here(2), here(3), on_node(4)]))]);
    let mut watch = Watch::new(LIMITS);
    step(&mut Planner::new(LIMITS, KEY), &mut watch, &wanted);
    let targets = watch.fake.targets.clone();
    assert_eq!(targets.len(), 3);

    let again = |watch: &mut Watch| {
        let dump = watch.fake.dump().unwrap();
        step(
            &mut Planner::restore(LIMITS, KEY, dump, &wanted),
            watch,
            &wanted,
        )
    };
    assert_eq!(again(&mut watch), []);
    let mut all = targets.keys().copied();
    let (first, second) = (all.next().unwrap(), all.next().unwrap());
    watch.fake.targets.remove(&first);
    *watch.fake.targets.get_mut(&second).unwrap() = 99;
    let stray = (first.0 + 7, first.1, first.2);
    watch.fake.targets.insert(stray, 1);
    let dump = watch.fake.dump().unwrap();
    let mut ops = Vec::new();
    let mut planner = Planner::restore(LIMITS, KEY, dump, &wanted);
    planner.all(&wanted, &mut ops).unwrap();
    watch.fake.apply(&ops).unwrap();
    assert_eq!(watch.fake.targets, targets);
    assert_eq!(ops.iter().filter(|op| removes(op)).count(), 2);
}

#[test]
fn a_node_that_is_away_keeps_its_backends_and_their_slots() {
    use lb_common::abi::service_flag::{FLOWS, SHARED};
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let mut web = web(vec![on_node(1), on_node(2)]);
    step(&mut planner, &mut watch, &desired(&[("web", &web)]));
    let flags = watch.fake.services[&1].flags;
    assert_eq!(flags & (FLOWS | SHARED), FLOWS | SHARED);

    web.groups[0].backends[0].away = true;
    let wanted = desired(&[("web", &web)]);
    let ops = step(&mut planner, &mut watch, &wanted);
    assert!(
        matches!(
            ops[..],
            [Op::BackendLink {
                id: 1,
                state: backend_state::AWAY,
                ..
            }]
        ),
        "{ops:?}"
    );
    let dump = watch.fake.dump().unwrap();
    let mut again = Planner::restore(LIMITS, KEY, dump, &wanted);
    assert_eq!(step(&mut again, &mut watch, &wanted), []);

    web.groups[0].backends[0].away = false;
    let ops = step(&mut again, &mut watch, &desired(&[("web", &web)]));
    assert!(
        matches!(
            ops[..],
            [Op::BackendLink {
                id: 1,
                state: backend_state::USABLE,
                ..
            }]
        ),
        "{ops:?}"
    );
}

#[test]
fn where_tunnels_end_only_other_nodes_may_send() {
    use lb_common::abi::service_flag::{LIVE, SOURCE_RANGES, TUNNEL};
    let mut end = Service {
        is_tunnel_end: true,
        ..web(Vec::new())
    };
    end.groups[0].source_ranges = Some(vec!["192.0.2.7/32".parse().unwrap()]);
    end.groups[0].frontends[0].owns_address = false;
    let wanted = desired(&[("tunnel", &end)]);
    let mut planner = Planner::new(LIMITS, KEY);
    let mut fake = crate::dataplane::Fake::new(LIMITS);
    let mut ops = Vec::new();
    planner.all(&wanted, &mut ops).unwrap();
    fake.apply(&ops).unwrap();
    assert_eq!(fake.services[&1].flags, LIVE | TUNNEL | SOURCE_RANGES);
    assert_eq!(fake.sources.len(), 1);
    assert_eq!(fake.frontends.len(), 1, "the address is not ours");
}

#[test]
fn a_tags_key_is_replaced_while_no_packet_is_taken_for_it() {
    use lb_common::abi::Tunnel;
    let with = |tags: [(u8, u64); 2], current| {
        let mut settings = Settings {
            tunnel: Tunnel::new(lb_common::bytes::Be16::new(16_081), current).0,
            tag_ids: Tunnel::accepted(&tags.map(|(id, _)| id)),
            ..Settings::default()
        };
        for (id, key) in tags {
            settings.tag_keys[usize::from(id & 1)] = [key; 2];
        }
        settings
    };
    let mut planner = Planner::new(LIMITS, KEY);
    let mut ops = Vec::new();
    let before = with([(6, 60), (7, 70)], 7);
    planner.settings(before, &mut ops);
    assert_eq!(ops, [Op::Settings(before)]);
    ops.clear();
    // Sending with another key takes no key from anybody.
    let other = with([(6, 60), (7, 70)], 6);
    planner.settings(other, &mut ops);
    assert_eq!(ops, [Op::Settings(other)]);
    ops.clear();
    let after = with([(6, 60), (9, 90)], 6);
    planner.settings(after, &mut ops);
    let [Op::Settings(between), Op::Grace, Op::Settings(last)] = ops[..] else {
        panic!("{ops:?}");
    };
    assert_eq!(last, after);
    assert_eq!(between.tag_keys, other.tag_keys);
    assert!(Tunnel::accepts(between.tag_ids, 6));
    assert!(!Tunnel::accepts(between.tag_ids, 7) && !Tunnel::accepts(between.tag_ids, 9));
    ops.clear();
    planner.settings(after, &mut ops);
    assert_eq!(ops, []);
}
