use super::*;

const HEAD: &str = "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\n";

fn parse(rest: &str) -> Result<Config, ConfigErrors> {
    Config::parse(&format!("{HEAD}{rest}"), "lb.yaml")
}

fn faults(rest: &str) -> String {
    parse(rest).expect_err("a fault").to_string()
}

#[test]
fn the_page_in_the_docs_reads() {
    let config = parse(
        r#"
interfaces: [eth0]
xdp: {mode: native}
withoutAgent: {after: never}
announce: {l2: true}
nat: {addresses: ["192.0.2.1", "2001:db8::1"], ports: 61000-65535}
metrics: {listen: "127.0.0.1:9470", perBackend: true}
limits: {frontends: 4096, backends: 65536, flows: 1048576}
rejects: {perSecond: 50}
allowNodeAddresses: true
clusterKey: "00112233445566778899aabbccddeeff"
services:
- name: web
  frontends: ["192.0.2.10:443/tcp", "[2001:db8::10]:443/tcp"]
  mode: nat
  affinity: {clientIP: 3h}
  sourceRanges: [198.51.100.0/24]
  health: {tcp: {}, interval: 2s, timeout: 500ms, rise: 3, fall: 4}
  backends:
  - {address: "10.0.0.11:8443", weight: 50}
  - {address: "[2001:db8:1::11]:8443", drain: true}
"#,
    )
    .unwrap();
    assert_eq!(config.interfaces, ["eth0"]);
    assert_eq!(config.limits.flows, 1_048_576);
    assert_eq!(config.rejects.per_second, 50);
    assert!(config.announce_l2);
    assert_eq!(
        config.cluster_key,
        Some(ClusterKey([0x0011_2233_4455_6677, 0x8899_aabb_ccdd_eeff]))
    );
    let web = &config.services[0];
    assert_eq!(web.frontends[1].to_string(), "[2001:db8::10]:443/tcp");
    assert_eq!(web.affinity.unwrap().as_secs(), 10_800);
    let health = web.health.as_ref().unwrap();
    assert_eq!(health.timeout.as_millis(), 500);
    assert_eq!((health.rise, health.fall), (3, 4));
    assert_eq!((web.backends[0].weight, web.backends[1].weight), (50, 100));
    assert!(web.backends[1].drain);
    assert_eq!(
        config.place("services[0].frontends[1]"),
        Some(Place {
            line: 16,
            column: 37
        })
    );
}

#[test]
fn a_term_without_an_agent_is_never_or_long_enough() {
    for (text, term) in [
        ("", None),
        ("withoutAgent: {after: never}", None),
        ("withoutAgent: {after: 5m}", Some(300)),
        ("withoutAgent: {after: 10s}", Some(10)),
    ] {
        let after = parse(text).unwrap().without_agent;
        assert_eq!(after.map(|after| after.as_secs()), term, "{text}");
    }
    for bad in ["9s", "soon", "0s"] {
        let told = faults(&format!("withoutAgent: {{after: {bad}}}"));
        assert!(
            told.contains("lb.yaml:3:23: withoutAgent.after: "),
            "{told}"
        );
    }
}

#[test]
fn a_ten_line_file_takes_defaults() {
    let config = parse(
        "services:\n- name: web\n  frontends: [\"192.0.2.10:80/tcp\"]\n  backends:\n  - address: 10.0.0.11\n",
    )
    .unwrap();
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.nat.ports, 61_000..=65_535);
    assert!(!config.announce_l2);
    assert_eq!(config.metrics.listen.to_string(), "127.0.0.1:9470");
    assert_eq!(config.services[0].backends[0].port, None);
    let web = &config.services[0];
    let socket = "10.0.0.11:80".parse().unwrap();
    assert_eq!(web.socket(&web.backends[0]), socket);
    assert_eq!(web.probe(&web.backends[0]), socket);
}

#[test]
fn all_faults_are_told_at_once_in_order() {
    let told = faults(
        r#"
interfaces: eth0
xdp: {mode: fast}
colour: blue
services:
- name: web
  frontends: ["192.0.2.10:443", "192.0.2.10:0/tcp"]
  backends:
  - {address: "10.0.0.11:8443", weight: 65536}
  - {address: ten, weigth: 1}
"#,
    );
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "lb.yaml:4:13: interfaces: the text \"eth0\" where a list belongs; write it in brackets, as [a, b]",
            "lb.yaml:5:13: xdp.mode: \"fast\" is not known; use native or generic",
            "lb.yaml:6:1: colour: unknown field; known here: apiVersion, kind, withoutAgent, announce, interfaces, xdp, nat, tunnel, metrics, limits, rejects, allowNodeAddresses, clusterKey, kubernetes, services",
            "lb.yaml:9:15: services[0].frontends[0]: \"192.0.2.10:443\" names no protocol; write 192.0.2.10:443/tcp or [2001:db8::10]:443/udp",
            "lb.yaml:9:33: services[0].frontends[1]: \"192.0.2.10:0/tcp\" is not an address with a port; write 192.0.2.10:443/tcp or [2001:db8::10]:443/udp",
            "lb.yaml:11:41: services[0].backends[0].weight: 65536 is out of range; use 0 to 65535",
            "lb.yaml:12:15: services[0].backends[1].address: \"ten\" is not an address; write 10.0.0.11:8443 or [2001:db8::11]:8443",
            "lb.yaml:12:20: services[0].backends[1].weigth: unknown field; known here: address, weight, drain",
        ]
    );
}

#[test]
fn what_is_not_built_is_refused_not_ignored() {
    for (text, part) in [
        (
            "services: [{name: a, frontends: [\"192.0.2.1:1/sctp\"]}]",
            "is SCTP, which is not supported yet",
        ),
        (
            "services: [{name: a, frontends: [\"192.0.2.1:1/tcp\"], mode: dsr}]",
            "\"dsr\" is not known; use nat or ipip or l2",
        ),
    ] {
        let told = faults(text);
        assert!(told.contains(part), "{text}: {told}");
    }
}

#[test]
fn services_must_fit_together() {
    let told = faults(
        r#"
services:
- name: a
  frontends: ["192.0.2.10:80/tcp"]
  backends: [{address: "192.0.2.11:80"}, {address: "192.0.2.11:80"}]
- name: a
  frontends: ["192.0.2.10:80/tcp", "192.0.2.11:80/tcp"]
  mode: ipip
  backends: [{address: "10.0.0.1:8080"}]
- name: six
  frontends: ["[2001:db8::1]:80/tcp"]
  backends: [{address: "10.0.0.1"}]
"#,
    );
    for part in [
        "7:52: services[0].backends[1].address: the same backend as backends[0]",
        "services[0].backends[0].address: 192.0.2.11 is a VIP",
        "8:9: services[1].name: a is the name of services[0], too; rename one",
        "9:15: services[1].frontends[0]: 192.0.2.10:80/tcp is services[0].frontends[0], too",
        "services[1].backends[0].address: another port than frontend 192.0.2.10:80/tcp, and mode ipip does not translate; write the address without port",
        "services[2].backends[0].address: 10.0.0.1 has no frontend of its family",
        "services[2].frontends[0]: [2001:db8::1]:80/tcp has no backend of its family",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
}

#[test]
fn yaml_faults_have_a_place() {
    assert_eq!(
        Config::parse("a: [1\nb: 2\n", "x").unwrap_err().errors[0]
            .at
            .line,
        2
    );
    let told = faults("kind: again\n");
    assert!(told.starts_with("lb.yaml:3:1: duplicate"), "{told}");
    let told = Config::parse("", "x").unwrap_err().to_string();
    assert!(told.contains("nothing where a mapping belongs"), "{told}");
}

#[test]
fn a_key_that_yaml_takes_for_a_number_asks_for_quotes() {
    let told = faults("clusterKey: 00112233445566778899001122334455\n");
    assert!(
        told.contains("put it in quotes") || told.contains("quote it"),
        "{told}"
    );
    let told = faults("clusterKey: secret\n");
    assert!(!told.contains("secret"), "a secret is not repeated: {told}");
}

#[test]
fn durations_add_up() {
    for (text, ms) in [
        ("500ms", 500),
        ("2s", 2000),
        ("1m30s", 90_000),
        ("1d", 86_400_000),
    ] {
        assert_eq!(parse_duration(text).unwrap().as_millis(), ms);
    }
    for text in [
        "",
        "2",
        "s",
        "2 s",
        "-2s",
        "1w",
        "99999999999999999999s",
        "99999999999999999d",
    ] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
}

/// `cargo test --release config::tests -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn how_long_a_large_file_takes() {
    use std::fmt::Write as _;

    let mut text = String::from("limits: {frontends: 10000, backends: 262144}\nservices:\n");
    for at in 0..10_000 {
        let (high, low) = (at / 256, at % 256);
        write!(
            text,
            "- name: s{at}\n  frontends: [\"198.18.{high}.{low}:80/tcp\"]\n  backends:\n"
        )
        .unwrap();
        for backend in 1..=25 {
            writeln!(
                text,
                "  - {{address: \"10.{high}.{low}.{backend}:8080\", weight: 100}}"
            )
            .unwrap();
        }
    }
    let start = std::time::Instant::now();
    let config = parse(&text).unwrap();
    println!(
        "{} services, {} MiB of text: {:?}",
        config.services.len(),
        text.len() >> 20,
        start.elapsed()
    );
}
