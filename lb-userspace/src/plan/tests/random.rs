//! Any plan after any other, and any damage to the maps before it.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn any_backend() -> impl Strategy<Value = desired::Backend> {
    let path = prop_oneof![
        8 => (2..5u32).prop_map(|ifindex| Some(Path {
            ifindex,
            segment: at(ifindex),
            ..path(None)
        })),
        1 => Just(None),
    ];
    let weight = prop_oneof![6 => Just(100u16), 1 => Just(0), 1 => 1..=u16::MAX];
    (1..12u8, weight, 0..8u8, path, 1..3u8).prop_map(|(last, weight, mood, path, own)| {
        desired::Backend {
            weight,
            drain: mood == 0,
            down: mood == 1,
            source: path.as_ref().map(|_| IpAddr::from([192, 0, 2, own])),
            path,
            ..backend(last)
        }
    })
}

fn any_group() -> impl Strategy<Value = Vec<desired::Backend>> {
    proptest::collection::vec(any_backend(), 0..9).prop_map(|mut list| {
        let mut seen = BTreeSet::new();
        list.retain(|one| seen.insert(one.address));
        list
    })
}

/// Four services; each frontend of a pool belongs to one of their two groups each, or to none.
fn any_desired() -> impl Strategy<Value = Desired> {
    let owners = proptest::collection::vec(0..10usize, 8);
    let groups = proptest::collection::vec(any_group(), 8);
    let services = proptest::collection::vec((0..4u8, any::<bool>(), 0..5u8), 4);
    // A next hop has one neighbour, whoever is behind it.
    let neighbours = proptest::collection::vec(0..3u8, 5);
    (owners, groups, services, neighbours).prop_map(|(owners, mut groups, services, neighbours)| {
        let paths = groups.iter_mut().flatten();
        for path in paths.filter_map(|backend| backend.path.as_mut()) {
            let mac = neighbours[path.ifindex as usize];
            path.neighbour = (mac > 0).then_some([2, 0, 0, 0, 1, mac]);
        }
        let mut desired = Desired::default();
        for (at, (range, affinity, mode)) in services.into_iter().enumerate() {
            let modes = [Mode::Nat, Mode::Nat, Mode::Ipip, Mode::Local, Mode::Dsr];
            let mode = modes[usize::from(mode)];
            let mut service = Service {
                mode,
                affinity: affinity.then_some(Duration::from_secs(10)),
                groups: Vec::new(),
                ..service(&[], Vec::new())
            };
            for half in 0..2 {
                let place = at * 2 + half;
                let owned = owners
                    .iter()
                    .enumerate()
                    .filter(|(_, owner)| **owner == place);
                let frontends: Vec<_> = owned
                    .map(|(index, _)| frontend(10 + index as u8 / 2 + 95 * (index as u8 % 2), 80))
                    .collect();
                if !frontends.is_empty() {
                    let mut group = service_group(&frontends, groups[place].clone());
                    for backend in &mut group.backends {
                        // A third of a cluster's are on another node.
                        let other = mode == Mode::Local && backend.weight % 3 == 1;
                        backend.mode = if other { Mode::Pass } else { mode };
                        if mode == Mode::Dsr {
                            on_a_node(backend);
                        }
                        if matches!(backend.mode, Mode::Local | Mode::Pass) {
                            (backend.source, backend.path) = (None, None);
                        }
                    }
                    let net = |net| format!("10.{net}.0.0/16").parse().unwrap();
                    // An empty list allows nobody.
                    group.source_ranges = (range > 0).then(|| (1..range).map(net).collect());
                    group.drop = affinity;
                    group.key.port = Some(half as u16 + 1);
                    service.groups.push(group);
                }
            }
            if !service.groups.is_empty() {
                desired.services.insert(name(&format!("s{at}")), service);
            }
        }
        desired
    })
}

/// On this node, or on another that may be away.
fn on_a_node(backend: &mut desired::Backend) {
    if backend.weight.is_multiple_of(3) {
        backend.mode = Mode::Local;
        return;
    }
    backend.node_address = Some(IpAddr::from([192, 0, 2, 100 + backend.weight as u8 % 2]));
    backend.source = Some(IpAddr::from([192, 0, 2, 1]));
    backend.away = backend.path.is_none() || backend.weight % 5 == 1;
}

fn service_group(frontends: &[GroupFrontend], backends: Vec<desired::Backend>) -> Group {
    service(frontends, backends).groups.remove(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A13.3
    #[test]
    fn every_prefix_of_every_plan_is_whole(
        steps in proptest::collection::vec((any_desired(), 0..6u8), 1..24),
    ) {
        let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
        // So few ids that they are given again soon.
        planner.pools.backends = Ids::new(90);
        planner.pools.next_hops = Ids::new(6);
        planner.pools.services = Ids::new(17);
        planner.pools.frontends = Ids::new(17);
        for (wanted, kind) in steps {
            if kind == 0 {
                let dump = watch.fake.dump().unwrap();
                planner = Planner::restore(LIMITS, KEY, dump, &wanted);
            }
            let ops = step(&mut planner, &mut watch, &wanted);
            prop_assert!(graces(&ops) <= 24);
            if kind == 1 {
                let dump = watch.fake.dump().unwrap();
                let usage = planner.usage().map(|usage| usage.used);
                planner = Planner::restore(LIMITS, KEY, dump, &wanted);
                prop_assert_eq!(step(&mut planner, &mut watch, &wanted), []);
                prop_assert_eq!(planner.usage().map(|usage| usage.used), usage);
            }
        }
    }
}

/// What no agent of ours writes, but a broken one might have: a map, an index into its entries, a word.
type Damage = (u8, usize, u32);

fn damage(fake: &mut crate::dataplane::Fake, (map, at, word): Damage) {
    fn nth<K: Ord, V>(map: &mut BTreeMap<K, V>, at: usize, change: impl FnOnce(&mut V)) {
        let length = map.len().max(1);
        map.values_mut().nth(at % length).map(change);
    }
    fn without<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, at: usize) {
        let key = map.keys().nth(at % map.len().max(1)).cloned();
        key.and_then(|key| map.remove(&key));
    }
    let small = word % 10;
    match map {
        0 => nth(&mut fake.services, at, |value| {
            value.table ^= u64::from(word % 4096) << 20;
        }),
        1 => nth(&mut fake.services, at, |value| value.members = word.into()),
        2 => nth(&mut fake.members, at, |value| *value = u64::from(word % 40)),
        3 => nth(&mut fake.slots, at, |value| *value = word.into()),
        4 => nth(&mut fake.backends, at, |value| value.next_hop = small),
        5 => nth(&mut fake.backends, at, |value| value.mode = small as u8),
        6 => nth(&mut fake.addresses, at, |value| *value |= 1 << (word % 64)),
        7 => nth(&mut fake.frontends, at, |value| value.service = small),
        8 => nth(&mut fake.frontends, at, |value| value.id = small),
        9 => without(&mut fake.services, at),
        10 => without(&mut fake.backends, at),
        12 => nth(&mut fake.targets, at, |id| *id = small),
        13 => without(&mut fake.targets, at),
        _ => without(&mut fake.frontends, at),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn broken_maps_are_mended(
        before in any_desired(),
        after in any_desired(),
        same in any::<bool>(),
        damages in proptest::collection::vec((0..14u8, any::<usize>(), any::<u32>()), 0..12),
    ) {
        let mut watch = Watch::new(LIMITS);
        step(&mut Planner::new(LIMITS, KEY), &mut watch, &before);
        for one in damages {
            damage(&mut watch.fake, one);
        }
        let wanted = if same { before } else { after };
        let mut planner = Planner::restore(LIMITS, KEY, watch.fake.dump().unwrap(), &wanted);
        let mut ops = Vec::new();
        planner.all(&wanted, &mut ops).unwrap();
        // Words that name a backend twice go with the next one.
        planner.pools.grace(&mut ops);
        watch.fake.apply(&ops).unwrap();
        watch.holds(&wanted);
    }
}
