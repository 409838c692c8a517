//! Desired state: pure. Config, the host's network, health and drains in; out come services as the packet path knows
//! them, or refusals of the whole config. No ids, no maps.
//!
//! [`build`] makes everything, [`service`] one service anew when only its health, drains or paths changed.

mod check;
mod group;
pub mod kubernetes;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use lb_common::abi::{Mode, backend_state};
use serde::{Deserialize, Serialize};

use crate::{
    config::{Algorithm, Config, ConfigError, Frontend, Protocol, ServiceName},
    health::View,
    net::{Facts, Path},
};

use self::kubernetes::{FrontendRules, LeftOut, Origin};
pub use check::{check, shared_nat_address, uses_nat};
pub use group::service;
pub use settings::settings;

/// Everything that the packet path is to serve.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    pub services: BTreeMap<ServiceName, Service>,
}

/// One service of the config or of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// What it was asked for; each backend has a mode of its own. `local` and `dsr` stand for services that kube-proxy
    /// serves as well.
    pub mode: Mode,
    /// It has no backends: it is where packets of other nodes come out of their tunnels.
    pub is_tunnel_end: bool,
    /// The client's address alone chooses the backend; how long the client is promised it.
    pub affinity: Option<Duration>,
    pub algorithm: Algorithm,
    /// Its frontends, those with the same eligible backends together; in a stable order. None where all of them have an
    /// address that is the host's now.
    pub groups: Vec<Group>,
    /// Of the cluster: frontends that it does not get.
    pub left_out: Vec<LeftOut>,
}

/// Frontends that share backends, and so a slot table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    pub key: GroupKey,
    pub frontends: Vec<GroupFrontend>,
    pub backends: Vec<Backend>,
    /// Clients that are allowed; none: all.
    pub source_ranges: Option<Vec<IpNet>>,
    /// Without a usable backend packets are dropped, not answered: other nodes have some (contract A6.2).
    pub drop: bool,
}

/// What makes frontends of one service differ in backends. The same frontends keep their key when backends change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct GroupKey {
    /// `nat` keeps the family: backends are IPv4 (true) or IPv6 (false). None: of both.
    pub v4: Option<bool>,
    /// `nat` with backends that take the frontend's port; of the cluster, the Service's port.
    pub port: Option<u16>,
    /// Of the cluster, where each port has backends of its own.
    pub protocol: Option<Protocol>,
    /// Backends on this node only (contract A4.2).
    pub local: bool,
    /// Backends by topology hints (contract A5).
    pub hints: bool,
    /// Source ranges hold.
    pub restricted: bool,
}

/// A frontend of a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct GroupFrontend {
    pub frontend: Frontend,
    /// The whole address is ours: its unknown ports are rejected. False for an address of this host.
    pub owns_address: bool,
    /// Of the cluster.
    pub rules: Option<FrontendRules>,
}

/// A backend as one group sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// What people call it; see [`crate::config::Service::socket`].
    pub socket: SocketAddr,
    pub address: IpAddr,
    /// Destination port after translation; 0 where nothing is translated.
    pub port: u16,
    pub mode: Mode,
    pub weight: u16,
    /// By config or by command.
    pub drain: bool,
    /// By its health check.
    pub down: bool,
    /// Nobody on its node takes new flows from here: kube-proxy gets them (`dsr`).
    pub away: bool,
    /// Of its node, where tunnels end (`dsr`).
    pub node_address: Option<IpAddr>,
    /// Own address: source of translated packets (`nat`) or of outer headers (`ipip`, `dsr`). None in other modes, or
    /// without path.
    pub source: Option<IpAddr>,
    /// None: nothing leads there, or the stack knows the way (`local`, `pass`).
    pub path: Option<Path>,
    /// Of the cluster.
    pub origin: Option<Origin>,
}

impl Backend {
    /// Whether it gets new flows.
    pub const fn usable(&self) -> bool {
        self.weight > 0 && !self.drain && self.serves()
    }

    /// Whether it can answer those that it has.
    const fn serves(&self) -> bool {
        // Where no path leads to a node, the stack is in between, too.
        let by_stack = matches!(self.mode, Mode::Local | Mode::Pass | Mode::Dsr);
        !self.down && (self.path.is_some() || by_stack)
    }

    /// As the packet path knows it: one of [`backend_state`].
    pub const fn state(&self) -> u32 {
        if self.usable() && self.away {
            backend_state::AWAY
        } else if self.usable() {
            backend_state::USABLE
        } else if self.serves() {
            backend_state::DRAINING
        } else {
            backend_state::DOWN
        }
    }
}

/// Backends that were drained by command, by service and [`Backend::socket`].
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Drains(BTreeMap<String, BTreeSet<SocketAddr>>);

impl Drains {
    pub fn contains(&self, service: &str, backend: SocketAddr) -> bool {
        self.0
            .get(service)
            .is_some_and(|backends| backends.contains(&backend))
    }

    /// Whether anything became different.
    pub fn set(&mut self, service: &str, backend: SocketAddr, on: bool) -> bool {
        if on {
            return self
                .0
                .entry(service.to_owned())
                .or_default()
                .insert(backend);
        }
        let Some(backends) = self.0.get_mut(service) else {
            return false;
        };
        let changed = backends.remove(&backend);
        if backends.is_empty() {
            self.0.remove(service);
        }
        changed
    }
}

/// Frontends that are left to the host, because their address has become its own.
pub fn left_to_host<'a>(config: &'a Config, facts: &Facts) -> Vec<&'a Frontend> {
    let frontends = config.services.iter().flat_map(|asked| &asked.frontends);
    frontends
        .filter(|frontend| group::is_the_hosts(config, facts, frontend))
        .collect()
}

/// Everything that `config` asks of this host.
///
/// # Errors
/// Why the config is refused, at least one reason; see [`check`].
pub fn build(
    config: &Config,
    facts: &Facts,
    health: &View,
    drains: &Drains,
) -> Result<Desired, Vec<ConfigError>> {
    let refusals = check(config, facts);
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let services = config.services.iter().map(|asked| {
        let service = service(config, asked, facts, health, drains);
        (asked.name.clone(), service)
    });
    Ok(Desired {
        services: services.collect(),
    })
}
