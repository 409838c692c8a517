//! One service: its frontends in groups that share backends, its backends with path, source and state.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::abi::Mode;

use super::{Backend, Drains, Group, GroupFrontend, GroupKey, Service, check};
use crate::{
    config::{self, Config, Frontend},
    health::View,
    net::{Facts, path},
};

/// The service `asked` of `config` on this host now. The config has passed [`super::check`].
pub fn service(
    config: &Config,
    asked: &config::Service,
    facts: &Facts,
    health: &View,
    drains: &Drains,
) -> Service {
    let mut groups: BTreeMap<GroupKey, Vec<GroupFrontend>> = BTreeMap::new();
    for frontend in &asked.frontends {
        if is_the_hosts(config, facts, frontend) {
            continue;
        }
        let grouped = GroupFrontend {
            frontend: *frontend,
            owns_address: !facts.is_host_address(frontend.address),
            rules: None,
        };
        groups
            .entry(key(asked, frontend))
            .or_default()
            .push(grouped);
    }
    let name = asked.name.as_str();
    let backends: Vec<_> = asked
        .backends
        .iter()
        .map(|backend| {
            let socket = asked.socket(backend);
            let path = path::resolve(facts, backend.address);
            Backend {
                socket,
                address: backend.address,
                port: backend.port.unwrap_or_default(),
                mode: asked.mode,
                weight: backend.weight,
                drain: backend.drain || drains.contains(name, socket),
                down: asked.health.is_some() && health.is_down(name, socket),
                source: match asked.mode {
                    Mode::Nat => path.as_ref().map(|path| {
                        nat_source(&config.nat.addresses, backend.address).unwrap_or(path.source)
                    }),
                    Mode::Ipip => path.as_ref().map(|path| path.source),
                    Mode::L2 | Mode::Local | Mode::Pass | Mode::Dsr => None,
                },
                path,
                away: false,
                node_address: None,
                origin: None,
            }
        })
        .collect();
    Service {
        mode: asked.mode,
        is_tunnel_end: false,
        affinity: asked.affinity,
        algorithm: asked.algorithm,
        groups: groups
            .into_iter()
            .map(|(key, frontends)| Group {
                key,
                frontends,
                backends: eligible(&backends, asked.mode, key),
                source_ranges: key.restricted.then(|| asked.source_ranges.clone()),
                drop: false,
            })
            .collect(),
        left_out: Vec::new(),
    }
}

/// An address may become the host's own after the config was taken: its frontends are left to the host then, as a config
/// that comes later is refused.
pub(super) fn is_the_hosts(config: &Config, facts: &Facts, frontend: &Frontend) -> bool {
    let ours = config.allow_node_addresses && !check::keeps_manageable(frontend.port);
    !ours && facts.is_host_address(frontend.address)
}

/// The group of a frontend.
pub(super) fn key(asked: &config::Service, frontend: &Frontend) -> GroupKey {
    let restricted = !asked.source_ranges.is_empty();
    if asked.mode != Mode::Nat {
        return GroupKey {
            restricted,
            ..GroupKey::default()
        };
    }
    let v4 = frontend.address.is_ipv4();
    let follows = asked
        .backends
        .iter()
        .any(|backend| backend.address.is_ipv4() == v4 && backend.port.is_none());
    GroupKey {
        v4: Some(v4),
        port: follows.then_some(frontend.port),
        restricted,
        ..GroupKey::default()
    }
}

fn eligible(backends: &[Backend], mode: Mode, key: GroupKey) -> Vec<Backend> {
    let mut eligible: Vec<Backend> = Vec::new();
    for backend in backends {
        if key.v4.is_some_and(|v4| v4 != backend.address.is_ipv4()) {
            continue;
        }
        let mut backend = backend.clone();
        if mode == Mode::Nat {
            if backend.port == 0 {
                backend.port = key.port.unwrap_or_default();
            }
        } else {
            // Written or not, the port is the frontend's: nothing is translated.
            backend.port = 0;
        }
        // `10.0.0.1` and `10.0.0.1:80` are one behind a frontend on port 80.
        let same = |known: &Backend| (known.address, known.port) == (backend.address, backend.port);
        if !eligible.iter().any(same) {
            eligible.push(backend);
        }
    }
    eligible
}

/// Of several addresses each backend has its own, the same one whatever the others are.
pub(super) fn nat_source(addresses: &[IpAddr], backend: IpAddr) -> Option<IpAddr> {
    let v4 = backend.is_ipv4();
    let family: Vec<_> = addresses.iter().filter(|ip| ip.is_ipv4() == v4).collect();
    let bits = match backend {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let mixed = ((bits ^ (bits >> 64)) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let index = (mixed as usize).checked_rem(family.len())?;
    family.get(index).map(|ip| **ip)
}
