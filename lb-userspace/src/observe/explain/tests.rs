//! From the cluster's objects through the maps to the words: the pipeline runs over what was planned, and each answer has
//! the line of the contract that it follows.

use std::time::{Duration, UNIX_EPOCH};

use lb_common::{
    abi::FrontendKey,
    bytes::{Be16, V4},
    sim::World,
};

use super::*;
use crate::{
    cluster::facts::{
        self, Address, Change, Endpoint, Ingress, Kind, Node, Object, ObjectKey, ServicePort,
        Slice, SlicePort,
    },
    config::Config,
    dataplane::Fake,
    desired::Drains,
    net::Facts,
    reconcile::{About, Engine, Report, Start},
    state::Protocol,
};

const VIP: &str = "203.0.113.10:80";
const CLIENT: &str = "198.51.100.7:50312";

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// Has [`VIP`], at port 80.
fn web() -> facts::Service {
    facts::Service {
        uid: "web".into(),
        created: 1000,
        kind: "LoadBalancer".into(),
        cluster_ip: "10.96.0.1".into(),
        ports: vec![ServicePort {
            name: "http".into(),
            port: 80,
            ..ServicePort::default()
        }],
        ingress: vec![Ingress {
            ip: Some("203.0.113.10".into()),
            ip_mode: None,
        }],
        ..facts::Service::default()
    }
}

fn local() -> facts::Service {
    facts::Service {
        external_local: true,
        ..web()
    }
}

fn ready(address: &str, node: &str) -> Endpoint {
    Endpoint {
        address: Address::read(address),
        node: Some(node.into()),
        ..Endpoint::default()
    }
}

fn leaving(endpoint: Endpoint) -> Endpoint {
    Endpoint {
        ready: Some(false),
        serving: Some(true),
        terminating: Some(true),
        ..endpoint
    }
}

/// A cluster as this node, `n1`, knows it.
struct Place {
    engine: Engine<Fake>,
    state: Arc<State>,
}

impl Place {
    /// Services by name, and the endpoints of `web`.
    fn new(
        kubernetes: &str,
        services: &[(&str, facts::Service)],
        endpoints: Vec<Endpoint>,
    ) -> Self {
        let text = format!(
            "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\n\
             kubernetes: {{{kubernetes}}}\nlimits: {{frontends: 64, backends: 256, flows: 16}}\n"
        );
        let config = Config::parse(&text, "lb.yaml").unwrap_or_else(|errors| panic!("{errors}"));
        let maps = Fake::new(config.limits);
        let start = Start {
            config,
            facts: Facts::default(),
            drains: Drains::default(),
            hash_key: Some([1, 2]),
            hz: 1000,
            node: "n1".to_owned(),
            agents: None,
        };
        let mut engine = Engine::start(start, maps).unwrap();
        let node = Node {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            ..Node::default()
        };
        let slice = Slice {
            service: "web".into(),
            address_type: "IPv4".into(),
            ports: vec![SlicePort {
                name: Some("http".into()),
                port: Some(8080),
                ..SlicePort::default()
            }],
            endpoints,
            ..Slice::default()
        };
        let mut objects = vec![
            Object::Node(ObjectKey::new("", "n1"), node),
            Object::EndpointSlice(key("web-1"), slice),
        ];
        for (name, service) in services {
            objects.push(Object::Service(key(name), service.clone()));
        }
        let told = objects
            .into_iter()
            .map(|one| Change::Applied(Box::new(one)));
        let begin = Kind::ALL.map(Change::ListBegins).into_iter();
        let changes = begin.chain(told).chain(Kind::ALL.map(Change::ListEnds));
        engine.cluster(changes.collect());
        let (mut report, state) = Report::new(About {
            node: "n1".to_owned(),
            kernel: String::new(),
            file: "lb.yaml".to_owned(),
            cluster: true,
            keys: false,
        });
        let flushed = engine.flush();
        report.flushed(&flushed, Duration::ZERO, UNIX_EPOCH, &engine);
        report.publish(&engine);
        let state = Arc::clone(&state.borrow());
        Self { engine, state }
    }

    /// The maps, for the host's build of the pipeline.
    fn world(&mut self) -> World {
        let maps = self.engine.dataplane_mut();
        let mut world = World {
            filter: maps.addresses.clone().into_iter().collect(),
            services: maps.services.clone().into_iter().collect(),
            slots: maps.slots.clone().into_iter().collect(),
            members: maps.members.clone().into_iter().collect(),
            backends: maps.backends.clone().into_iter().collect(),
            reject_tokens: 9.into(),
            flow_tokens: 9.into(),
            ..World::default()
        };
        for (name, value) in &maps.frontends {
            let std::net::IpAddr::V4(ip) = name.address else {
                continue;
            };
            let key = FrontendKey::new(V4::from(ip), Be16::new(name.port), name.protocol);
            world.v4.frontends.insert(key, *value);
        }
        for source in &maps.sources {
            if let std::net::IpAddr::V4(ip) = source.client {
                let range = (source.service, V4::from(ip), source.bits);
                world.v4.sources.push(range);
            }
        }
        world
    }

    fn explain(&mut self, to: &str) -> view::Explanation {
        let ends = view::Ends {
            from: CLIENT.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol: Protocol::Tcp,
            flags: None,
        };
        let to = Some((ends.to, ends.protocol));
        let (world, settings) = (self.world(), self.engine.dataplane_mut().settings);
        let bytes = frame::of(&view::Packet::Ends(ends), [0; 6]).unwrap();
        let mut frame = Frame { bytes, ingress: 1 };
        let mut scratch = Scratch::default();
        let verdict = pipeline::process(&mut frame, &world, &settings, &mut scratch);
        let decision = Decision {
            verdict,
            steps: world.steps.take(),
            frame: frame.bytes,
            ingress: 1,
        };
        words::explanation(&decision, to, true, &self.state, &Facts::default())
    }

    /// Why each of these steps is as it is, with its result.
    fn why(&mut self, to: &str, steps: &[&str]) -> Vec<String> {
        let all = self.explain(to).steps.into_iter();
        all.filter(|row| steps.contains(&&*row.step))
            .map(|row| format!("{} | {}", row.result, row.why))
            .collect()
    }
}

/// A2.4, A3.13, A4.1, A9.1
#[test]
fn a_pod_of_this_node_is_chosen_step_by_step_by_the_contract() {
    let mut place = Place::new("", &[("web", web())], vec![ready("10.1.0.1", "n1")]);
    let asked = ["frontend", "source", "backend", "mode", "VERDICT"];
    assert_eq!(
        place.why(VIP, &asked),
        [
            "default/web | status.loadBalancer, ipMode VIP [A2.4]",
            "allowed | no ranges [A9.1]",
            "10.1.0.1:8080 on n1 | ready, cluster set [A4.1]",
            "local | on this node [A3.13]: replies get the VIP on their way out",
            "LOCAL | the stack delivers it on this node",
        ]
    );
}

/// A3.12, A3.13
#[test]
fn what_runs_elsewhere_is_left_to_kube_proxy_and_said_to_be() {
    let nowhere = Endpoint {
        node: None,
        ..ready("10.2.0.1", "")
    };
    for (endpoint, backend, mode) in [
        (
            ready("10.2.0.1", "n2"),
            "10.2.0.1:8080 on n2 | ready, cluster set [A4.1]",
            "pass | on another node [A3.13]: kube-proxy serves it",
        ),
        (
            nowhere,
            "10.2.0.1:8080 | ready, cluster set [A4.1]",
            "pass | on no known node [A3.12]: kube-proxy serves it",
        ),
    ] {
        let mut place = Place::new("", &[("web", web())], vec![endpoint]);
        assert_eq!(place.why(VIP, &["backend", "mode"]), [backend, mode]);
        assert_eq!(place.explain(VIP).outcome, view::Outcome::Passed);
    }
}

/// A4.1, A4.2
#[test]
fn each_set_says_by_what_it_chose() {
    let here = || ready("10.1.0.1", "n1");
    for (service, endpoint, why) in [
        (local(), here(), "ready, local set [A4.2]"),
        (
            web(),
            leaving(here()),
            "none is ready: serves while it terminates [A4.1]",
        ),
        (
            local(),
            leaving(here()),
            "none here is ready: serves while it terminates [A4.2]",
        ),
    ] {
        let mut place = Place::new("", &[("web", service)], vec![endpoint]);
        let expected = format!("10.1.0.1:8080 on n1 | {why}");
        assert_eq!(place.why(VIP, &["backend"]), [expected]);
    }
}

/// A6.1, A6.2
#[test]
fn reject_and_drop_name_what_is_missing() {
    let there = || ready("10.2.0.1", "n2");
    let dead = Endpoint {
        serving: Some(false),
        ..leaving(there())
    };
    for (service, endpoints, verdict) in [
        (
            local(),
            vec![there()],
            "DROP | no_local_backend: endpoints on other nodes only [A6.2]",
        ),
        (
            local(),
            vec![],
            "ANSWER | no_backend: no endpoint anywhere [A6.1]",
        ),
        (
            web(),
            vec![dead],
            "ANSWER | no_backend: no endpoint anywhere [A6.1]",
        ),
    ] {
        let mut place = Place::new("", &[("web", service)], endpoints);
        assert_eq!(place.why(VIP, &["VERDICT"]), [verdict]);
    }
}

/// A1.8
#[test]
fn who_lost_a_frontend_is_named_where_it_would_be_looked_for() {
    let late = facts::Service {
        uid: "late".into(),
        created: 2000,
        ..web()
    };
    let mut place = Place::new(
        "",
        &[("web", web()), ("late", late)],
        vec![ready("10.1.0.1", "n1")],
    );
    assert_eq!(
        place.why(VIP, &["left out", "frontend"]),
        [
            "default/late | an older Service has it [A1.8]",
            "default/web | status.loadBalancer, ipMode VIP [A2.4]",
        ]
    );
    let other_port = place.explain("203.0.113.10:81").steps;
    assert!(other_port.iter().all(|row| row.step != "left out"));
}

/// A2.11
#[test]
fn what_is_no_frontend_says_why() {
    let refused = facts::Service {
        uid: "refused".into(),
        ingress: vec![Ingress {
            ip: Some("192.0.2.1".into()),
            ip_mode: None,
        }],
        ..web()
    };
    let services = [("web", web()), ("refused", refused)];
    let mut place = Place::new("", &services, vec![ready("10.1.0.1", "n1")]);
    assert_eq!(
        place.why("203.0.113.10:81", &["VERDICT"]),
        ["ANSWER | unknown_port: a VIP is ours whole [A2.11]"]
    );
    assert_eq!(
        place.why("192.0.2.1:80", &["left out", "VERDICT"]),
        [
            "default/refused | an address of a node, without allowNodeAddresses",
            "PASS | not ours: no VIP, no reply to a flow",
        ]
    );
}

/// A9.1, A9.2, A9.4, A9.6
#[test]
fn a_denied_client_learns_which_ranges_kept_it_out() {
    let field = |text: &str| facts::Service {
        source_ranges: vec![text.into()],
        ..web()
    };
    let annotated = facts::Service {
        source_ranges_annotation: Some("10.0.0.0/8".into()),
        ..web()
    };
    for (service, source) in [
        (
            field("198.51.100.0/24"),
            "allowed | by spec.loadBalancerSourceRanges [A9.1]",
        ),
        (
            field("10.0.0.0/8"),
            "denied | by spec.loadBalancerSourceRanges [A9.1]",
        ),
        (
            annotated,
            "denied | by annotation load-balancer-source-ranges [A9.2]",
        ),
        (
            field("2001:db8::/32"),
            "denied | no range of this family [A9.4]",
        ),
        (field("everyone"), "denied | no valid range [A9.6]"),
    ] {
        let mut place = Place::new("", &[("web", service)], vec![ready("10.1.0.1", "n1")]);
        assert_eq!(place.why(VIP, &["source"]), [source]);
    }
}

/// A2.2, A2.3, A2.10, A9.3
#[test]
fn other_classes_of_frontends_say_which_option_made_them() {
    let service = facts::Service {
        ports: vec![ServicePort {
            node_port: 30_080,
            ..web().ports.remove(0)
        }],
        external_ips: vec!["203.0.113.50".into()],
        source_ranges: vec!["10.0.0.0/8".into()],
        ..web()
    };
    let options = "externalIPs: true, nodePorts: true, clusterIPs: true, sourceRanges: vips";
    let mut place = Place::new(options, &[("web", service)], vec![ready("10.1.0.1", "n1")]);
    for (to, frontend) in [
        ("203.0.113.50:80", "spec.externalIPs, by option [A2.3]"),
        ("192.0.2.1:30080", "nodePort of this node, by option [A2.2]"),
        (
            "10.96.0.1:80",
            "spec.clusterIPs from outside, by option [A2.10]",
        ),
    ] {
        assert_eq!(
            place.why(to, &["frontend", "source"]),
            [
                format!("default/web | {frontend}"),
                "allowed | ranges hold for VIPs only, by option [A9.3]".to_owned(),
            ]
        );
    }
}

/// The rules are the cluster's: a config file's service has none.
#[test]
fn a_service_of_the_file_is_explained_in_the_configs_words() {
    let text = "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\nservices:\n\
                - {name: web, mode: nat, frontends: [\"203.0.113.10:80/tcp\"], \
                backends: [{address: \"10.1.0.1:80\"}]}\n";
    let config = Config::parse(text, "lb.yaml").unwrap();
    let service = crate::desired::service(
        &config,
        &config.services[0],
        &Facts::default(),
        &crate::health::View::default(),
        &Drains::default(),
    );
    let group = &service.groups[0];
    assert!(group.frontends.iter().all(|one| one.rules.is_none()));
    assert!(group.backends.iter().all(|one| one.origin.is_none()));
    assert!(service.left_out.is_empty());
}
