use super::*;
use crate::state::{
    Announced, Announcement, Apply, Backend, Frontend, Interface, Protocol, Service, Source,
};

fn service() -> Service {
    let frontend = |address: &str, id| Frontend {
        address: address.parse().unwrap(),
        protocol: Protocol::Tcp,
        id,
        service: 1,
        rules: None,
    };
    Service {
        name: "default/web".into(),
        mode: "nat".into(),
        affinity: None,
        source_ranges: vec![],
        frontends: vec![
            frontend("192.0.2.10:443", 1),
            frontend("192.0.2.11:443", 2),
            frontend("[2001:db8::10]:443", 3),
        ],
        backends: vec![Backend {
            address: "10.0.0.11:8443".parse().unwrap(),
            service: 1,
            ordinal: 0,
            id: 1,
            weight: 100,
            mode: "nat".into(),
            state: BackendState::Ready,
            since: 0,
            slots: 64,
            table: 64,
            path: None,
            origin: None,
        }],
        left_out: vec![],
    }
}

fn state() -> State {
    let here = Announced::Announced { claimed_by: None };
    let elsewhere = Announced::Conflict {
        with: "02:00:00:00:00:07".into(),
    };
    State {
        version: "0.1.0".into(),
        abi: 1,
        interfaces: vec![Interface {
            name: "eth0".into(),
            index: Some(2),
            driver: "veth".into(),
            mtu: 1500,
            attached: Attached::Native,
        }],
        sources: vec![Source {
            name: "lb.yaml".into(),
            state: SourceState::Stale,
            since: 0,
            objects: 1,
            skipped: 0,
            error: Some("line 3".into()),
        }],
        announcements: [("192.0.2.10", here), ("2001:db8::10", elsewhere)]
            .map(|(address, state)| Announcement {
                interface: "eth0".into(),
                address: address.parse().unwrap(),
                state,
                announcements: 5,
            })
            .into(),
        services: [("default/web".into(), Arc::new(service()))].into(),
        apply: Apply {
            errors: 2,
            durations: Durations {
                counts_us: vec![(1000, 4), (10_000, 6), (u64::MAX, 7)],
                sum_us: 1_500_000,
            },
            ..Apply::default()
        },
        programming: Some(Durations {
            counts_us: vec![(250_000, 2), (u64::MAX, 3)],
            sum_us: 2_200_000,
        }),
        ..State::default()
    }
}

fn scrape() -> Scrape {
    let count = |packets| FrontendCount {
        packets,
        bytes: packets * 100,
        new_flows: 1,
        replies: 0,
    };
    let mut reasons = vec![[0; Reason::COUNT as usize]; 4];
    reasons[0][Reason::UnknownPort as usize] = 5;
    reasons[1][Reason::NoFlow as usize] = 3;
    reasons[2][Reason::TtlExpired as usize] = 2;
    let backends = vec![
        BackendCount::default(),
        BackendCount {
            packets: 9,
            new_flows: 3,
        },
    ];
    Scrape {
        sample: Sample::of(
            vec![count(0), count(10), count(20), count(5)],
            reasons,
            backends,
        ),
        usage: vec![view::Map {
            name: "flows".into(),
            used: 7,
            max: 100,
        }],
        asked: [(
            "192.0.2.10".parse().unwrap(),
            Asked {
                requests: 8,
                responses: 7,
            },
        )]
        .into(),
        state: Arc::new(state()),
        per_backend: true,
    }
}

#[test]
fn the_exposition_has_the_documented_names() {
    let text = exposition(scrape()).unwrap();
    for line in [
        r#"millrace_build_info{version="0.1.0",abi="1"} 1"#,
        "millrace_bypass 0",
        r#"millrace_interface_attached{interface="eth0",mode="native"} 1"#,
        r#"millrace_source_synced{source="lb.yaml"} 0"#,
        "millrace_config_last_reload_successful 0",
        r#"millrace_map_entries{map="flows"} 7"#,
        r#"millrace_map_max_entries{map="flows"} 100"#,
        "millrace_apply_errors_total 2",
        "millrace_apply_duration_seconds_sum 1.5",
        "millrace_apply_duration_seconds_count 7",
        r#"millrace_apply_duration_seconds_bucket{le="0.001"} 4"#,
        r#"millrace_apply_duration_seconds_bucket{le="0.01"} 6"#,
        r#"millrace_apply_duration_seconds_bucket{le="+Inf"} 7"#,
        "millrace_network_programming_duration_seconds_sum 2.2",
        r#"millrace_network_programming_duration_seconds_bucket{le="0.25"} 2"#,
        r#"millrace_network_programming_duration_seconds_bucket{le="+Inf"} 3"#,
        r#"millrace_frontend_packets_total{namespace="default",service="web",port="443",protocol="tcp",family="ipv4"} 30"#,
        r#"millrace_frontend_bytes_total{namespace="default",service="web",port="443",protocol="tcp",family="ipv6"} 500"#,
        r#"millrace_frontend_new_flows_total{namespace="default",service="web",port="443",protocol="tcp",family="ipv4"} 2"#,
        r#"millrace_drops_total{namespace="default",service="web",reason="ttl_expired"} 2"#,
        r#"millrace_passed_total{namespace="default",service="web",reason="no_flow"} 3"#,
        r#"millrace_answered_total{namespace="",service="",reason="unknown_port"} 5"#,
        r#"millrace_backends{namespace="default",service="web",state="ready"} 1"#,
        r#"millrace_backends{namespace="default",service="web",state="down"} 0"#,
        r#"millrace_backends_by_mode{namespace="default",service="web",mode="nat"} 1"#,
        r#"millrace_backend_packets_total{namespace="default",service="web",backend="10.0.0.11:8443"} 9"#,
        r#"millrace_backend_new_flows_total{namespace="default",service="web",backend="10.0.0.11:8443"} 3"#,
        r#"millrace_announced{service="default/web",ip="192.0.2.10",interface="eth0",protocol="arp"} 1"#,
        r#"millrace_announced{service="default/web",ip="2001:db8::10",interface="eth0",protocol="ndp"} 0"#,
        r#"millrace_address_conflict{ip="2001:db8::10",interface="eth0"} 1"#,
        r#"millrace_l2_requests_total{ip="192.0.2.10"} 8"#,
        r#"millrace_l2_responses_total{ip="192.0.2.10"} 7"#,
        r#"millrace_l2_gratuitous_total{ip="2001:db8::10"} 5"#,
        "# EOF",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "no {line} in\n{text}"
        );
    }
}

#[test]
fn backends_have_no_series_of_their_own_unless_asked_for() {
    let text = exposition(Scrape {
        per_backend: false,
        ..scrape()
    });
    assert!(!text.unwrap().contains("backend_packets"));
}

#[test]
fn a_backend_behind_several_frontends_has_one_series() {
    let mut scrape = scrape();
    let mut service = service();
    let again = Backend {
        service: 2,
        id: 0,
        ..service.backends[0].clone()
    };
    service.backends.push(again);
    let state = State {
        services: [("default/web".into(), Arc::new(service))].into(),
        ..state()
    };
    scrape.state = Arc::new(state);
    scrape.sample.backends[0].packets = 4;
    let text = exposition(scrape).unwrap();
    let mut packets = text
        .lines()
        .filter(|line| line.starts_with("millrace_backend_packets_total"));
    assert!(packets.next().unwrap().ends_with(" 13"), "{text}");
    assert_eq!(packets.next(), None);
}

#[test]
fn every_metric_is_on_the_page_about_them() {
    let page = include_str!("../../../docs/metrics.md");
    let text = exposition(scrape()).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut count = 0;
    for line in names {
        let name = line.split(' ').next().unwrap();
        // Those of one row are told by their ends.
        let (_, end) = name.rsplit_once('_').unwrap();
        let told = page.contains(name) || page.contains(&format!("_{end}_total"));
        assert!(told, "{name}");
        count += 1;
    }
    assert!(count > 20, "{text}");
}
