//! A4 and A6: selection.

use super::{
    super::{
        backends::Candidate,
        frontends::Class,
        selection::{Client, Outcome, Policies, Set, outcome, select, set},
    },
    *,
};

fn local_policy() -> Service {
    Service {
        external_local: true,
        ..web()
    }
}

fn usable(service: Service, endpoints: Vec<Endpoint>) -> Vec<String> {
    World::with(options(), service, endpoints).usable("web", &vip())
}

/// A4.1
#[test]
fn the_cluster_set_is_the_ready_ones_else_the_serving_ones_that_leave() {
    let (one, two, three) = (
        endpoint("10.1.0.1", "n1"),
        endpoint("10.2.0.1", "n2"),
        endpoint("10.3.0.1", "n3"),
    );
    let dead = |one: &Endpoint| conditions(one.clone(), false, false, true);
    let unready = |one: &Endpoint| conditions(one.clone(), false, true, false);
    let cases = [
        (
            vec![one.clone(), two.clone()],
            vec!["local 10.1.0.1:8080", "pass 10.2.0.1:8080"],
        ),
        (
            vec![leaving(one.clone()), two.clone()],
            vec!["pass 10.2.0.1:8080"],
        ),
        (
            vec![leaving(one.clone()), leaving(two.clone()), dead(&three)],
            vec!["local 10.1.0.1:8080", "pass 10.2.0.1:8080"],
        ),
        (vec![dead(&one), unready(&two)], vec![]),
        (vec![], vec![]),
    ];
    for (endpoints, expected) in cases {
        assert_eq!(usable(web(), endpoints.clone()), expected, "{endpoints:?}");
    }
}

/// A4.2, A4.6
#[test]
fn the_local_set_never_falls_back_to_another_node() {
    let (here, there) = (endpoint("10.1.0.1", "n1"), endpoint("10.2.0.1", "n2"));
    let cases = [
        (
            vec![here.clone(), there.clone()],
            vec!["local 10.1.0.1:8080"],
        ),
        (
            vec![leaving(here.clone()), there.clone()],
            vec!["local 10.1.0.1:8080"],
        ),
        (vec![there.clone()], vec![]),
        (vec![leaving(there)], vec![]),
    ];
    for (endpoints, expected) in cases {
        assert_eq!(
            usable(local_policy(), endpoints.clone()),
            expected,
            "{endpoints:?}"
        );
    }
}

/// A4.3
#[test]
fn each_port_and_each_set_falls_back_by_itself() {
    let service = Service {
        ports: vec![port("http", "TCP", 80, 0), port("tls", "TCP", 443, 0)],
        ..local_policy()
    };
    let options = Options {
        cluster_ips: true,
        ..options()
    };
    let here = leaving(endpoint("10.1.0.1", "n1"));
    let mut world = World::with(options, service, vec![here, endpoint("10.2.0.1", "n2")]);
    let tls = Slice {
        ports: vec![slice_port("tls", "TCP", 8443)],
        ..slice(vec![endpoint("10.1.0.9", "n1")])
    };
    world.tell([a_slice("web-2", tls)]);
    assert_eq!(world.usable("web", &vip()), ["local 10.1.0.1:8080"]);
    assert_eq!(
        world.usable("web", "10.96.0.10:80/tcp"),
        ["pass 10.2.0.1:8080"]
    );
    assert_eq!(
        world.usable("web", &format!("{VIP}:443/tcp")),
        ["local 10.1.0.9:8443"]
    );
}

/// A4.4
#[test]
fn what_leaves_keeps_its_flows_until_it_is_out_of_the_slice() {
    let (stays, leaves) = (endpoint("10.1.0.1", "n1"), endpoint("10.1.0.2", "n1"));
    let mut world = World::with(options(), web(), vec![stays.clone(), leaves.clone()]);
    for (serving, down) in [(true, false), (false, true)] {
        let leaving = conditions(leaves.clone(), false, serving, true);
        world.tell([a_slice("web-1", slice(vec![stays.clone(), leaving]))]);
        let group = world.group("web", &vip());
        assert_eq!(group.backends.len(), 2, "known for its flows");
        let backend = &group.backends[1];
        assert_eq!(
            (backend.drain, backend.down, backend.usable()),
            (true, down, false)
        );
    }
    world.tell([a_slice("web-1", slice(vec![stays]))]);
    assert_eq!(world.group("web", &vip()).backends.len(), 1);
}

/// A4.5
#[test]
fn the_internal_policy_is_for_cluster_ips_alone() {
    let service = Service {
        internal_local: true,
        ..web()
    };
    let options = Options {
        cluster_ips: true,
        ..options()
    };
    let endpoints = vec![endpoint("10.1.0.1", "n1"), endpoint("10.2.0.1", "n2")];
    let world = World::with(options.clone(), service, endpoints.clone());
    assert_eq!(
        world.usable("web", "10.96.0.10:80/tcp"),
        ["local 10.1.0.1:8080"]
    );
    assert_eq!(world.usable("web", &vip()).len(), 2);
    // And the external one is not for them.
    let world = World::with(options, local_policy(), endpoints);
    assert_eq!(world.usable("web", "10.96.0.10:80/tcp").len(), 2);
    assert_eq!(world.usable("web", &vip()), ["local 10.1.0.1:8080"]);
}

const CLIENTS: [Client; 3] = [Client::PodOnNode, Client::HostProcess, Client::OffCluster];
const CLASSES: [Class; 4] = [
    Class::ClusterIp,
    Class::NodePort,
    Class::ExternalIp,
    Class::LoadBalancer,
];

/// Which set each frontend uses, in the order of [`CLASSES`]: C the cluster, L this node. A row for each pair of
/// internal and external policy, a column for each of [`CLIENTS`]. From the text of A4.5 to A4.7.
const SETS: [(bool, bool, [&str; 3]); 4] = [
    (false, false, ["CCCC", "CCCC", "CCCC"]),
    (false, true, ["CLCC", "CLCC", "CLLL"]),
    (true, false, ["LCCC", "LCCC", "LCCC"]),
    (true, true, ["LLCC", "LLCC", "LLLL"]),
];

/// What packets meet by set, in states of the endpoints: forwarded here, forwarded anywhere, dropped, rejected.
const STATES: [(&str, [&str; 2]); 4] = [
    ("local ready", ["any", "here"]),
    ("only local terminating", ["here", "here"]),
    ("only remote", ["there", "drop"]),
    ("none", ["reject", "reject"]),
];

fn endpoints(state: &str) -> Vec<Endpoint> {
    let (here, there) = (endpoint("10.1.0.1", "n1"), endpoint("10.2.0.1", "n2"));
    match state {
        "local ready" => vec![here, there],
        "only local terminating" => vec![leaving(here)],
        "only remote" => vec![there],
        _ => vec![conditions(here, false, false, true)],
    }
}

/// A4.7, A4.8
#[test]
fn every_client_meets_the_set_of_its_policy_at_every_frontend() {
    let mut rows = 0;
    for (internal_local, external_local, expected) in SETS {
        let policies = Policies {
            external_local,
            internal_local,
        };
        for (client, sets) in CLIENTS.into_iter().zip(expected) {
            for (class, letter) in CLASSES.into_iter().zip(sets.chars()) {
                let chosen = set(client, class, policies);
                let told = format!("{client:?} {class:?} {policies:?}");
                assert_eq!(chosen == Set::Local, letter == 'L', "{told}");
                for (state, outcomes) in STATES {
                    let expected = outcomes[usize::from(letter == 'L')];
                    assert_eq!(met(state, chosen), expected, "{told}, {state}");
                    rows += 1;
                }
            }
        }
    }
    assert_eq!(rows, 192);
}

fn met(state: &str, set: Set) -> &'static str {
    let endpoints = endpoints(state);
    let candidates: Vec<Candidate<'_>> = endpoints
        .iter()
        .map(|one| Candidate {
            address: match one.address {
                Address::Ip(ip) => ip,
                Address::Text(_) => unreachable!(),
            },
            port: 8080,
            ready: one.ready.unwrap_or(true),
            serving: one.serving.unwrap_or(true),
            terminating: one.terminating.unwrap_or(false),
            node: one.node.as_ref(),
            local: one.node.as_deref() == Some("n1"),
            zone: None,
            zone_hints: &[],
            node_hints: &[],
        })
        .collect();
    let selected = select(&candidates, set, None).indexes;
    let anywhere = select(&candidates, Set::Cluster, None).indexes.len();
    match outcome(selected.len(), anywhere) {
        Outcome::Reject => "reject",
        Outcome::Drop => "drop",
        Outcome::Forward => {
            let local = |at: &usize| candidates[*at].local;
            match (selected.iter().any(local), selected.iter().all(local)) {
                (true, true) => "here",
                (true, false) => "any",
                (false, _) => "there",
            }
        }
    }
}

/// A4.8
#[test]
fn the_frontends_of_a_service_meet_what_the_table_says_of_off_cluster_clients() {
    let options = Options {
        external_ips: true,
        node_ports: true,
        cluster_ips: true,
        ..options()
    };
    let frontends = [
        "10.96.0.10:80/tcp",
        "192.0.2.1:30080/tcp",
        "203.0.113.50:80/tcp",
        "203.0.113.10:80/tcp",
    ];
    for (internal_local, external_local, expected) in SETS {
        let service = Service {
            internal_local,
            external_local,
            external_ips: vec!["203.0.113.50".into()],
            ..web()
        };
        for (state, outcomes) in STATES {
            let world = World::with(options.clone(), service.clone(), endpoints(state));
            for (frontend, letter) in frontends.into_iter().zip(expected[2].chars()) {
                let group = world.group("web", frontend);
                let usable = world.usable("web", frontend);
                let met = match (usable.len(), group.drop) {
                    (0, true) => "drop",
                    (0, false) => "reject",
                    (2, false) => "any",
                    (1, false) if usable[0].starts_with("local") => "here",
                    (1, false) => "there",
                    other => panic!("{other:?}"),
                };
                let expected = outcomes[usize::from(letter == 'L')];
                assert_eq!(
                    met, expected,
                    "{frontend} {state} {internal_local} {external_local}"
                );
            }
        }
    }
}

/// A4.9
#[test]
fn all_endpoints_weigh_the_same() {
    let endpoints = vec![endpoint("10.1.0.1", "n1"), endpoint("10.2.0.1", "n2")];
    let world = World::with(options(), web(), endpoints);
    let weights: Vec<u16> = world
        .group("web", &vip())
        .backends
        .iter()
        .map(|backend| backend.weight)
        .collect();
    assert_eq!(weights, [100, 100]);
}

/// A6.1, A6.2
#[test]
fn without_any_endpoint_it_rejects_and_without_a_local_one_it_drops() {
    let drops = |endpoints| {
        let world = World::with(options(), local_policy(), endpoints);
        world.group("web", &vip()).drop
    };
    let there = endpoint("10.2.0.1", "n2");
    assert!(drops(vec![there.clone()]));
    assert!(
        drops(vec![leaving(there.clone())]),
        "still usable on its node"
    );
    assert!(!drops(vec![conditions(there, false, false, true)]));
    assert!(!drops(vec![]));
    assert!(!drops(vec![endpoint("10.1.0.1", "n1")]));
}

/// Rules by which the endpoints behind [`vip`] are taken or not, by address.
fn chosen(world: &World) -> Vec<String> {
    let group = world.group("web", &vip());
    let told = group.backends.iter().map(|backend| {
        let origin = backend.origin.as_ref().unwrap();
        let node = origin.node.as_deref().unwrap_or("-");
        format!("{} {node} {}", backend.address, origin.chosen)
    });
    told.collect()
}

/// A4.1, A4.2, A4.4
#[test]
fn every_endpoint_carries_the_rule_by_which_it_gets_new_flows_or_none() {
    // What is elsewhere keeps its flows here, too.
    let options = || Options {
        nat_addresses: vec![ip("192.0.2.9")],
        ..options()
    };
    let (here, there) = (endpoint("10.1.0.1", "n1"), endpoint("10.2.0.1", "n2"));
    let unready = |one: &Endpoint| conditions(one.clone(), false, false, false);
    let world = World::with(options(), local_policy(), vec![here.clone(), there.clone()]);
    assert_eq!(
        chosen(&world),
        [
            "10.1.0.1 n1 ready, local set [A4.2]",
            "10.2.0.1 n2 not in the local set; its flows stay [A4.2]",
        ]
    );
    let world = World::with(options(), web(), vec![leaving(here.clone()), there.clone()]);
    assert_eq!(
        chosen(&world),
        [
            "10.1.0.1 n1 terminates; its flows stay [A4.4]",
            "10.2.0.1 n2 ready, cluster set [A4.1]",
        ]
    );
    let world = World::with(options(), web(), vec![leaving(here), unready(&there)]);
    assert_eq!(
        chosen(&world),
        [
            "10.1.0.1 n1 none is ready: serves while it terminates [A4.1]",
            "10.2.0.1 n2 not ready; its flows stay [A4.1]",
        ]
    );
}
