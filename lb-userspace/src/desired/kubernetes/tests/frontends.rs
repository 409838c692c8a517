//! A2: frontends.

use super::*;

fn of(options: Options, service: Service) -> (Vec<String>, Vec<String>) {
    let world = World::with(options, service, vec![endpoint("10.1.0.1", "n1")]);
    (world.frontends("web"), world.skips("web"))
}

fn frontends(options: Options, service: Service) -> Vec<String> {
    of(options, service).0
}

fn no_vip() -> Service {
    Service {
        ingress: Vec::new(),
        ..web()
    }
}

/// A2.1
#[test]
fn cluster_ips_go_by_family_and_fall_back_to_the_first() {
    let options = || Options {
        cluster_ips: true,
        ..options()
    };
    assert_eq!(
        frontends(options(), no_vip()),
        ["10.96.0.10:80/tcp", "[fd00:96::10]:80/tcp"]
    );
    let single = Service {
        families: vec!["IPv4".into()],
        ..no_vip()
    };
    assert_eq!(frontends(options(), single), ["10.96.0.10:80/tcp"]);
    let old = Service {
        families: Vec::new(),
        cluster_ips: Vec::new(),
        ..no_vip()
    };
    assert_eq!(frontends(options(), old), ["10.96.0.10:80/tcp"]);
}

/// A2.2
#[test]
fn node_ports_are_those_of_the_own_primary_addresses() {
    let options = Options {
        node_ports: true,
        ..options()
    };
    let mut world = World::with(options.clone(), no_vip(), vec![endpoint("10.1.0.1", "n1")]);
    world.tell([
        a_node("n2", node(&["192.0.2.2"], None)),
        a_node(
            "n1",
            node(&["192.0.2.1", "192.0.2.77", "2001:db8::1"], None),
        ),
    ]);
    assert_eq!(
        world.frontends("web"),
        ["192.0.2.1:30080/tcp", "[2001:db8::1]:30080/tcp"]
    );
    let group = world.group("web", "192.0.2.1:30080/tcp");
    assert!(
        !group.frontends[0].owns_address,
        "the node's other ports pass"
    );
    // The node moves.
    let moved = a_node("n1", node(&["192.0.2.9"], None));
    assert_eq!(world.tell([moved]), ["web"]);
    assert_eq!(world.frontends("web"), ["192.0.2.9:30080/tcp"]);
    // Off by default.
    assert!(frontends(super::options(), no_vip()).is_empty());
}

/// A2.3
#[test]
fn external_ips_are_off_unless_asked_for() {
    let service = Service {
        external_ips: vec!["203.0.113.50".into(), "2001:db8:5::50".into()],
        ..no_vip()
    };
    assert!(frontends(options(), service.clone()).is_empty());
    let options = Options {
        external_ips: true,
        ..options()
    };
    assert_eq!(
        frontends(options, service),
        ["203.0.113.50:80/tcp", "[2001:db8:5::50]:80/tcp"]
    );
}

fn with_mode(mode: Option<&str>) -> Service {
    Service {
        ingress: vec![Ingress {
            ip: Some(VIP.into()),
            ip_mode: mode.map(Into::into),
        }],
        ports: vec![port("http", "TCP", 80, 0), port("tls", "TCP", 443, 0)],
        ..web()
    }
}

/// A2.4
#[test]
fn only_addresses_of_mode_vip_are_frontends() {
    let both = ["203.0.113.10:80/tcp", "203.0.113.10:443/tcp"];
    assert_eq!(frontends(options(), with_mode(None)), both);
    assert_eq!(frontends(options(), with_mode(Some("VIP"))), both);
    assert!(frontends(options(), with_mode(Some("Proxy"))).is_empty());
    let hostname = Service {
        ingress: vec![Ingress::default()],
        ..web()
    };
    assert_eq!(of(options(), hostname), (vec![], vec![]));
}

/// A2.5
#[test]
fn a_mode_that_flips_takes_the_frontends_and_gives_them_back() {
    let mut world = World::with(options(), with_mode(None), vec![endpoint("10.1.0.1", "n1")]);
    let before = world.everything();
    assert_eq!(
        world.tell([a_service("web", with_mode(Some("Proxy")))]),
        ["web"]
    );
    assert!(world.frontends("web").is_empty());
    assert_eq!(
        world.tell([a_service("web", with_mode(Some("VIP")))]),
        ["web"]
    );
    assert_eq!(world.everything(), before);
}

/// A2.6
#[test]
fn a_vip_works_without_node_port() {
    let service = Service {
        ports: vec![port("http", "TCP", 80, 0)],
        ingress: vec![ingress(VIP)],
        ..web()
    };
    let options = Options {
        node_ports: true,
        ..options()
    };
    assert_eq!(frontends(options.clone(), service.clone()), [vip()]);
    let explicit = Service {
        ports: vec![port("http", "TCP", 80, 31_000)],
        ..service
    };
    assert_eq!(
        frontends(options, explicit),
        [
            "192.0.2.1:31000/tcp",
            "203.0.113.10:80/tcp",
            "[2001:db8::1]:31000/tcp"
        ]
    );
}

/// A2.7
#[test]
fn tcp_and_udp_may_have_one_number_and_have_backends_of_their_own() {
    let service = Service {
        ports: vec![port("dns", "UDP", 53, 0), port("dns-tcp", "TCP", 53, 0)],
        ingress: vec![ingress(VIP)],
        ..web()
    };
    let mut world = World::new(options());
    let mut slice = slice(vec![endpoint("10.1.0.1", "n1")]);
    slice.ports = vec![
        slice_port("dns", "UDP", 5353),
        slice_port("dns-tcp", "TCP", 5354),
    ];
    world.tell([a_service("web", service), a_slice("web-1", slice)]);
    assert_eq!(
        world.frontends("web"),
        ["203.0.113.10:53/tcp", "203.0.113.10:53/udp"]
    );
    assert_eq!(
        world.usable("web", "203.0.113.10:53/udp"),
        ["local 10.1.0.1:5353"]
    );
    assert_eq!(
        world.usable("web", "203.0.113.10:53/tcp"),
        ["local 10.1.0.1:5354"]
    );
}

/// A2.8
#[test]
fn another_protocol_is_skipped_alone_and_told() {
    let service = Service {
        ports: vec![port("http", "TCP", 80, 0), port("s1", "SCTP", 36_412, 0)],
        ingress: vec![ingress(VIP)],
        ..web()
    };
    let told = "Service default/web UnsupportedProtocol: port 36412 is SCTP, which is left to kube-proxy; \
                TCP and UDP are served";
    assert_eq!(
        of(options(), service.clone()),
        (vec![vip()], vec![told.to_owned()])
    );
    // One without any other port, too.
    let only = Service {
        ports: vec![port("s1", "SCTP", 36_412, 0)],
        ..service
    };
    assert_eq!(of(options(), only), (vec![], vec![told.to_owned()]));
    // Nobody asks for a frontend of it.
    let inner = Service {
        kind: "ClusterIP".into(),
        ports: vec![port("s1", "SCTP", 36_412, 0)],
        ..web()
    };
    assert_eq!(of(options(), inner), (vec![], vec![]));
}

/// A2.10
#[test]
fn a_cluster_ip_is_not_served_to_the_outside_unless_asked_for() {
    let service = Service {
        kind: "ClusterIP".into(),
        ..no_vip()
    };
    assert!(frontends(options(), service.clone()).is_empty());
    let options = Options {
        cluster_ips: true,
        ..options()
    };
    assert_eq!(frontends(options, service).len(), 2);
}

/// A2.11
#[test]
fn a_vip_is_ours_whole_and_a_node_address_is_not() {
    let world = World::with(options(), web(), vec![endpoint("10.1.0.1", "n1")]);
    assert!(world.group("web", &vip()).frontends[0].owns_address);
    let options = Options {
        allow_node_addresses: true,
        ..options()
    };
    let service = Service {
        ingress: vec![ingress("192.0.2.1")],
        ..web()
    };
    let world = World::with(options, service, vec![endpoint("10.1.0.1", "n1")]);
    assert!(!world.group("web", "192.0.2.1:80/tcp").frontends[0].owns_address);
}

#[test]
fn an_address_of_nat_is_refused_as_vip() {
    let options = Options {
        nat_addresses: vec![ip("198.51.100.9")],
        ..options()
    };
    let service = Service {
        ingress: vec![ingress("198.51.100.9"), ingress(VIP)],
        ..web()
    };
    let world = World::with(options, service, vec![endpoint("10.1.0.1", "n1")]);
    assert_eq!(world.frontends("web"), ["203.0.113.10:80/tcp"]);
    assert_eq!(
        world.skips("web"),
        [
            "Service default/web NodeAddressRefused: 198.51.100.9:80/tcp: 198.51.100.9 is one of nat.addresses; use another"
        ]
    );
}

#[test]
fn an_address_of_any_node_is_refused_as_vip() {
    let service = Service {
        ingress: vec![ingress("192.0.2.2"), ingress(VIP)],
        ..web()
    };
    let mut world = World::with(options(), service.clone(), vec![endpoint("10.1.0.1", "n1")]);
    assert_eq!(
        world.frontends("web"),
        ["192.0.2.2:80/tcp", "203.0.113.10:80/tcp"]
    );
    // It turns out to be a node's.
    assert_eq!(
        world.tell([a_node("n2", node(&["192.0.2.2"], None))]),
        ["web"]
    );
    assert_eq!(world.frontends("web"), ["203.0.113.10:80/tcp"]);
    assert_eq!(
        world.skips("web"),
        [
            "Service default/web NodeAddressRefused: 192.0.2.2:80/tcp: 192.0.2.2 is an address of a node; \
          use another, or set allowNodeAddresses: true"
        ]
    );
    assert_eq!(
        world.tell([Change::Deleted(Kind::Node, ObjectKey::new("", "n2"))]),
        ["web"]
    );
    assert!(world.skips("web").is_empty());
    // One of an interface of this host that the Node does not have.
    world.host.apply(Update::AddAddress(net::Address {
        ifindex: 2,
        net: format!("{VIP}/32").parse().unwrap(),
        global: true,
        preferred: true,
    }));
    assert_eq!(world.frontends("web"), ["192.0.2.2:80/tcp"]);
    // Even where node addresses are allowed, some ports never are.
    let options = Options {
        allow_node_addresses: true,
        ..options()
    };
    let service = Service {
        ports: vec![port("ssh", "TCP", 22, 0), port("http", "TCP", 80, 0)],
        ingress: vec![ingress("192.0.2.1")],
        ..web()
    };
    let (frontends, skips) = of(options, service);
    assert_eq!(frontends, ["192.0.2.1:80/tcp"]);
    assert!(
        skips[0].contains("192.0.2.1:22/tcp: this port"),
        "{skips:?}"
    );
}

#[test]
fn what_is_no_address_of_a_vip_is_told() {
    for text in ["0.0.0.0", "127.0.0.1", "ff02::1", "nonsense"] {
        let service = Service {
            ingress: vec![ingress(text), ingress(VIP)],
            ..web()
        };
        let (frontends, skips) = of(options(), service);
        assert_eq!(frontends, [vip()]);
        assert!(skips[0].contains("InvalidAddress"), "{skips:?}");
        assert!(skips[0].contains(text), "{skips:?}");
    }
}
