//! A8, A9, A11: affinity, source ranges, health answers.

use std::time::Duration;

use super::*;

/// A8.1
#[test]
fn affinity_has_a_default_and_bounds() {
    let of = |affinity, affinity_seconds| {
        let service = Service {
            affinity,
            affinity_seconds,
            ..web()
        };
        let world = World::with(options(), service, vec![]);
        world.service("web").affinity.map(|time| time.as_secs())
    };
    assert_eq!(of(false, Some(10)), None);
    assert_eq!(of(true, None), Some(10_800));
    assert_eq!(of(true, Some(1)), Some(1));
    assert_eq!(of(true, Some(86_400)), Some(86_400));
    assert_eq!(Duration::from_hours(3).as_secs(), 10_800);
}

/// A8.3
#[test]
fn an_endpoint_that_may_not_be_chosen_any_more_owns_nothing() {
    let service = Service {
        affinity: true,
        ..web()
    };
    let endpoints = vec![
        endpoint("10.1.0.1", "n1"),
        leaving(endpoint("10.1.0.2", "n1")),
    ];
    let world = World::with(options(), service, endpoints);
    assert_eq!(world.usable("web", &vip()), ["local 10.1.0.1:8080"]);
}

fn ranges(service: Service) -> (Option<Vec<String>>, Vec<String>) {
    let world = World::with(options(), service, vec![endpoint("10.1.0.1", "n1")]);
    let ranges = world.group("web", &vip()).source_ranges;
    let text = |ranges: Vec<ipnet::IpNet>| ranges.iter().map(ToString::to_string).collect();
    (ranges.map(text), world.skips("web"))
}

fn single() -> Service {
    Service {
        ingress: vec![ingress(VIP)],
        ..web()
    }
}

/// A9.1
#[test]
fn source_ranges_are_trimmed_and_read_by_family() {
    assert_eq!(ranges(single()), (None, vec![]));
    let service = Service {
        source_ranges: vec![
            " 198.51.100.0/24 ".into(),
            "2001:db8:9::/48".into(),
            "10.1.2.3/8".into(),
        ],
        ..web()
    };
    let expected = ["10.0.0.0/8", "198.51.100.0/24", "2001:db8:9::/48"];
    let expected = expected.map(str::to_owned).to_vec();
    assert_eq!(ranges(service), (Some(expected), vec![]));
}

/// A9.2
#[test]
fn the_annotation_counts_only_without_the_field() {
    let annotated = |field: &[&str]| Service {
        source_ranges: field.iter().map(|text| (*text).to_owned()).collect(),
        source_ranges_annotation: Some("198.51.100.0/24, 192.0.2.128/25".into()),
        ..single()
    };
    let (read, _) = ranges(annotated(&[]));
    assert_eq!(read.unwrap(), ["192.0.2.128/25", "198.51.100.0/24"]);
    let (read, _) = ranges(annotated(&["10.0.0.0/8"]));
    assert_eq!(read.unwrap(), ["10.0.0.0/8"]);
    let blank = Service {
        source_ranges_annotation: Some(" ".into()),
        ..single()
    };
    assert_eq!(ranges(blank).0, None);
}

/// A9.3
#[test]
fn source_ranges_hold_for_every_external_frontend_unless_that_is_unwanted() {
    let service = Service {
        source_ranges: vec!["198.51.100.0/24".into(), "2001:db8:9::/48".into()],
        external_ips: vec!["203.0.113.50".into()],
        ..web()
    };
    let others = ["203.0.113.50:80/tcp", "192.0.2.1:30080/tcp"];
    for vip_only_source_ranges in [false, true] {
        let options = Options {
            external_ips: true,
            node_ports: true,
            vip_only_source_ranges,
            ..options()
        };
        let world = World::with(options, service.clone(), vec![endpoint("10.1.0.1", "n1")]);
        assert!(world.group("web", &vip()).source_ranges.is_some());
        for frontend in others {
            let restricted = world.group("web", frontend).source_ranges.is_some();
            assert_eq!(restricted, !vip_only_source_ranges, "{frontend}");
        }
    }
}

/// A9.4
#[test]
fn a_family_without_a_range_is_closed_and_told() {
    let service = Service {
        source_ranges: vec!["198.51.100.0/24".into()],
        ..web()
    };
    let world = World::with(options(), service, vec![endpoint("10.1.0.1", "n1")]);
    let group = world.group("web", &format!("[{VIP6}]:80/tcp"));
    let ranges = group.source_ranges.unwrap();
    assert!(
        ranges.iter().all(|net| net.addr().is_ipv4()),
        "no IPv6 client is let in"
    );
    assert_eq!(
        world.skips("web"),
        [
            "Service default/web SourceRangesLackFamily: no source range is IPv6, so no IPv6 client is allowed; \
          add one, as ::/0"
        ]
    );
}

/// A9.6
#[test]
fn a_bad_range_allows_nobody_and_the_others_still_hold() {
    let with = |texts: &[&str]| Service {
        source_ranges: texts.iter().map(|text| (*text).to_owned()).collect(),
        ..single()
    };
    let told = "Service default/web InvalidSourceRange: spec.loadBalancerSourceRanges[] \"10.0.0.0\" is not a prefix \
                and allows nobody; write 198.51.100.0/24 or 2001:db8::/32";
    let (read, skips) = ranges(with(&["10.0.0.0", "198.51.100.0/24"]));
    assert_eq!(
        (read.unwrap(), skips),
        (vec!["198.51.100.0/24".to_owned()], vec![told.to_owned()])
    );
    let (read, _) = ranges(with(&["10.0.0.0"]));
    assert_eq!(read, Some(vec![]), "nobody at all");
}

fn checked() -> Service {
    Service {
        external_local: true,
        health_check_port: 32_000,
        ..web()
    }
}

fn health(world: &World) -> Option<(u16, usize, usize)> {
    let check = world.objects.health_check(&name("web"), &world.host)?;
    Some((
        check.port.get(),
        check.local_endpoints4,
        check.local_endpoints6,
    ))
}

/// A11.1
#[test]
fn the_health_port_is_that_of_load_balancers_with_the_local_policy() {
    let of = |service| health(&World::with(options(), service, vec![]));
    assert_eq!(of(checked()), Some((32_000, 0, 0)));
    for service in [
        Service {
            external_local: false,
            ..checked()
        },
        Service {
            kind: "NodePort".into(),
            ..checked()
        },
        Service {
            health_check_port: 0,
            ..checked()
        },
    ] {
        assert_eq!(of(service), None);
    }
    // Before there is a VIP, too: who gives it may ask first.
    let no_vip = Service {
        ingress: vec![],
        ..checked()
    };
    let mut world = World::new(options());
    assert_eq!(world.tell([a_service("web", no_vip)]), ["web"]);
    assert_eq!(health(&world), Some((32_000, 0, 0)));
    assert_eq!(
        world.tell([a_slice("web-1", slice(vec![endpoint("10.1.0.1", "n1")]))]),
        ["web"]
    );
    assert_eq!(health(&world), Some((32_000, 1, 0)));
}

/// A11.2, A11.4
#[test]
fn the_health_answer_counts_addresses_that_are_ready_on_this_node() {
    let service = Service {
        ports: vec![port("http", "TCP", 80, 0), port("tls", "TCP", 443, 0)],
        ..checked()
    };
    let endpoints = vec![
        endpoint("10.1.0.1", "n1"),
        endpoint("10.1.0.2", "n1"),
        leaving(endpoint("10.1.0.3", "n1")),
        endpoint("10.2.0.1", "n2"),
    ];
    let mut world = World::with(options(), service, endpoints);
    let tls = Slice {
        ports: vec![slice_port("tls", "TCP", 8443)],
        ..slice(vec![endpoint("10.1.0.1", "n1"), endpoint("10.1.0.9", "n1")])
    };
    world.tell([
        a_slice("web-2", tls),
        a_slice("web-6", slice6(vec![endpoint("fd00::1", "n1")])),
    ]);
    assert_eq!(health(&world), Some((32_000, 3, 1)));
    let alone = World::with(
        options(),
        checked(),
        vec![leaving(endpoint("10.1.0.1", "n1"))],
    );
    assert_eq!(
        health(&alone),
        Some((32_000, 0, 0)),
        "one that only leaves is none"
    );
}
