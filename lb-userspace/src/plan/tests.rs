//! Plans against an in-memory dataplane, checked after every single op: what a packet between two ops would meet.

mod hygiene;
mod random;
mod tunnels;
mod watch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{Mode, Segment, backend_state, tag};

use super::{ids::Ids, *};
use crate::{
    config::{Algorithm, Protocol},
    dataplane::Dataplane as _,
    desired::{Group, GroupFrontend, GroupKey, Service},
    net::Path,
};
use watch::Watch;

const KEY: [u64; 2] = [7, 8];
const LIMITS: Limits = Limits {
    frontends: 16,
    backends: 256,
    flows: 16,
};

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn frontend(last: u8, port: u16) -> GroupFrontend {
    GroupFrontend {
        frontend: Frontend {
            address: if last < 100 {
                IpAddr::from([192, 0, 2, last])
            } else {
                IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()))
            },
            port,
            protocol: Protocol::Tcp,
        },
        owns_address: true,
        rules: None,
    }
}

/// Where XDP sends what leaves by an interface that is none of VLANs.
fn at(ifindex: u32) -> Segment {
    Segment { ifindex, tags: 0 }
}

fn path(neighbour: Option<u8>) -> Path {
    Path {
        ifindex: 2,
        segment: at(2),
        gateway: IpAddr::from([192, 0, 2, 254]),
        source: IpAddr::from([192, 0, 2, 1]),
        own_mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        neighbour: neighbour.map(|last| [2, 0, 0, 0, 1, last]),
        xdp_send: true,
    }
}

fn backend(last: u8) -> desired::Backend {
    let address = IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
    desired::Backend {
        socket: (address, 80).into(),
        address,
        port: 80,
        mode: Mode::Nat,
        weight: 100,
        drain: false,
        down: false,
        away: false,
        node_address: None,
        source: Some(IpAddr::from([192, 0, 2, 1])),
        path: Some(path(Some(1))),
        origin: None,
    }
}

fn service(frontends: &[GroupFrontend], backends: Vec<desired::Backend>) -> Service {
    Service {
        mode: Mode::Nat,
        is_tunnel_end: false,
        affinity: None,
        algorithm: Algorithm::Rendezvous,
        groups: vec![Group {
            key: GroupKey::default(),
            frontends: frontends.to_vec(),
            backends,
            source_ranges: None,
            drop: false,
        }],
        left_out: Vec::new(),
    }
}

fn desired(services: &[(&str, &Service)]) -> Desired {
    Desired {
        services: services
            .iter()
            .map(|(text, service)| (name(text), (*service).clone()))
            .collect(),
    }
}

fn backends(of: impl IntoIterator<Item = u8>) -> Vec<desired::Backend> {
    of.into_iter().map(backend).collect()
}

/// Plans, applies op by op, and gives the ops back.
fn step(planner: &mut Planner, watch: &mut Watch, wanted: &Desired) -> Vec<Op> {
    let mut ops = Vec::new();
    planner.all(wanted, &mut ops).unwrap();
    watch.apply(&ops);
    watch.holds(wanted);
    ops
}

fn graces(ops: &[Op]) -> usize {
    ops.iter().filter(|op| **op == Op::Grace).count()
}

#[test]
fn a_service_comes_changes_and_goes() {
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let web = service(&[frontend(10, 80), frontend(100, 80)], backends(1..=4));
    let ops = step(&mut planner, &mut watch, &desired(&[("web", &web)]));
    assert_eq!(graces(&ops), 0);
    assert_eq!(
        step(&mut planner, &mut watch, &desired(&[("web", &web)])),
        []
    );
    let placed = planner.placed(&name("web"));
    assert_eq!(placed[0].backends.len(), 4);
    assert_eq!(
        placed[0].backends.iter().map(|one| one.slots).sum::<u32>(),
        256
    );
    assert_eq!(placed[0].frontends.len(), 2);

    // A drain moves its slots in one store.
    let mut drained = web.clone();
    drained.groups[0].backends[1].drain = true;
    let ops = step(&mut planner, &mut watch, &desired(&[("web", &drained)]));
    assert!(matches!(
        &ops[..],
        [
            Op::Slots { .. },
            Op::Table { .. },
            Op::BackendLink {
                state: backend_state::DRAINING,
                ..
            }
        ]
    ));
    let ops = step(&mut planner, &mut watch, &desired(&[]));
    assert!(!ops.is_empty());
    assert!(watch.fake.frontends.is_empty());
    assert!(
        watch.fake.addresses.len() == 1,
        "replies to the source of old flows stay ours"
    );
    assert_eq!(planner.usage().map(|usage| usage.used), [0; 6]);
}

#[test]
fn a_replacement_moves_no_slot() {
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let before = service(&[frontend(10, 80)], backends([1, 2, 3]));
    step(&mut planner, &mut watch, &desired(&[("web", &before)]));
    let after = service(&[frontend(10, 80)], backends([1, 3, 9]));
    let ops = step(&mut planner, &mut watch, &desired(&[("web", &after)]));
    assert!(
        !ops.iter()
            .any(|op| matches!(op, Op::Table { .. } | Op::Slots { .. })),
        "{ops:?}"
    );
    let ordinals: Vec<_> = planner.placed(&name("web"))[0]
        .backends
        .iter()
        .map(|one| one.address.to_string())
        .collect();
    assert_eq!(ordinals, ["10.0.0.1", "10.0.0.9", "10.0.0.3"]);
}

#[test]
fn slots_remember_their_former_owners() {
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let mut web = service(&[frontend(10, 80)], backends(1..=3));
    step(&mut planner, &mut watch, &desired(&[("web", &web)]));
    web.groups[0].backends[0].down = true;
    step(&mut planner, &mut watch, &desired(&[("web", &web)]));
    let chained = |watch: &Watch| {
        let slots = watch.table(0);
        slots
            .iter()
            .filter(|slot| lb_common::abi::owner(**slot, 1) == 0)
            .count()
    };
    assert!(
        chained(&watch) > 64,
        "slots of ordinal 0 have it as former owner"
    );
    // The one that is down leaves: nobody is led to who comes after it.
    web.groups[0].backends.remove(0);
    let ops = step(&mut planner, &mut watch, &desired(&[("web", &web)]));
    assert!(!ops.iter().any(|op| matches!(op, Op::Table { .. })));
    assert_eq!(chained(&watch), 0);
}

/// Whoever has its slots now is asked for its connections first (docs/dsr.md).
#[test]
fn slots_remember_who_was_replaced_while_it_drains() {
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let mut web = service(&[frontend(10, 80)], backends(1..=3));
    step(&mut planner, &mut watch, &desired(&[("web", &web)]));
    let owners = |watch: &Watch| -> Vec<u16> {
        let slots = watch.table(0).into_iter();
        slots.map(|slot| lb_common::abi::owner(slot, 0)).collect()
    };
    let before = owners(&watch);
    // The second is replaced twice: by one that comes while it drains, and by one that comes while that drains, too.
    for (drains, comes) in [(1, 4), (3, 5)] {
        web.groups[0].backends[drains].drain = true;
        web.groups[0].backends.push(backend(comes));
        let ops = step(&mut planner, &mut watch, &desired(&[("web", &web)]));
        assert!(!ops.iter().any(|op| matches!(op, Op::Table { .. })));
    }
    assert_eq!(owners(&watch), before);
    let named = |planner: &Planner, ordinal: u16| {
        let groups = planner.placed(&name("web"));
        let mut backends = groups[0].backends.iter();
        let named = backends.find(|one| one.ordinal == ordinal);
        named.map(|one| one.address.to_string())
    };
    let chain = |watch: &Watch| {
        let slots = watch.table(0).into_iter();
        let slot = slots.zip(&before).find(|(_, owner)| **owner == 1);
        [0, 1, 2, 3].map(|lane| lb_common::abi::owner(slot.unwrap().0, lane))
    };
    let names = chain(&watch).map(|ordinal| named(&planner, ordinal).unwrap_or_default());
    assert_eq!(names, ["10.0.0.5", "10.0.0.4", "10.0.0.2", ""]);
    // The next agent knows as much.
    let wanted = desired(&[("web", &web)]);
    let mut again = Planner::restore(LIMITS, KEY, watch.fake.dump().unwrap(), &wanted);
    assert_eq!(step(&mut again, &mut watch, &wanted), []);
    // Who has gone is forgotten.
    web.groups[0].backends.remove(1);
    step(&mut again, &mut watch, &desired(&[("web", &web)]));
    let names = chain(&watch).map(|ordinal| named(&again, ordinal).unwrap_or_default());
    assert_eq!(names, ["10.0.0.5", "10.0.0.4", "", ""]);
}

#[test]
fn a_neighbour_is_one_op_for_all_behind_it() {
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let mut web = service(&[frontend(10, 80)], backends(1..=4));
    step(&mut planner, &mut watch, &desired(&[("web", &web)]));
    for backend in &mut web.groups[0].backends {
        backend.path = Some(path(None));
    }
    let ops = step(&mut planner, &mut watch, &desired(&[("web", &web)]));
    assert!(matches!(&ops[..], [Op::Neighbour { .. }]), "{ops:?}");
    // Another interface is another next hop.
    let other = Path {
        ifindex: 3,
        segment: at(3),
        ..path(Some(1))
    };
    for backend in &mut web.groups[0].backends {
        backend.path = Some(other.clone());
    }
    let ops = step(&mut planner, &mut watch, &desired(&[("web", &web)]));
    let links = ops
        .iter()
        .filter(|op| matches!(op, Op::BackendLink { .. }))
        .count();
    assert!(matches!(ops[0], Op::NextHop { id: 2, .. }));
    assert_eq!((ops.len(), links), (5, 4));
}

/// A13.4
#[test]
fn a_restart_changes_nothing() {
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let mut web = service(&[frontend(10, 80), frontend(100, 443)], backends(1..=4));
    web.groups[0].source_ranges = Some(vec![
        "198.51.100.0/24".parse().unwrap(),
        "2001:db8::/32".parse().unwrap(),
    ]);
    let dns = service(&[frontend(11, 53)], backends([7]));
    let empty = service(&[frontend(12, 53)], Vec::new());
    let wanted = desired(&[("web", &web), ("dns", &dns), ("empty", &empty)]);
    step(&mut planner, &mut watch, &wanted);
    web.groups[0].backends[2].down = true;
    let wanted = desired(&[("web", &web), ("dns", &dns), ("empty", &empty)]);
    step(&mut planner, &mut watch, &wanted);

    let mut again = Planner::restore(LIMITS, KEY, watch.fake.dump().unwrap(), &wanted);
    assert_eq!(step(&mut again, &mut watch, &wanted), []);
    assert_eq!(again.usage(), planner.usage());
    for service in ["web", "dns", "empty"] {
        assert_eq!(again.placed(&name(service)), planner.placed(&name(service)));
    }
    // A change that came while nobody was there; what was reserved is not given out.
    let renamed = desired(&[("www", &web), ("dns", &dns)]);
    let mut again = Planner::restore(LIMITS, KEY, watch.fake.dump().unwrap(), &renamed);
    let ops = step(&mut again, &mut watch, &renamed);
    assert!(
        !ops.iter()
            .any(|op| matches!(op, Op::InsertFrontend4 { .. } | Op::Table { .. }))
    );
    assert!(
        !watch
            .fake
            .frontends
            .keys()
            .any(|key| key.address == IpAddr::from([192, 0, 2, 12]))
    );
    let mut more = web.clone();
    more.groups[0].backends.extend(backends(20..=40));
    let ops = step(
        &mut again,
        &mut watch,
        &desired(&[("www", &more), ("dns", &dns)]),
    );
    assert!(graces(&ops) <= 1);
}

#[test]
fn a_frontend_goes_over_to_another_service() {
    let (mut planner, mut watch) = (Planner::new(LIMITS, KEY), Watch::new(LIMITS));
    let a = service(&[frontend(10, 80), frontend(10, 81)], backends([1, 2]));
    let b = service(&[frontend(11, 80)], backends([3]));
    step(&mut planner, &mut watch, &desired(&[("a", &a), ("b", &b)]));
    let a = service(&[frontend(10, 80)], backends([1, 2]));
    let b = service(&[frontend(11, 80), frontend(10, 81)], backends([3]));
    let mut ops = Vec::new();
    // The winner first, then the loser.
    for (service, to) in [("b", &b), ("a", &a)] {
        planner.service(&name(service), Some(to), &mut ops).unwrap();
    }
    watch.apply(&ops);
    watch.holds(&desired(&[("a", &a), ("b", &b)]));
    // The loser first.
    let c = service(&[frontend(10, 80)], backends([4]));
    let mut ops = Vec::new();
    planner.service(&name("a"), None, &mut ops).unwrap();
    planner.service(&name("c"), Some(&c), &mut ops).unwrap();
    watch.apply(&ops);
    watch.holds(&desired(&[("c", &c), ("b", &b)]));
}

/// A13.5
#[test]
fn full_maps_are_named_and_change_nothing() {
    let limits = Limits {
        frontends: 1,
        backends: 2,
        flows: 1,
    };
    let mut planner = Planner::new(limits, KEY);
    planner.pools.backends = Ids::new(4);
    let mut watch = Watch::new(limits);
    let web = service(&[frontend(10, 80)], backends(1..=3));
    step(&mut planner, &mut watch, &desired(&[("web", &web)]));
    let usage = planner.usage();
    let mut ops = Vec::new();
    let other = service(&[frontend(11, 80)], backends([9]));
    let error = planner
        .service(&name("other"), Some(&other), &mut ops)
        .unwrap_err();
    assert_eq!(error.to_string(), "backends: 4 of 3; raise limits.backends");
    assert_eq!((ops, planner.usage()), (Vec::new(), usage));
    // What goes makes room for what comes.
    let other = service(&[frontend(11, 80)], backends(7..=9));
    step(&mut planner, &mut watch, &desired(&[("other", &other)]));
}

#[test]
fn settings_and_devices_change_when_they_do() {
    let mut planner = Planner::new(LIMITS, KEY);
    let mut ops = Vec::new();
    let settings = Settings {
        hz: 250,
        ..Settings::default()
    };
    planner.settings(settings, &mut ops);
    planner.settings(settings, &mut ops);
    planner.devices(BTreeSet::from([2, 3]), &mut ops);
    planner.devices(BTreeSet::from([3]), &mut ops);
    assert_eq!(
        ops,
        [
            Op::Settings(settings),
            Op::InsertDevice { ifindex: 2 },
            Op::InsertDevice { ifindex: 3 },
            Op::RemoveDevice { ifindex: 2 }
        ]
    );
}

#[test]
fn segments_that_lead_elsewhere_go_before_others_come() {
    let mut planner = Planner::new(LIMITS, KEY);
    let mut ops = Vec::new();
    let [seven, eight] = [7, 8].map(|vlan| Segment {
        ifindex: 2,
        tags: tag(vlan, false),
    });
    let one = Segments {
        interfaces: [(seven, 4)].into(),
        below: [(4, seven)].into(),
    };
    // Device 4 is another VLAN's, and another device has its own.
    let other = Segments {
        interfaces: [(seven, 5), (eight, 4)].into(),
        below: [(4, eight), (5, seven)].into(),
    };
    planner.segments(one.clone(), &mut ops);
    planner.segments(one, &mut ops);
    planner.segments(other, &mut ops);
    let interface = |segment, ifindex| Op::InsertInterface { segment, ifindex };
    let segment = |ifindex, segment| Op::InsertSegment { ifindex, segment };
    assert_eq!(
        ops,
        [
            interface(seven, 4),
            segment(4, seven),
            Op::RemoveInterface { segment: seven },
            Op::RemoveSegment { ifindex: 4 },
            interface(seven, 5),
            interface(eight, 4),
            segment(4, eight),
            segment(5, seven),
        ]
    );
}

/// `cargo test --release plan::tests -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn how_long_plans_take() {
    let limits = Limits {
        frontends: 10_000,
        backends: 262_144,
        flows: 1,
    };
    let mut planner = Planner::new(limits, KEY);
    let many: Vec<_> = (0..10_000u32)
        .map(|at| {
            let [_, _, high, low] = at.to_be_bytes();
            let mut one = frontend(1, 80);
            one.frontend.address = IpAddr::from([198, 18 + high / 128, high % 128, low]);
            (name(&format!("s{at}")), service(&[one], backends(1..=25)))
        })
        .collect();
    let start = std::time::Instant::now();
    let mut count = 0;
    for (name, service) in &many {
        let mut ops = Vec::new();
        planner.service(name, Some(service), &mut ops).unwrap();
        count += ops.len();
    }
    println!(
        "cold start of 10,000 x 25: {:?}, {count} ops",
        start.elapsed()
    );
    let (name, service) = &many[5000];
    let mut service = service.clone();
    let mut took = Vec::new();
    for round in 0..200 {
        service.groups[0].backends[round % 25].down ^= true;
        let start = std::time::Instant::now();
        planner
            .service(name, Some(&service), &mut Vec::new())
            .unwrap();
        took.push(start.elapsed());
    }
    took.sort();
    println!("one change: p50 {:?}, p99 {:?}", took[100], took[198]);
}
