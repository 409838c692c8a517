//! A3: backends from slices.

use super::*;

fn usable(world: &World) -> Vec<String> {
    world.usable("web", &vip())
}

fn udp_and_named() -> Service {
    Service {
        ports: vec![port("", "TCP", 80, 0)],
        ingress: vec![ingress(VIP)],
        ..web()
    }
}

/// A3.1, A3.2
#[test]
fn all_slices_of_a_service_count_whatever_they_are_called_and_whoever_made_them() {
    let mut world = World::with(options(), web(), vec![endpoint("10.1.0.1", "n1")]);
    world.tell([
        a_slice("hand-made", slice(vec![endpoint("10.1.0.2", "n1")])),
        applied(Object::EndpointSlice(
            ObjectKey::new("other", "web-1"),
            slice(vec![endpoint("10.1.0.3", "n1")]),
        )),
    ]);
    assert_eq!(
        usable(&world),
        ["local 10.1.0.1:8080", "local 10.1.0.2:8080"]
    );
    // It is given to another Service.
    let moved = Slice {
        service: "else".into(),
        ..slice(vec![endpoint("10.1.0.2", "n1")])
    };
    assert_eq!(world.tell([a_slice("hand-made", moved)]), ["web"]);
    assert_eq!(usable(&world), ["local 10.1.0.1:8080"]);
}

/// A3.3
#[test]
fn families_are_kept_apart_and_names_are_left_out() {
    let mut world = World::with(
        options(),
        web(),
        vec![endpoint("10.1.0.1", "n1"), endpoint("fd00::1", "n1")],
    );
    world.tell([
        a_slice("web-6", slice6(vec![endpoint("fd00::2", "n1")])),
        a_slice(
            "web-f",
            Slice {
                address_type: "FQDN".into(),
                ..slice(vec![endpoint("example.org", "n1")])
            },
        ),
    ]);
    assert_eq!(usable(&world), ["local 10.1.0.1:8080"]);
    assert_eq!(
        world.usable("web", &format!("[{VIP6}]:80/tcp")),
        ["local [fd00::2]:8080"]
    );
    assert_eq!(
        world.skips("web"),
        [
            "EndpointSlice default/web-1 IncorrectIPVersion: endpoint fd00::1 in a slice of addressType IPv4"
        ]
    );
}

/// A3.5
#[test]
fn any_number_of_endpoints_over_many_slices_is_joined() {
    for count in [1usize, 100, 101, 1000, 5000] {
        let all: Vec<Endpoint> = (0..count)
            .map(|at| endpoint(&format!("10.1.{}.{}", at / 250, at % 250 + 1), "n1"))
            .collect();
        let mut world = World::new(options());
        world.tell([a_service("web", web())]);
        for (at, part) in all.chunks(100).enumerate() {
            world.tell([a_slice(&format!("web-{at}"), slice(part.to_vec()))]);
        }
        assert_eq!(usable(&world).len(), count);
    }
}

/// A3.6
#[test]
fn an_endpoint_that_moves_between_slices_never_is_gone_and_never_twice() {
    let (one, two) = (endpoint("10.1.0.1", "n1"), endpoint("10.1.0.2", "n1"));
    for add_first in [true, false] {
        let mut world = World::with(options(), web(), vec![one.clone(), two.clone()]);
        let add = a_slice("web-2", slice(vec![two.clone()]));
        let remove = a_slice("web-1", slice(vec![one.clone()]));
        let steps = if add_first {
            [add, remove]
        } else {
            [remove, add]
        };
        let [first, second] = steps;
        world.tell([first]);
        if add_first {
            assert_eq!(
                usable(&world),
                ["local 10.1.0.1:8080", "local 10.1.0.2:8080"]
            );
        }
        world.tell([second]);
        assert_eq!(
            usable(&world),
            ["local 10.1.0.1:8080", "local 10.1.0.2:8080"]
        );
        assert_eq!(world.group("web", &vip()).backends.len(), 2);
    }
    // Copies that differ: the readier one counts, on this node if either says so.
    let bad = conditions(endpoint("10.1.0.1", "n1"), false, false, true);
    let elsewhere = endpoint("10.1.0.1", "n2");
    for copies in [[bad.clone(), elsewhere.clone()], [elsewhere, bad]] {
        let mut world = World::with(options(), web(), vec![]);
        for (at, copy) in copies.into_iter().enumerate() {
            world.tell([a_slice(&format!("copy-{at}"), slice(vec![copy]))]);
        }
        assert_eq!(usable(&world), ["local 10.1.0.1:8080"]);
    }
}

/// A3.7
#[test]
fn ports_are_joined_by_name_and_each_slice_has_its_own_number() {
    let mut world = World::with(options(), web(), vec![endpoint("10.1.0.1", "n1")]);
    let other = Slice {
        ports: vec![
            slice_port("http", "TCP", 9090),
            slice_port("metrics", "TCP", 9100),
        ],
        ..slice(vec![endpoint("10.1.0.1", "n1"), endpoint("10.1.0.2", "n1")])
    };
    world.tell([a_slice("web-2", other)]);
    assert_eq!(
        usable(&world),
        [
            "local 10.1.0.1:8080",
            "local 10.1.0.1:9090",
            "local 10.1.0.2:9090"
        ]
    );
    // The only port may have no name.
    let unnamed = Slice {
        ports: vec![slice_port("", "TCP", 7070)],
        ..slice(vec![endpoint("10.1.0.1", "n1")])
    };
    world.tell([a_service("web", udp_and_named()), a_slice("web-3", unnamed)]);
    assert_eq!(usable(&world), ["local 10.1.0.1:7070"]);
}

/// A3.8
#[test]
fn a_slice_without_the_port_is_absent_for_that_port_only() {
    let service = Service {
        ports: vec![port("http", "TCP", 80, 0), port("tls", "TCP", 443, 0)],
        ..web()
    };
    let mut world = World::with(options(), service, vec![endpoint("10.1.0.1", "n1")]);
    let odd = |name: Option<&str>, protocol: Option<&str>, port| {
        let port = SlicePort {
            name: name.map(Into::into),
            protocol: protocol.map(Into::into),
            port,
        };
        Slice {
            ports: vec![port],
            ..slice(vec![endpoint("10.1.0.2", "n1")])
        }
    };
    for (at, slice) in [
        odd(None, None, Some(8080)),
        odd(Some("http"), None, None),
        odd(Some("http"), None, Some(0)),
        odd(Some("http"), Some("UDP"), Some(8080)),
    ]
    .into_iter()
    .enumerate()
    {
        world.tell([a_slice(&format!("odd-{at}"), slice)]);
    }
    assert_eq!(usable(&world), ["local 10.1.0.1:8080"]);
    assert!(world.usable("web", &format!("{VIP}:443/tcp")).is_empty());
    assert!(world.skips("web").is_empty());
    // No protocol means TCP.
    world.tell([a_slice("odd-0", odd(Some("http"), None, Some(8080)))]);
    assert_eq!(usable(&world).len(), 2);
}

/// A3.9, A3.10
#[test]
fn conditions_that_are_not_there_mean_ready() {
    let states = [None, Some(true), Some(false)];
    for ready in states {
        for serving in states {
            for terminating in states {
                let endpoint = Endpoint {
                    ready,
                    serving,
                    terminating,
                    ..endpoint("10.1.0.1", "n1")
                };
                let world = World::with(options(), web(), vec![endpoint]);
                let counts_as_ready = ready != Some(false);
                let last_resort = serving != Some(false) && terminating == Some(true);
                assert_eq!(
                    usable(&world).len(),
                    usize::from(counts_as_ready || last_resort),
                    "{ready:?} {serving:?} {terminating:?}"
                );
            }
        }
    }
}

/// A3.12
#[test]
fn an_endpoint_without_node_is_never_local() {
    let nowhere = Endpoint {
        node: None,
        ..endpoint("198.51.100.1", "")
    };
    let world = World::with(options(), web(), vec![nowhere.clone()]);
    assert_eq!(usable(&world), ["pass 198.51.100.1:8080"]);
    let local = Service {
        external_local: true,
        ..web()
    };
    let world = World::with(options(), local, vec![nowhere]);
    assert!(usable(&world).is_empty());
}

/// A3.13
#[test]
fn a_pod_of_the_host_network_is_local_by_its_node_not_by_its_address() {
    let world = World::with(
        options(),
        web(),
        vec![endpoint("192.0.2.1", "n1"), endpoint("192.0.2.2", "n2")],
    );
    assert_eq!(
        usable(&world),
        ["local 192.0.2.1:8080", "pass 192.0.2.2:8080"]
    );
    let strange = World::with(options(), web(), vec![endpoint("192.0.2.1", "n2")]);
    assert_eq!(usable(&strange), ["pass 192.0.2.1:8080"]);
}

/// A3.14
#[test]
fn nothing_is_sent_in_circles_or_nowhere() {
    for bad in [
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "0.0.0.0",
        "nonsense",
        VIP,
    ] {
        let endpoints = vec![endpoint("10.1.0.1", "n1"), endpoint(bad, "n1")];
        let world = World::with(options(), web(), endpoints);
        assert_eq!(usable(&world), ["local 10.1.0.1:8080"]);
        let skips = world.skips("web");
        assert!(
            skips[0].starts_with("EndpointSlice default/web-1 InvalidEndpoint: endpoint"),
            "{skips:?}"
        );
        assert_eq!(skips.len(), 1);
    }
    // An address becomes a VIP of another Service, and is none again.
    let mut world = World::with(options(), web(), vec![endpoint("10.1.0.1", "n1")]);
    let other = Service {
        uid: "uid-other".into(),
        ingress: vec![ingress("10.1.0.1")],
        ..web()
    };
    assert_eq!(world.tell([a_service("other", other)]), ["other", "web"]);
    assert!(usable(&world).is_empty());
    let gone = Change::Deleted(Kind::Service, key("other"));
    assert_eq!(world.tell([gone]), ["other", "web"]);
    assert_eq!(usable(&world), ["local 10.1.0.1:8080"]);
}

#[test]
fn a_backend_elsewhere_is_reached_by_nat_where_there_is_an_address_for_it() {
    let options = Options {
        nat_addresses: vec![ip("192.0.2.200")],
        ..options()
    };
    let endpoints = vec![endpoint("10.1.0.1", "n1"), endpoint("10.2.0.1", "n2")];
    let mut world = World::with(options, web(), endpoints);
    world.tell([a_slice("web-6", slice6(vec![endpoint("fd00::2", "n2")]))]);
    assert_eq!(usable(&world), ["local 10.1.0.1:8080", "nat 10.2.0.1:8080"]);
    let group = world.group("web", &vip());
    assert_eq!(group.backends[1].source, Some(ip("192.0.2.200")));
    assert!(group.backends[1].path.is_some());
    assert_eq!(
        world.usable("web", &format!("[{VIP6}]:80/tcp")),
        ["pass [fd00::2]:8080"]
    );
}
