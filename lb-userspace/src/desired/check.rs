//! What can be wrong with a valid config on this host. A config is refused whole, never half applied.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use lb_common::abi::Mode;

use super::group;
use crate::{
    config::{Backend, Config, ConfigError, MAX_SOURCE_RANGES},
    net::{Address, Facts, Masquerade, path},
};

/// Ports of an address of this host that no frontend may take (interface.md section 1): ssh, BGP, etcd, the Kubernetes
/// API, the kubelet.
const NODE_PORTS: [RangeInclusive<u16>; 5] = [
    22..=22,
    179..=179,
    2379..=2380,
    6443..=6443,
    10_250..=10_250,
];

/// Whether a port of an address of this host is never ours.
pub(super) fn keeps_manageable(port: u16) -> bool {
    NODE_PORTS.iter().any(|range| range.contains(&port))
}

/// Every reason to refuse `config` on a host with these facts.
pub fn check(config: &Config, facts: &Facts) -> Vec<ConfigError> {
    let mut refusals = Refusals {
        config,
        found: Vec::new(),
    };
    vips(config, facts, &mut refusals);
    nat(config, facts, &mut refusals);
    limits(config, &mut refusals);
    refusals.found
}

struct Refusals<'a> {
    config: &'a Config,
    found: Vec<ConfigError>,
}

impl Refusals<'_> {
    fn push(&mut self, field: String, what: String, fix: impl Into<String>) {
        self.found.push(ConfigError {
            at: self.config.place(&field).unwrap_or_default(),
            field,
            what,
            fix: fix.into(),
        });
    }
}

fn vips(config: &Config, facts: &Facts, refusals: &mut Refusals<'_>) {
    let own: HashSet<IpAddr> = facts.host_addresses().collect();
    for (at, service) in config.services.iter().enumerate() {
        for (index, frontend) in service.frontends.iter().enumerate() {
            if !own.contains(&frontend.address) {
                continue;
            }
            let field = format!("services[{at}].frontends[{index}]");
            if !config.allow_node_addresses {
                refusals.push(
                    field,
                    format!("{} is an address of this host", frontend.address),
                    "use another address, or allowNodeAddresses: true to take this port of it",
                );
            } else if keeps_manageable(frontend.port) {
                refusals.push(
                    field,
                    format!(
                        "port {} of an address of this host keeps the host manageable",
                        frontend.port
                    ),
                    "use another port or another address",
                );
            }
        }
        for (index, backend) in service.backends.iter().enumerate() {
            if own.contains(&backend.address) {
                refusals.push(
                    format!("services[{at}].backends[{index}].address"),
                    format!("{} is an address of this host", backend.address),
                    "backends run on other hosts",
                );
            }
        }
    }
}

/// Source ports that the host itself may take would give us its replies, and it ours.
fn nat(config: &Config, facts: &Facts, refusals: &mut Refusals<'_>) {
    let families: BTreeSet<_> = nat_backends(config)
        .map(|backend| backend.address.is_ipv4())
        .collect();
    let vips: HashSet<_> = config
        .services
        .iter()
        .flat_map(|service| &service.frontends)
        .map(|frontend| frontend.address)
        .collect();
    for (index, address) in config.nat.addresses.iter().enumerate() {
        if vips.contains(address) {
            refusals.push(
                format!("nat.addresses[{index}]"),
                format!("{address} is a VIP"),
                "use an address of its own",
            );
        }
    }
    for v4 in families {
        let given = config.nat.addresses.iter().any(|ip| ip.is_ipv4() == v4);
        if !config.nat.addresses.is_empty() && !given {
            let family = if v4 { "IPv4" } else { "IPv6" };
            refusals.push(
                "nat.addresses".into(),
                format!("no {family} address, and services in mode nat have {family} backends"),
                format!("add an {family} address"),
            );
        }
    }
    let shared = shared_nat_address(config, facts);
    let Some(shared) = shared else {
        return;
    };
    let (first, last) = (config.nat.ports.start(), config.nat.ports.end());
    if let Some(port) = facts.local_ports.overlap(config.nat.ports.clone()) {
        refusals.push(
            "nat.ports".into(),
            format!(
                "this host may take port {port} of {shared} for its own connections \
                 (net.ipv4.ip_local_port_range)"
            ),
            format!(
                "give nat.addresses an address of its own, or run \
                 `sysctl net.ipv4.ip_local_reserved_ports={first}-{last}`"
            ),
        );
    }
    // It takes ports from 1024 on, reserved or not.
    let kube_proxy = facts.masquerades.iter().find(|rule| rule.is_kube_proxy());
    if let Some(Masquerade { table, chain }) = kube_proxy {
        refusals.push(
            "nat.addresses".into(),
            format!(
                "kube-proxy masquerades (table {table}, chain {chain}) and takes ports of {shared}, \
                 {first}-{last} among them"
            ),
            "give nat.addresses an address of its own, which is not the first of its subnet",
        );
    }
}

/// Whether anything is translated: services of the file say so, those of the cluster are as soon as `nat` has an address
/// of its own.
pub fn uses_nat(config: &Config) -> bool {
    match config.kubernetes {
        Some(_) => !config.nat.addresses.is_empty(),
        None => nat_backends(config).next().is_some(),
    }
}

fn nat_backends(config: &Config) -> impl Iterator<Item = &Backend> {
    let services = config.services.iter().filter(|one| one.mode == Mode::Nat);
    services.flat_map(|service| &service.backends)
}

/// An address that both `nat` and the host's own sockets take ports of: sockets take the one that routes prefer, others
/// stay free for `nat`.
pub fn shared_nat_address(config: &Config, facts: &Facts) -> Option<IpAddr> {
    let sockets_use = |ip: &IpAddr| {
        let own = |own: &Address| own.preferred && own.net.addr() == *ip;
        facts.addresses.iter().any(own)
    };
    if !uses_nat(config) {
        return None;
    }
    if config.nat.addresses.is_empty() {
        return nat_backends(config)
            .filter_map(|backend| path::resolve(facts, backend.address))
            .map(|path| path.source)
            .filter(sockets_use)
            .min();
    }
    config.nat.addresses.iter().copied().find(sockets_use)
}

fn limits(config: &Config, refusals: &mut Refusals<'_>) {
    let frontends: usize = config.services.iter().map(|s| s.frontends.len()).sum();
    let (mut backends, mut ranges) = (0, [0; 2]);
    for (at, service) in config.services.iter().enumerate() {
        // Each group has its own backends, of its family, and its own ranges.
        let groups: BTreeSet<_> = service
            .frontends
            .iter()
            .map(|frontend| group::key(service, frontend))
            .collect();
        for group in &groups {
            let eligible = |backend: &&Backend| {
                let v4 = backend.address.is_ipv4();
                group.v4.is_none_or(|family| family == v4)
            };
            backends += service.backends.iter().filter(eligible).count();
        }
        let before = ranges;
        for range in &service.source_ranges {
            ranges[usize::from(range.addr().is_ipv4())] += groups.len();
        }
        let most = MAX_SOURCE_RANGES as usize;
        if before.iter().all(|used| *used <= most) && ranges.iter().any(|used| *used > most) {
            refusals.push(
                format!("services[{at}].sourceRanges"),
                format!("more than {most} source ranges of one family, with the services before"),
                "merge some",
            );
        }
    }
    for (name, used, most) in [
        ("frontends", frontends, config.limits.frontends),
        ("backends", backends, config.limits.backends),
    ] {
        if used > most as usize {
            refusals.push(
                format!("limits.{name}"),
                format!("{used} of {most} {name}"),
                format!("raise limits.{name}, which makes new maps"),
            );
        }
    }
}
