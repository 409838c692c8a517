use super::*;
use crate::net::{Address, Masquerade, Update, sample};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `eth0` (2) with `192.0.2.1/24`, `192.0.2.2` as a second address, and `2001:db8::1/64`; the default route by it.
fn facts() -> Facts {
    let nets = [
        ("192.0.2.1/24", true),
        ("192.0.2.2/24", false),
        ("2001:db8::1/64", true),
    ];
    sample::host(&nets)
}

fn config(rest: &str) -> Config {
    let head = "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\n";
    Config::parse(&format!("{head}{rest}"), "lb.yaml").unwrap_or_else(|errors| panic!("{errors}"))
}

fn built(rest: &str) -> Desired {
    build(
        &config(rest),
        &facts(),
        &View::default(),
        &Drains::default(),
    )
    .unwrap()
}

fn refused(rest: &str) -> Vec<String> {
    let told = build(
        &config(rest),
        &facts(),
        &View::default(),
        &Drains::default(),
    );
    let line = |error: ConfigError| {
        let ConfigError {
            at, field, what, ..
        } = error;
        format!("{}:{} {field}: {what}", at.line, at.column)
    };
    told.unwrap_err().into_iter().map(line).collect()
}

#[test]
fn a_dual_stack_nat_service_has_a_group_a_family() {
    let desired = built(
        r#"
services:
- name: web
  frontends: ["198.51.100.1:80/tcp", "[2001:db8:9::1]:80/tcp", "198.51.100.2:80/tcp"]
  backends: [{address: "10.0.0.1:8080"}, {address: "[2001:db8:5::1]:8080"}]
"#,
    );
    let groups = &desired.services["web"].groups;
    assert_eq!(groups.len(), 2);
    for group in groups {
        let v4 = group.key.v4.unwrap();
        assert_eq!(group.frontends.len(), if v4 { 2 } else { 1 });
        assert_eq!(group.backends.len(), 1);
        assert_eq!(group.backends[0].address.is_ipv4(), v4);
        assert_eq!(group.backends[0].port, 8080);
        let own = if v4 { "192.0.2.1" } else { "2001:db8::1" };
        assert_eq!(group.backends[0].source, Some(ip(own)));
        assert!(group.backends[0].usable());
    }
}

#[test]
fn backends_without_port_take_the_frontends() {
    let desired = built(
        r#"
services:
- name: web
  frontends: ["198.51.100.1:80/tcp", "198.51.100.1:443/tcp", "198.51.100.1:443/udp"]
  backends: [{address: 10.0.0.1}, {address: "10.0.0.2:80"}, {address: "10.0.0.1:80"}]
"#,
    );
    let groups = &desired.services["web"].groups;
    let ports: Vec<Vec<_>> = groups
        .iter()
        .map(|group| group.backends.iter().map(|b| b.port).collect())
        .collect();
    assert_eq!(ports, [vec![80, 80], vec![443, 80, 80]]);
    assert_eq!(groups[1].frontends.len(), 2);
    assert!(groups[0].backends.iter().all(|b| b.socket.port() == 80));
}

#[test]
fn untranslated_modes_reach_both_families_from_one_group() {
    for mode in ["ipip", "l2"] {
        let desired = built(&format!(
            r#"
services:
- name: web
  frontends: ["198.51.100.1:80/tcp", "[2001:db8:9::1]:443/tcp"]
  mode: {mode}
  backends: [{{address: 10.0.0.1}}, {{address: "2001:db8:5::1"}}]
"#
        ));
        let groups = &desired.services["web"].groups;
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].frontends.len(), 2);
        let sources: Vec<_> = groups[0].backends.iter().map(|b| b.source).collect();
        if mode == "ipip" {
            assert_eq!(sources, [Some(ip("192.0.2.1")), Some(ip("2001:db8::1"))]);
        } else {
            assert_eq!(sources, [None, None]);
        }
        assert!(groups[0].backends.iter().all(|b| b.port == 0));
    }
}

#[test]
fn drained_down_weightless_and_unreachable_backends_get_no_new_flows() {
    let config = config(
        r#"
services:
- name: web
  frontends: ["198.51.100.1:80/tcp"]
  health: {tcp: {}}
  backends:
  - {address: 10.0.0.1}
  - {address: 10.0.0.2, drain: true}
  - {address: 10.0.0.3, weight: 0}
  - {address: 10.0.0.4}
  - {address: 10.0.0.5}
"#,
    );
    let (mut view, mut drains, mut facts) = (View::default(), Drains::default(), facts());
    view.set("web", "10.0.0.4:80".parse().unwrap(), true);
    assert!(drains.set("web", "10.0.0.5:80".parse().unwrap(), true));
    let usable = |facts: &Facts, drains: &Drains| {
        let service = service(&config, &config.services[0], facts, &view, drains);
        service.groups[0]
            .backends
            .iter()
            .map(Backend::usable)
            .collect::<Vec<_>>()
    };
    assert_eq!(usable(&facts, &drains), [true, false, false, false, false]);
    assert!(drains.set("web", "10.0.0.5:80".parse().unwrap(), false));
    assert!(!drains.set("web", "10.0.0.5:80".parse().unwrap(), false));
    assert_eq!(usable(&facts, &drains), [true, false, false, false, true]);
    facts.apply(Update::Link(2, None));
    assert_eq!(usable(&facts, &drains), [false; 5]);
}

#[test]
fn an_address_of_this_host_is_no_vip() {
    let services = r#"services:
- name: web
  frontends: ["198.51.100.1:80/tcp", "192.0.2.1:80/tcp", "192.0.2.1:22/tcp"]
"#;
    assert_eq!(
        refused(services),
        [
            "5:38 services[0].frontends[1]: 192.0.2.1 is an address of this host",
            "5:58 services[0].frontends[2]: 192.0.2.1 is an address of this host",
        ]
    );
    assert_eq!(
        refused(&format!("allowNodeAddresses: true\n{services}")),
        [
            "6:58 services[0].frontends[2]: port 22 of an address of this host keeps the host manageable"
        ]
    );
    let desired = built(
        "allowNodeAddresses: true\nservices: [{name: a, frontends: [\"192.0.2.1:80/tcp\", \"192.0.2.9:80/tcp\"]}]",
    );
    let owned: Vec<_> = desired.services["a"].groups[0]
        .frontends
        .iter()
        .map(|frontend| frontend.owns_address)
        .collect();
    assert_eq!(
        owned,
        [false, true],
        "the rest of the host's address passes"
    );
}

#[test]
fn an_address_that_becomes_the_hosts_own_is_left_to_it() {
    let text = r#"services:
- {name: a, frontends: ["198.51.100.1:80/tcp"]}
- {name: b, frontends: ["198.51.100.1:22/tcp", "198.51.100.2:80/tcp"]}
"#;
    let mut facts = facts();
    facts.apply(Update::AddAddress(Address {
        ifindex: 2,
        net: "198.51.100.1/32".parse().unwrap(),
        global: true,
        preferred: true,
    }));
    let served = |config: &Config| -> Vec<String> {
        let services = config
            .services
            .iter()
            .map(|asked| service(config, asked, &facts, &View::default(), &Drains::default()));
        let groups = services.flat_map(|service| service.groups);
        groups
            .flat_map(|group| group.frontends)
            .map(|frontend| frontend.frontend.to_string())
            .collect()
    };
    let strict = config(text);
    assert_eq!(served(&strict), ["198.51.100.2:80/tcp"]);
    assert_eq!(left_to_host(&strict, &facts).len(), 2);
    // Even where host addresses are allowed, ssh stays the host's.
    let allowing = config(&format!("allowNodeAddresses: true\n{text}"));
    assert_eq!(
        served(&allowing),
        ["198.51.100.1:80/tcp", "198.51.100.2:80/tcp"]
    );
}

#[test]
fn beside_kube_proxy_nat_wants_an_address_of_its_own() {
    let services = "services: [{name: a, frontends: [\"198.51.100.1:80/tcp\"], backends: [{address: 10.0.0.1}]}]\n";
    let rule = |table: &str, chain: &str| Masquerade {
        table: table.into(),
        chain: chain.into(),
    };
    let told = |rule: Masquerade, text: &str| {
        let mut facts = facts();
        facts.masquerades = vec![rule];
        let errors = check(&config(text), &facts);
        let line = |error: ConfigError| format!("{}: {}", error.field, error.what);
        errors.into_iter().map(line).collect::<Vec<_>>()
    };
    let kube_proxy = rule("kube-proxy", "masquerading");
    assert_eq!(
        told(kube_proxy.clone(), services),
        [
            "nat.addresses: kube-proxy masquerades (table kube-proxy, chain masquerading) and takes ports of 192.0.2.1, 61000-65535 among them"
        ]
    );
    let own = format!("nat: {{addresses: [192.0.2.2]}}\n{services}");
    assert_eq!(told(kube_proxy, &own), Vec::<String>::new());
    assert_eq!(
        told(rule("nat", "POSTROUTING"), services),
        Vec::<String>::new()
    );
}

/// The cluster says which backends there are; the addresses alone say what is shared.
#[test]
fn nat_addresses_are_judged_in_a_cluster_as_they_are_with_a_file_of_services() {
    let mut facts = facts();
    facts.masquerades = vec![Masquerade {
        table: "kube-proxy".into(),
        chain: "masquerading".into(),
    }];
    let told = |text: &str| {
        let errors = check(&config(&format!("kubernetes: {{}}\n{text}")), &facts);
        let line = |error: ConfigError| {
            assert!(!error.fix.is_empty());
            let at = error.at;
            format!("{}:{} {}: {}", at.line, at.column, error.field, error.what)
        };
        errors.into_iter().map(line).collect::<Vec<_>>()
    };
    let nothing = Vec::<String>::new();
    assert_eq!(told(""), nothing, "nothing is translated");
    assert_eq!(told("nat: {addresses: [192.0.2.2]}"), nothing);
    assert_eq!(
        told("nat: {addresses: [192.0.2.1]}"),
        [
            "4:18 nat.addresses: kube-proxy masquerades (table kube-proxy, chain masquerading) and takes ports of 192.0.2.1, 61000-65535 among them"
        ]
    );
    let taken = told("nat: {addresses: [192.0.2.1], ports: 60000-65535}");
    assert!(
        taken[0].contains(" nat.ports: this host may take port 60000 of 192.0.2.1"),
        "{taken:?}"
    );
    assert_eq!(taken.len(), 2);
}

#[test]
fn nat_ports_that_the_host_takes_are_refused() {
    let services = "services: [{name: a, frontends: [\"198.51.100.1:80/tcp\"], backends: [{address: 10.0.0.1}]}]\n";
    let told = refused(&format!("nat: {{ports: 60000-65535}}\n{services}"));
    assert_eq!(
        told,
        [
            "3:14 nat.ports: this host may take port 60000 of 192.0.2.1 for its own connections (net.ipv4.ip_local_port_range)"
        ]
    );
    // An address that sockets do not take by themselves may have any port.
    let desired = built(&format!(
        "nat: {{ports: 60000-65535, addresses: [192.0.2.2]}}\n{services}"
    ));
    let source = desired.services["a"].groups[0].backends[0].source;
    assert_eq!(source, Some(ip("192.0.2.2")));
    let told = refused(&format!(
        "nat: {{addresses: [\"2001:db8::1\"]}}\n{services}"
    ));
    assert!(told[0].ends_with("no IPv4 address, and services in mode nat have IPv4 backends"));
}

#[test]
fn limits_name_their_setting() {
    let told = refused(
        "limits: {frontends: 1, backends: 1}\nservices: [{name: a, frontends: [\"198.51.100.1:80/tcp\", \"198.51.100.1:81/tcp\"], backends: [{address: 10.0.0.1}]}]\n",
    );
    assert_eq!(
        told,
        [
            "3:21 limits.frontends: 2 of 1 frontends",
            "3:34 limits.backends: 2 of 1 backends"
        ]
    );
}

#[test]
fn several_nat_addresses_are_shared_out() {
    let addresses = [ip("192.0.2.2"), ip("192.0.2.3"), ip("2001:db8::2")];
    let mut used = BTreeSet::new();
    for last in 0..32u8 {
        let source = group::nat_source(&addresses, IpAddr::from([10, 0, 0, last])).unwrap();
        assert!(source.is_ipv4());
        used.insert(source);
    }
    assert_eq!(used.len(), 2);
    assert_eq!(group::nat_source(&addresses[2..], ip("10.0.0.1")), None);
}
