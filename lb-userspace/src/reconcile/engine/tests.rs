//! The cluster's services in maps that are in memory.

use std::{
    collections::BTreeSet,
    time::{Duration, UNIX_EPOCH},
};

use lb_common::{
    abi::{Mode, Region, Tunnel, backend_state, service_flag},
    bytes::Be16,
};

use super::*;
use crate::{
    cluster::{
        facts::{
            self, Address, Change, Endpoint, Ingress, Kind, Object, ObjectKey, ServicePort, Slice,
            SlicePort,
        },
        keys::Keys,
    },
    dataplane::Fake,
    net::sample,
    reconcile::{About, Report},
};

const LIMITS: &str = "limits: {frontends: 2048, backends: 4096, flows: 16}";

fn text(kubernetes: &str, rest: &str) -> String {
    format!(
        "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\n{kubernetes}\n{rest}\n"
    )
}

fn start(rest: &str, maps: Fake) -> Engine<Fake> {
    start_as("kubernetes: {}", rest, None, maps)
}

fn start_as(kubernetes: &str, rest: &str, agents: Option<&str>, maps: Fake) -> Engine<Fake> {
    let text = text(kubernetes, rest);
    let config = Config::parse(&text, "lb.yaml").unwrap_or_else(|errors| panic!("{errors}"));
    let start = Start {
        config,
        facts: Facts::default(),
        drains: Drains::default(),
        hash_key: agents.is_none().then_some([1, 2]),
        hz: 1000,
        node: "n1".to_owned(),
        agents: agents.map(|name| name.parse().unwrap()),
    };
    Engine::start(start, maps).unwrap()
}

fn fresh(rest: &str) -> Engine<Fake> {
    let config = "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\n";
    let config = Config::parse(&format!("{config}{rest}\n"), "lb.yaml").unwrap();
    start(rest, Fake::new(config.limits))
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// A Service with one VIP.
fn service(name: &str, vip: &str) -> Change {
    let fact = facts::Service {
        uid: format!("uid-{name}"),
        kind: "LoadBalancer".into(),
        cluster_ip: "10.96.0.1".into(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: "TCP".into(),
            port: 80,
            node_port: 0,
        }],
        ingress: vec![Ingress {
            ip: Some(vip.into()),
            ip_mode: None,
        }],
        ..facts::Service::default()
    };
    Change::Applied(Box::new(Object::Service(key(name), fact)))
}

/// Its slice, with endpoints on this node.
fn slice(name: &str, endpoints: &[&str]) -> Change {
    let endpoints = endpoints.iter().map(|address| Endpoint {
        address: Address::read(address),
        node: Some("n1".into()),
        ..Endpoint::default()
    });
    let fact = Slice {
        service: name.into(),
        address_type: "IPv4".into(),
        ports: vec![SlicePort {
            name: Some("http".into()),
            protocol: Some("TCP".into()),
            port: Some(8080),
        }],
        endpoints: endpoints.collect(),
        ..Slice::default()
    };
    Change::Applied(Box::new(Object::EndpointSlice(key(name), fact)))
}

fn listed(kind: Kind, changes: Vec<Change>) -> Vec<Change> {
    let begin = std::iter::once(Change::ListBegins(kind));
    begin
        .chain(changes)
        .chain([Change::ListEnds(kind)])
        .collect()
}

/// What a whole list of each kind says.
fn told(services: Vec<Change>, slices: Vec<Change>) -> Vec<Change> {
    [
        listed(Kind::Service, services),
        listed(Kind::EndpointSlice, slices),
        listed(Kind::Node, Vec::new()),
    ]
    .concat()
}

fn vips(engine: &mut Engine<Fake>) -> BTreeSet<String> {
    let frontends = engine.dataplane_mut().frontends.keys();
    let real = frontends.filter(|key| key.port != 0);
    real.map(|key| key.address.to_string()).collect()
}

/// A11.6, A13.4
#[test]
fn what_is_pinned_is_forwarded_until_the_cluster_is_known_whole() {
    let mut first = fresh(LIMITS);
    first.cluster(told(
        vec![
            service("web", "203.0.113.10"),
            service("old", "203.0.113.11"),
        ],
        vec![slice("web", &["10.1.0.1", "10.1.0.2"])],
    ));
    first.flush().unwrap();
    let before = first.into_dataplane();

    let mut again = start(LIMITS, before.clone());
    let alike = |engine: &mut Engine<Fake>| {
        let now = engine.dataplane_mut();
        now.services == before.services
            && now.frontends == before.frontends
            && now.backends == before.backends
            && now.slots == before.slots
    };
    again.flush().unwrap();
    assert!(alike(&mut again), "nothing is known");
    again.cluster(listed(Kind::Service, vec![service("web", "203.0.113.10")]));
    again.flush().unwrap();
    assert!(alike(&mut again), "no endpoint is known");
    again.cluster(listed(Kind::Node, Vec::new()));
    again.cluster(vec![slice("web", &["10.1.0.1", "10.1.0.2"])]);
    assert!(!again.is_behind());
    again.cluster(vec![Change::ListBegins(Kind::EndpointSlice)]);
    again.cluster(vec![slice("web", &["10.1.0.1", "10.1.0.2"])]);
    again.cluster(vec![Change::ListEnds(Kind::EndpointSlice)]);
    assert!(again.is_behind());
    again.flush().unwrap();
    // Who is gone meanwhile goes now; the other one is as it was.
    assert_eq!(vips(&mut again), ["203.0.113.10".to_owned()].into());
    let entry = |maps: &Fake| {
        let mut entries = maps.frontends.iter();
        let web =
            entries.find(|(key, _)| key.address.to_string() == "203.0.113.10" && key.port == 80);
        web.map(|(_, value)| (*value, maps.services[&value.service]))
    };
    assert_eq!(entry(again.dataplane_mut()), entry(&before));
}

/// A13.5
#[test]
fn a_service_that_does_not_fit_is_named_and_holds_up_no_other() {
    // The place of one that is replaced is not given out.
    let mut engine = fresh("limits: {frontends: 1, backends: 4096, flows: 16}");
    let services = (0..65).map(|at| service(&format!("s{at:02}"), &format!("203.0.113.{at}")));
    engine.cluster(told(services.collect(), vec![slice("s00", &["10.1.0.1"])]));
    let error = engine.flush().unwrap_err().to_string();
    assert!(error.starts_with("service default/s64: "), "{error}");
    assert!(error.ends_with("raise limits.frontends"), "{error}");
    assert_eq!(vips(&mut engine).len(), 64);
    let skipped = engine
        .skips()
        .map(|skip| (skip.reason.name(), &skip.object));
    assert_eq!(skipped.collect::<Vec<_>>(), [("MapsFull", &key("s64"))]);
    let (warnings, _) = engine.cluster_news().unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(
        engine.has_unfit() && !engine.is_behind(),
        "it waits for its time"
    );
    // The others go on.
    engine.cluster(vec![slice("s00", &["10.1.0.1", "10.1.0.2"])]);
    assert_eq!(engine.flush().unwrap().services.len(), 1);
    // Room is made.
    engine.cluster(vec![Change::Deleted(Kind::Service, key("s01"))]);
    engine.flush().unwrap();
    engine.retry_unfit();
    engine.flush().unwrap();
    assert!(!engine.has_unfit());
    assert_eq!(engine.skips().count(), 0);
    assert!(vips(&mut engine).contains("203.0.113.64"));
}

/// A6.4
#[test]
fn endpoints_come_and_go_without_a_trace() {
    let mut engine = fresh(LIMITS);
    engine.cluster(told(vec![service("web", "203.0.113.10")], Vec::new()));
    engine.flush().unwrap();
    let table = |engine: &mut Engine<Fake>| {
        let maps = engine.dataplane_mut();
        let live = maps
            .services
            .values()
            .find(|one| one.flags & service_flag::LIVE != 0);
        Region(live.unwrap().table)
    };
    assert!(table(&mut engine).is_empty());
    let empty = engine.dataplane_mut().frontends.clone();
    engine.cluster(vec![slice("web", &["10.1.0.1"])]);
    engine.flush().unwrap();
    assert!(!table(&mut engine).is_empty());
    let backends: Vec<_> = engine.dataplane_mut().backends.values().copied().collect();
    assert_eq!((backends.len(), backends[0].mode), (1, Mode::Local as u8));
    assert_eq!(backends[0].state, 1);
    engine.cluster(vec![slice("web", &[])]);
    engine.flush().unwrap();
    assert!(table(&mut engine).is_empty());
    assert_eq!(
        engine.dataplane_mut().frontends,
        empty,
        "the frontend was there all along"
    );
}

/// The same slice, of a change that was triggered at a time.
fn triggered(change: Change, at_ms: i64) -> Change {
    let Change::Applied(mut object) = change else {
        panic!("{change:?}");
    };
    if let Object::EndpointSlice(_, slice) = &mut *object {
        slice.triggered_ms = Some(at_ms);
    }
    Change::Applied(object)
}

/// A13.1
#[test]
fn the_time_from_trigger_to_maps_is_that_of_changes_after_the_first_lists() {
    const START: i64 = 1_795_255_200_000;
    let mut engine = fresh(LIMITS);
    let (mut report, state) = Report::new(About {
        node: "n1".to_owned(),
        kernel: String::new(),
        file: "lb.yaml".to_owned(),
        cluster: true,
        keys: false,
    });
    let mut counted = |engine: &mut Engine<Fake>, now_ms: i64| {
        let flushed = engine.flush();
        let now = UNIX_EPOCH + Duration::from_millis(now_ms as u64);
        report.flushed(&flushed, Duration::ZERO, now, engine);
        report.publish(engine);
        let programming = state.borrow().programming.clone().unwrap();
        let (_, all) = *programming.counts_us.last().unwrap();
        (all, programming.sum_us / 1000)
    };
    engine.cluster(told(
        vec![
            service("web", "203.0.113.10"),
            service("api", "203.0.113.11"),
        ],
        vec![triggered(slice("web", &["10.1.0.1"]), START - 3_600_000)],
    ));
    assert_eq!(counted(&mut engine, START), (0, 0), "no change");
    engine.cluster(vec![
        triggered(slice("web", &["10.1.0.2"]), START + 1000),
        triggered(slice("api", &["10.1.0.3"]), START + 1200),
    ]);
    assert_eq!(counted(&mut engine, START + 1250), (2, 300));
    // Something else of the slice changes, and what is of no Service that is served.
    engine.cluster(vec![
        triggered(slice("web", &["10.1.0.2", "10.1.0.4"]), START + 1000),
        triggered(slice("other", &["10.1.0.5"]), START + 2000),
    ]);
    assert_eq!(counted(&mut engine, START + 9000), (2, 300));
    // Two changes reach the maps at once; the second host's clock is ahead.
    engine.cluster(vec![
        triggered(slice("web", &["10.1.0.2"]), START + 9000),
        triggered(slice("web", &["10.1.0.1"]), START + 9900),
    ]);
    assert_eq!(counted(&mut engine, START + 9500), (4, 800));
    // What goes with its Service is never programmed.
    engine.cluster(vec![
        triggered(slice("web", &["10.1.0.7"]), START + 10_000),
        Change::Deleted(Kind::Service, key("web")),
    ]);
    assert_eq!(counted(&mut engine, START + 99_000), (4, 800));
}

/// A13.1
#[test]
fn what_does_not_reach_the_maps_is_not_programmed_yet() {
    let mut engine = fresh("limits: {frontends: 1, backends: 4096, flows: 16}");
    // The place of one that is replaced is not given out.
    let services = (0..65).map(|at| service(&format!("s{at:02}"), &format!("203.0.113.{at}")));
    engine.cluster(told(services.collect(), Vec::new()));
    engine.flush().unwrap_err();
    engine.cluster(vec![
        triggered(slice("s64", &["10.1.0.1"]), 7),
        triggered(slice("s00", &["10.1.0.1"]), 8),
    ]);
    let Err(FlushError::Plan { flushed, .. }) = engine.flush() else {
        panic!("it fits");
    };
    assert_eq!(flushed.triggers, [8]);
    engine.cluster(vec![Change::Deleted(Kind::Service, key("s01"))]);
    engine.flush().unwrap();
    engine.retry_unfit();
    assert_eq!(engine.flush().unwrap().triggers, [7]);
}

/// A13.2
#[test]
fn one_change_among_a_thousand_services_plans_one() {
    let mut engine = fresh(LIMITS);
    let vip = |at: u32| format!("198.18.{}.{}", at / 250, at % 250 + 1);
    let services = (0..1000).map(|at| service(&format!("s{at}"), &vip(at)));
    let slices = (0..1000).map(|at| slice(&format!("s{at}"), &["10.1.0.1"]));
    engine.cluster(told(services.collect(), slices.collect()));
    let all = engine.flush().unwrap();
    assert_eq!(all.services.len(), 1000);
    engine.cluster(vec![slice("s7", &["10.1.0.1", "10.1.0.2"])]);
    let one = engine.flush().unwrap();
    assert_eq!(
        one.services
            .iter()
            .map(ServiceName::as_str)
            .collect::<Vec<_>>(),
        ["default/s7"]
    );
    assert!(one.ops < 20, "{}", one.ops);
}

fn keys(hash: u64, tag: u64) -> Change {
    let keys = Keys::new([hash; 2], [tag; 2]);
    Change::Applied(Box::new(Object::Secret(key("millrace-keys"), Ok(keys))))
}

/// Two nodes, the second with an agent, and an endpoint of `web` on each.
fn two_nodes() -> Vec<Change> {
    let node = |name: &str, address: [u8; 4]| {
        let fact = facts::Node {
            addresses: vec![address.into()],
            internal: vec![address.into()],
            ..facts::Node::default()
        };
        Change::Applied(Box::new(Object::Node(ObjectKey::new("", name), fact)))
    };
    let endpoint = |address: &str, node: &str| Endpoint {
        address: Address::read(address),
        node: Some(node.into()),
        ..Endpoint::default()
    };
    let slice = |of: &str, endpoints: Vec<Endpoint>| {
        let Change::Applied(mut object) = slice(of, &[]) else {
            panic!("no slice");
        };
        if let Object::EndpointSlice(_, slice) = &mut *object {
            slice.endpoints = endpoints;
        }
        Change::Applied(object)
    };
    let mut told = told(
        vec![service("web", "203.0.113.10")],
        vec![
            slice(
                "web",
                vec![endpoint("10.1.0.1", "n1"), endpoint("10.1.0.2", "n2")],
            ),
            slice("millrace", vec![endpoint("192.0.2.2", "n2")]),
        ],
    );
    told.push(node("n1", [192, 0, 2, 1]));
    told.push(node("n2", [192, 0, 2, 2]));
    told
}

/// Of a backend on another node: how it stands in the maps.
fn sent_to(engine: &mut Engine<Fake>) -> Option<(IpAddr, u32)> {
    let backends = &engine.dataplane_mut().backends;
    let mut sent = backends.values().filter(|one| one.mode == Mode::Dsr as u8);
    sent.next().map(|one| (one.address.to_ip(), one.state))
}

#[test]
fn keys_open_tunnels_and_outlive_the_agent_and_the_server() {
    let start = |maps: Fake| {
        let dsr = "kubernetes: {forwardingMode: dsr}";
        let mut engine = start_as(dsr, LIMITS, Some("default/millrace"), maps);
        let host = sample::host(&[("192.0.2.1/24", true)]);
        engine.network(vec![Update::All(Box::new(host))]);
        engine
    };
    let config = Config::parse(&text("kubernetes: {}", LIMITS), "lb.yaml").unwrap();
    let mut first = start(Fake::new(config.limits));
    first.cluster(two_nodes());
    assert!(
        !first.objects().unwrap().is_whole(),
        "keys were not told of"
    );
    first.flush().unwrap();
    assert_eq!(
        (sent_to(&mut first), first.dataplane_mut().settings.tunnel),
        (None, 0)
    );
    let tables = first.dataplane_mut().slots.clone();

    first.cluster(listed(Kind::Secret, vec![keys(5, 6)]));
    assert!(first.objects().unwrap().is_whole());
    first.flush().unwrap();
    let settings = first.dataplane_mut().settings;
    assert_eq!(settings.hash_key, [5; 2], "that of all nodes");
    assert_eq!(settings.tag_keys[0], [6; 2]);
    assert_eq!(settings.tunnel, Tunnel::new(Be16::new(16_081), 0).0);
    assert_ne!(first.dataplane_mut().slots, tables, "by the new key");
    let node = IpAddr::from([192, 0, 2, 2]);
    assert_eq!(sent_to(&mut first), Some((node, backend_state::USABLE)));
    let ends = |engine: &mut Engine<Fake>| {
        let frontends = engine.dataplane_mut().frontends.keys();
        frontends.filter(|key| key.port == 16_081).count()
    };
    assert_eq!(
        (ends(&mut first), first.dataplane_mut().targets.len()),
        (1, 1)
    );
    let before = first.dataplane_mut().clone();

    // The next agent finds no server at first, then no Secret.
    let mut second = start(first.into_dataplane());
    second.flush().unwrap();
    assert_eq!(second.dataplane_mut().settings, before.settings);
    second.cluster(two_nodes());
    second.cluster(vec![Change::Lost(Kind::Secret, "away".to_owned())]);
    assert!(second.objects().unwrap().is_whole());
    second.flush().unwrap();
    second.cluster(listed(Kind::Secret, Vec::new()));
    second.flush().unwrap();
    assert_eq!(second.dataplane_mut().backends, before.backends);
    assert_eq!(second.dataplane_mut().settings, before.settings);
    assert_eq!(ends(&mut second), 1);

    // Other keys for tags leave everything else as it is.
    second.cluster(vec![keys(5, 7)]);
    let flushed = second.flush().unwrap();
    assert!(flushed.services.is_empty());
    assert_eq!(second.dataplane_mut().settings.tag_keys[0], [7; 2]);
}
