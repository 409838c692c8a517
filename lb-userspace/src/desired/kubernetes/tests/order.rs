//! A3.11 and A13: any order of events ends in the same state, at the cost of what changed.

use proptest::prelude::*;

use super::*;

/// What there is in the end, with everything on.
fn everything_on() -> Options {
    Options {
        external_ips: true,
        node_ports: true,
        cluster_ips: true,
        topology_hints: true,
        nat_addresses: vec![ip("192.0.2.200")],
        ..options()
    }
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let state = (
        any::<Option<bool>>(),
        any::<Option<bool>>(),
        any::<Option<bool>>(),
    );
    let hints = (0..3u8, 0..3u8);
    (1..9u8, 0..4u8, state, hints).prop_map(|(last, node, (ready, serving, terminating), hints)| {
        let names = |hint: u8, all: [&str; 2]| -> Vec<std::sync::Arc<str>> {
            all[..usize::from(hint)]
                .iter()
                .map(|name| (*name).into())
                .collect()
        };
        Endpoint {
            ready,
            serving,
            terminating,
            node: (node > 0).then(|| format!("n{node}").into()),
            zone_hints: names(hints.0, ["a", "b"]),
            node_hints: names(hints.1, ["n1", "n2"]),
            ..endpoint(&format!("10.1.0.{last}"), "n1")
        }
    })
}

fn any_slice() -> impl Strategy<Value = Slice> {
    let endpoints = proptest::collection::vec(any_endpoint(), 0..5);
    (0..3u8, any::<bool>(), endpoints).prop_map(|(owner, other_port, endpoints)| Slice {
        service: ["web", "s1", "s2"][usize::from(owner)].into(),
        ports: vec![slice_port(
            "http",
            "TCP",
            if other_port { 9090 } else { 8080 },
        )],
        ..slice(endpoints)
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    let flags = proptest::array::uniform4(any::<bool>());
    (0..4u8, 0..3i64, "[ab]", flags).prop_map(|(address, created, uid, flags)| Service {
        uid,
        created,
        // One of the addresses is an endpoint's, one a node's.
        ingress: vec![ingress(
            [VIP, "203.0.113.11", "10.1.0.3", "192.0.2.2"][usize::from(address)],
        )],
        for_another_proxy: flags[0] && flags[1],
        external_local: flags[2],
        internal_local: flags[3],
        ..web()
    })
}

fn any_object() -> impl Strategy<Value = Object> {
    prop_oneof![
        (0..3u8, any_service()).prop_map(|(at, service)| {
            let name = ["web", "s1", "s2"][usize::from(at)];
            let service = Service {
                // As the API server gives them: no two alike.
                uid: format!("{}-{name}", service.uid),
                ..service
            };
            Object::Service(key(name), service)
        }),
        (0..5u8, any_slice())
            .prop_map(|(at, slice)| Object::EndpointSlice(key(&format!("slice-{at}")), slice)),
        (1..4u8, 1..4u8, 0..3u8).prop_map(|(at, last, zone)| {
            let zone = [None, Some("a"), Some("b")][usize::from(zone)];
            let node = node(&[&format!("192.0.2.{last}")], zone);
            Object::Node(ObjectKey::new("", &format!("n{at}")), node)
        }),
    ]
}

fn identity(object: &Object) -> (Kind, ObjectKey) {
    match object {
        Object::Service(key, _) => (Kind::Service, key.clone()),
        Object::EndpointSlice(key, _) => (Kind::EndpointSlice, key.clone()),
        Object::Node(key, _) => (Kind::Node, key.clone()),
        Object::Secret(key, _) => (Kind::Secret, key.clone()),
    }
}

/// All objects, of each kind in one list.
fn relist(objects: &[Object], kind: Kind) -> Vec<Change> {
    let listed = objects.iter().filter(|object| identity(object).0 == kind);
    let listed = listed.cloned().map(applied);
    std::iter::once(Change::ListBegins(kind))
        .chain(listed)
        .chain([Change::ListEnds(kind)])
        .collect()
}

/// What happens on the way.
#[expect(clippy::large_enum_variant, reason = "a few, in a test")]
#[derive(Clone, Debug)]
enum Step {
    Apply(Object),
    Delete(usize),
    /// The watch expired: what was missed is seen in a list.
    Relist(Kind, Vec<Object>),
}

fn any_step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        Just(Kind::Service),
        Just(Kind::EndpointSlice),
        Just(Kind::Node)
    ];
    prop_oneof![
        6 => any_object().prop_map(Step::Apply),
        2 => (0..12usize).prop_map(Step::Delete),
        1 => (kind, proptest::collection::vec(any_object(), 0..4))
            .prop_map(|(kind, missed)| Step::Relist(kind, missed)),
    ]
}

fn put(there: &mut Vec<Object>, object: Object) {
    there.retain(|one| identity(one) != identity(&object));
    there.push(object);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A3.11
    #[test]
    fn any_order_of_events_ends_in_the_same_state(
        steps in proptest::collection::vec(any_step(), 0..40),
        order in any::<prop::sample::Index>(),
        turn in 0..3usize,
    ) {
        let mut long = World { objects: Objects::new(everything_on()), host: host() };
        let mut there: Vec<Object> = Vec::new();
        // What was said to be concerned is all that changed.
        let mut seen = long.everything();
        for step in steps {
            let changes = match step {
                Step::Apply(object) => {
                    put(&mut there, object.clone());
                    vec![applied(object)]
                }
                Step::Delete(at) if at < there.len() => {
                    let (kind, key) = identity(&there.remove(at));
                    vec![Change::Deleted(kind, key)]
                }
                Step::Delete(_) => vec![],
                Step::Relist(kind, missed) => {
                    // Some went unseen.
                    let mut at = 0;
                    there.retain(|one| {
                        at += 1;
                        identity(one).0 != kind || at % 3 != 0
                    });
                    for object in missed.into_iter().filter(|one| identity(one).0 == kind) {
                        put(&mut there, object);
                    }
                    relist(&there, kind)
                }
            };
            let concerned = long.tell(changes);
            let now = long.everything();
            for name in seen.keys().chain(now.keys()) {
                let bare = name.as_str().trim_start_matches("default/").to_owned();
                prop_assert!(
                    seen.get(name) == now.get(name) || concerned.contains(&bare),
                    "{name} changed unsaid"
                );
            }
            seen = now;
        }
        // The same objects, told once, kind by kind or mixed.
        let mut short = World { objects: Objects::new(everything_on()), host: host() };
        if !there.is_empty() {
            let at = order.index(there.len());
            there.rotate_left(at);
        }
        let mut kinds = Kind::ALL;
        kinds.rotate_left(turn);
        for kind in kinds {
            short.tell(relist(&there, kind));
        }
        prop_assert!(short.objects.is_synced());
        prop_assert_eq!(short.everything(), seen);
    }
}

/// A3.11
#[test]
fn nothing_counts_as_gone_before_every_kind_was_listed() {
    let mut world = World::new(options());
    for (at, kind) in Kind::SERVED.into_iter().enumerate() {
        assert!(!world.objects.is_synced(), "{at}");
        world.tell(synced(kind));
        assert!(world.objects.is_kind_synced(kind));
    }
    assert!(world.objects.is_synced());
    // A list that begins takes nothing away before its end.
    world.tell([a_service("web", web()), Change::ListBegins(Kind::Service)]);
    assert_eq!(world.frontends("web").len(), 2);
    assert!(world.objects.is_synced());
    assert_eq!(world.tell([Change::ListEnds(Kind::Service)]), ["web"]);
    assert!(world.frontends("web").is_empty());
}

/// A11.6
#[test]
fn a_lost_api_server_takes_nothing_away() {
    let mut world = World::with(options(), web(), vec![endpoint("10.1.0.1", "n1")]);
    let before = world.everything();
    for kind in Kind::ALL {
        assert!(
            world
                .tell([Change::Lost(kind, "connection refused".into())])
                .is_empty()
        );
    }
    assert_eq!(world.everything(), before);
}

/// A13.2
#[test]
fn a_slice_concerns_its_own_service_among_ten_thousand() {
    let mut world = World::new(options());
    for at in 0..10_000 {
        let service = Service {
            uid: format!("uid-{at}"),
            ingress: vec![ingress(&format!("10.{}.{}.1", 100 + at / 250, at % 250))],
            ..web()
        };
        let slice = Slice {
            service: format!("s{at}").into(),
            ..slice(vec![endpoint("10.1.0.1", "n1")])
        };
        world.tell([
            a_service(&format!("s{at}"), service),
            a_slice(&format!("s{at}-1"), slice),
        ]);
    }
    let changed = Slice {
        service: "s77".into(),
        ..slice(vec![endpoint("10.1.0.2", "n1")])
    };
    assert_eq!(world.tell([a_slice("s77-1", changed.clone())]), ["s77"]);
    assert!(
        world.tell([a_slice("s77-1", changed)]).is_empty(),
        "the same again is no change"
    );
    // Pods come and go on every node, and so do nodes.
    assert!(
        world
            .tell([a_node("n9", node(&["192.0.2.9"], Some("b")))])
            .is_empty()
    );
}
