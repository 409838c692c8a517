//! `dsr`: which endpoints are reached through tunnels, when they are not, and what this node is to others.

use lb_common::abi::{Mode, backend_state};

use super::*;
use crate::cluster::keys::Keys;

const POD: &str = "10.1.2.1";

fn dsr() -> Options {
    Options {
        dsr: true,
        ..options()
    }
}

fn keys() -> Change {
    let keys = Keys::new([1, 2], [3, 4]);
    applied(Object::Secret(key("millrace-keys"), Ok(keys)))
}

/// Agents on nodes, ready or not.
fn agents(on: &[(&str, bool)]) -> Change {
    let endpoint = |(node, ready): &(&str, bool)| {
        conditions(endpoint("192.0.2.9", node), *ready, *ready, false)
    };
    let fact = Slice {
        service: "millrace".into(),
        ..slice(on.iter().map(endpoint).collect())
    };
    a_slice("millrace-1", fact)
}

fn other_node() -> Change {
    a_node("n2", node(&["192.0.2.2", "2001:db8::2"], None))
}

/// Everything that `dsr` needs, with one endpoint of each family on `n2`, by which both VIPs are served.
fn world(options: Options) -> World {
    let mut world = World::with(options, web(), vec![endpoint(POD, "n2")]);
    world.tell([
        other_node(),
        keys(),
        agents(&[("n1", true), ("n2", true)]),
        a_slice("web-2", slice6(vec![endpoint("fd00:2::1", "n2")])),
    ]);
    world
}

fn backend(world: &World, frontend: &str) -> desired::Backend {
    world.group("web", frontend).backends[0].clone()
}

/// Mode, state and rule of the IPv4 VIP's one backend.
fn told(world: &World) -> (&'static str, u32, String) {
    let backend = backend(world, &vip());
    let rule = backend.origin.as_ref().unwrap().placed.to_string();
    (backend.mode.name(), backend.state(), rule)
}

/// A10.1
#[test]
fn an_endpoint_on_another_node_with_an_agent_is_reached_through_a_tunnel() {
    let world = world(dsr());
    for (frontend, own, node) in [
        (vip(), "192.0.2.1", "192.0.2.2"),
        (format!("[{VIP6}]:80/tcp"), "2001:db8::1", "2001:db8::2"),
    ] {
        let backend = backend(&world, &frontend);
        assert_eq!(backend.mode, Mode::Dsr);
        assert_eq!(backend.state(), backend_state::USABLE);
        assert_eq!(backend.source, Some(ip(own)));
        assert_eq!(backend.node_address, Some(ip(node)));
        assert!(backend.path.is_some());
        assert_eq!(backend.port, 8080);
    }
    assert_eq!(world.service("web").mode, Mode::Dsr);
    assert_eq!(told(&world).2, "on another node, with an agent [A10.1]");
}

#[test]
fn each_fact_that_is_missing_leaves_new_flows_to_kube_proxy() {
    use backend_state::{AWAY, USABLE};
    let pass = |rule: &str| ("pass", USABLE, rule.to_owned());
    let away = |rule: &str| {
        (
            "dsr",
            AWAY,
            format!("on another node, {rule}: kube-proxy gets new flows"),
        )
    };
    let with = |changes: Vec<Change>| {
        let mut world = World::with(dsr(), web(), vec![endpoint(POD, "n2")]);
        world.tell(changes);
        told(&world)
    };
    let ready = || agents(&[("n2", true)]);
    assert_eq!(
        with(vec![other_node(), ready()]),
        pass("on another node, and without keys for tunnels")
    );
    assert_eq!(
        with(vec![keys(), ready()]),
        pass("on another node, without an InternalIP of the family of one of this node's")
    );
    assert_eq!(
        with(vec![other_node(), keys()]),
        pass("on another node, where no agent was seen")
    );
    assert_eq!(
        with(vec![other_node(), keys(), agents(&[("n2", false)])]),
        away("whose agent is not ready")
    );
    let far = a_node("n2", node(&["198.51.100.2"], None));
    let mut cut_off = World::with(dsr(), web(), vec![endpoint(POD, "n2")]);
    cut_off.tell([far, keys(), ready()]);
    cut_off.host = net::Facts::default();
    assert_eq!(told(&cut_off), away("and no route leads there"));
    let mut nowhere = world(dsr());
    let mut outside = endpoint(POD, "n2");
    outside.node = None;
    nowhere.tell([a_slice("web-1", slice(vec![outside]))]);
    assert_eq!(told(&nowhere), pass("on no known node [A3.12]"));
    assert_eq!(
        told(&world(options())),
        pass("on another node [A3.13]"),
        "it is not asked for"
    );
    let alone = Options {
        agents: None,
        ..dsr()
    };
    assert_eq!(
        told(&world(alone)),
        pass("on another node, where no agent was seen"),
        "nobody says where agents are"
    );
    // An endpoint of this node is this node's.
    let here = World::with(dsr(), web(), vec![endpoint(POD, "n1")]);
    assert_eq!(told(&here).0, "local");
}

#[test]
fn the_nodes_network_may_be_of_one_family_only() {
    let mut world = world(dsr());
    world.tell([a_node("n2", node(&["2001:db8::2"], None))]);
    let v4 = backend(&world, &vip());
    assert_eq!(
        (v4.mode, v4.source, v4.node_address),
        (Mode::Dsr, Some(ip("2001:db8::1")), Some(ip("2001:db8::2")))
    );
    world.tell([a_node("n2", node(&["192.0.2.2"], None))]);
    let v6 = backend(&world, &format!("[{VIP6}]:80/tcp"));
    assert_eq!(
        (v6.mode, v6.source, v6.node_address),
        (Mode::Dsr, Some(ip("192.0.2.1")), Some(ip("192.0.2.2")))
    );
}

#[test]
fn a_service_says_for_itself_how_its_packets_go() {
    let with = |options: Options, said: &str| {
        let mut world = world(options);
        let service = Service {
            forwarding_mode: Some(said.into()),
            ..web()
        };
        world.tell([a_service("web", service)]);
        world
    };
    assert_eq!(told(&with(options(), "dsr")).0, "dsr");
    assert_eq!(told(&with(dsr(), "pass")).0, "pass");
    let wrong = with(dsr(), "DSR");
    assert_eq!(told(&wrong).0, "dsr", "as the others");
    assert_eq!(
        wrong.skips("web"),
        [
            "Service default/web InvalidForwardingMode: annotation millrace.io/forwarding-mode \"DSR\" is no mode, and not followed; write dsr or pass"
        ]
    );
    assert_eq!(told(&with(options(), "DSR")).0, "pass");
    // Keys are wanted by who asks, and by who has frontends.
    assert!(
        with(dsr(), "pass").objects.wants_keys(),
        "the next Service has them"
    );
    assert!(!with(options(), "pass").objects.wants_keys());
    let mut one = with(options(), "dsr");
    assert!(one.objects.wants_keys());
    one.tell([Change::Deleted(Kind::Service, key("web"))]);
    assert!(!one.objects.wants_keys());
}

#[test]
fn an_agent_that_comes_or_goes_concerns_who_has_endpoints_there() {
    let mut world = world(dsr());
    let other = Slice {
        service: "api".into(),
        ..slice(vec![endpoint("10.1.3.1", "n3")])
    };
    let api = Service {
        uid: "uid-api".into(),
        ingress: vec![ingress("203.0.113.11")],
        ..web()
    };
    world.tell([a_service("api", api), a_slice("api-1", other)]);
    let mut on = |on: &[(&str, bool)]| world.tell([agents(on)]);
    assert_eq!(on(&[("n1", true), ("n2", false)]), ["web"]);
    assert_eq!(on(&[("n1", true), ("n2", false)]), [""; 0]);
    assert_eq!(on(&[("n2", true)]), ["web"]);
    assert_eq!(on(&[("n3", true)]), ["api", "web"], "it left the one node");
    assert_eq!(told(&world).1, backend_state::AWAY);
    assert_eq!(
        told(&world).2,
        "on another node, whose agent is not ready: kube-proxy gets new flows"
    );
    // With its slice the Service itself may go.
    world.tell([agents(&[("n2", true)])]);
    assert_eq!(told(&world).1, backend_state::USABLE);
    world.tell([Change::Deleted(Kind::EndpointSlice, key("millrace-1"))]);
    assert_eq!(told(&world).1, backend_state::AWAY);
}

#[test]
fn nat_serves_where_an_agent_was_never_seen() {
    let with_nat = Options {
        nat_addresses: vec![ip("192.0.2.99")],
        ..dsr()
    };
    let mut world = world(with_nat);
    assert_eq!(told(&world).0, "dsr");
    world.tell([agents(&[("n2", false)])]);
    assert_eq!(told(&world).0, "dsr", "its flows stay");
    world.tell([
        a_slice("web-1", slice(vec![endpoint(POD, "n3")])),
        a_node("n3", node(&["192.0.2.3"], None)),
    ]);
    assert_eq!(told(&world).0, "nat");
}

#[test]
fn a_node_takes_packets_of_the_other_nodes_as_soon_as_there_are_keys() {
    let end = |world: &World| {
        let name: ServiceName = "tunnel".parse().unwrap();
        let listed = world.objects.names().any(|other| *other == name);
        assert_eq!(world.objects.asks(&name), listed);
        world.objects.service(&name, &world.host).0
    };
    // Whatever is asked for here: others may be told earlier.
    let mut world = World::new(options());
    world.tell([other_node()]);
    assert_eq!(end(&world), None);
    world.tell([keys()]);
    let service = end(&world).unwrap();
    assert!(service.is_tunnel_end);
    let group = &service.groups[0];
    let frontends: Vec<_> = group
        .frontends
        .iter()
        .map(|one| one.frontend.to_string())
        .collect();
    assert_eq!(
        frontends,
        ["192.0.2.1:16081/udp", "[2001:db8::1]:16081/udp"]
    );
    assert!(group.frontends.iter().all(|one| !one.owns_address));
    let sources = |world: &World| {
        let nets = end(world).unwrap().groups[0].source_ranges.clone().unwrap();
        nets.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(sources(&world), ["192.0.2.2/32", "2001:db8::2/128"]);
    let concerned = world.tell([a_node("n3", node(&["192.0.2.3"], None))]);
    assert_eq!(concerned, ["tunnel"]);
    assert_eq!(
        sources(&world),
        ["192.0.2.2/32", "192.0.2.3/32", "2001:db8::2/128"]
    );
    world.tell([Change::Deleted(Kind::Node, ObjectKey::new("", "n2"))]);
    assert_eq!(sources(&world), ["192.0.2.3/32"]);

    // What was said before holds.
    let secret = |told| applied(Object::Secret(key("millrace-keys"), told));
    world.tell([secret(Err("hash: missing; write 16 random bytes".into()))]);
    assert_eq!(
        world.objects.keys_fault(),
        Some("hash: missing; write 16 random bytes")
    );
    world.tell([Change::Deleted(Kind::Secret, key("millrace-keys"))]);
    assert_eq!(
        world.objects.keys_fault(),
        Some("there is no Secret millrace-keys")
    );
    assert!(end(&world).is_some());
    let others = Keys::new([5, 6], [7, 8]);
    world.tell([secret(Ok(others.clone()))]);
    assert_eq!(
        (world.objects.keys(), world.objects.keys_fault()),
        (Some(&others), None)
    );
}

#[test]
fn the_port_of_the_tunnels_is_no_frontend_at_a_nodes_address() {
    let service = Service {
        ports: vec![
            port("geneve", "UDP", 16_081, 0),
            port("same", "TCP", 16_081, 0),
        ],
        ingress: vec![ingress("192.0.2.1")],
        ..web()
    };
    let options = Options {
        allow_node_addresses: true,
        ..dsr()
    };
    let world = World::with(options, service, Vec::new());
    assert_eq!(world.frontends("web"), ["192.0.2.1:16081/tcp"]);
    assert_eq!(world.skips("web").len(), 1);
    assert!(world.skips("web")[0].contains("tunnel.port"));
}
