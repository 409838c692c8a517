//! The config file: YAML text in, a valid [`Config`] or all of its faults out.
//!
//! A value of these types is whole: ranges are kept, frontends are unique, no backend is a VIP, families fit. What
//! depends on the host (its addresses, its ports) is `desired`'s to judge. What this version cannot do yet is
//! refused, never ignored.

mod error;
mod kubernetes;
mod node;
mod reader;
mod service;
#[cfg(test)]
mod tests;
mod values;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

pub use error::{ConfigError, ConfigErrors, Invalid, Place};
pub use kubernetes::{HealthCheckPorts, Kubernetes};
pub use service::{
    Algorithm, Backend, Health, MAX_BACKENDS_PER_SERVICE, MAX_SOURCE_RANGES, Service,
};
pub use values::{ClusterKey, Frontend, Protocol, ServiceName, Target, parse_duration};

use reader::{Entry, Faults, Map};
use service::Placed;
use values::{Ports, Source};

/// `apiVersion` of the files that this version reads.
pub const API_VERSION: &str = "config.millrace.io/v1alpha1";
/// `kind` of the files that this version reads.
pub const KIND: &str = "MillraceConfiguration";

/// Unassigned by IANA; 6081, Geneve's own, is that of overlay networks.
const TUNNEL_PORT: u16 = 16_081;

/// Terms of `withoutAgent.after`. The agent gives a sign of life each second, and may be busy with the maps for some.
const WITHOUT_AGENT: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_hours(720);

/// A whole configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// `interfaces`: names or globs (`*`, `?`) of the uplinks. Default: empty, the interfaces of the default routes.
    pub interfaces: Vec<String>,
    /// `xdp.mode`. Default: native.
    pub xdp_mode: XdpMode,
    /// `withoutAgent.after`: how long after the agent's last sign of life everything passes. Default: never.
    pub without_agent: Option<Duration>,
    pub nat: Nat,
    /// `tunnel.port`: where the nodes of a cluster take each other's packets, UDP. Default: 16081.
    pub tunnel_port: u16,
    pub metrics: Metrics,
    pub limits: Limits,
    pub rejects: Rejects,
    /// `announce.l2`: VIPs are announced on the LAN, by ARP and neighbour discovery. Default: false.
    pub announce_l2: bool,
    /// `allowNodeAddresses`: a frontend may have an address of this host; only its port is taken, the rest passes.
    /// Default: false.
    pub allow_node_addresses: bool,
    /// `clusterKey`: for several balancers that are to choose alike. Default: none, the agent makes one and keeps it.
    pub cluster_key: Option<ClusterKey>,
    pub services: Vec<Service>,
    /// Services come from the cluster; there are none in `services` then. Default: none.
    pub kubernetes: Option<Kubernetes>,
    /// Where the fields stand that `desired` may refuse, by path.
    places: BTreeMap<String, Place>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum XdpMode {
    /// In the driver.
    #[default]
    Native,
    /// In the kernel's stack, for devices without support; slow.
    Generic,
}

/// `nat`: what packets to backends have as source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nat {
    /// Own addresses, of both families if both are needed. Default: empty, the address that the route prefers.
    pub addresses: Vec<IpAddr>,
    /// Default: 61000-65535.
    pub ports: RangeInclusive<u16>,
}

/// `metrics`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metrics {
    /// Default: 127.0.0.1:9470.
    pub listen: SocketAddr,
    /// Default: false.
    pub per_backend: bool,
}

/// `limits`: how much the maps hold. Memory is taken when they are made; a change makes new maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Default: 4096.
    pub frontends: u32,
    /// Over all services; a backend counts once for each frontend port and family that it serves apart.
    /// Default: 65,536.
    pub backends: u32,
    /// Established `nat` flows per family. Default: 262,144.
    pub flows: u32,
}

/// `rejects`: replies of our own (RST, ICMP) to unknown ports and for services without backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rejects {
    /// `perSecond`, per CPU, and the most at once. Default: 1000.
    pub per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frontends: 4096,
            backends: 65_536,
            flows: 262_144,
        }
    }
}

impl Config {
    /// Reads a file's text. `file` is its name for messages.
    ///
    /// # Errors
    /// All faults of the text, at least one.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigErrors> {
        let mut faults = Faults::default();
        let config = match node::parse(text) {
            Ok(root) => Entry::root(&root)
                .map(&mut faults)
                .map(|map| Self::read(map, &mut faults)),
            Err(error) => {
                faults.0.push(error);
                None
            }
        };
        match config {
            Some(config) if faults.0.is_empty() => Ok(config),
            _ => {
                faults.0.sort();
                Err(ConfigErrors {
                    file: file.to_owned(),
                    errors: faults.0,
                })
            }
        }
    }

    /// Where a field stands, by its path; of a list element that is not known, where the list's owner stands.
    pub fn place(&self, field: &str) -> Option<Place> {
        self.places.get(field).copied()
    }

    fn read(mut map: Map<'_>, faults: &mut Faults) -> Self {
        for (name, value) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            if let Some(entry) = map.require(name, faults) {
                entry.word(&[(value, ())], faults);
            }
        }
        let without_agent = read_without_agent(&mut map, faults);
        let announce_l2 = read_announce(&mut map, faults);
        let mut places = BTreeMap::new();
        let interfaces = read_interfaces(&mut map, faults);
        let xdp_mode = map.take_map("xdp", faults).and_then(|mut map| {
            let modes = [("native", XdpMode::Native), ("generic", XdpMode::Generic)];
            let mode = map.take("mode").and_then(|at| at.word(&modes, faults));
            map.close(faults);
            mode
        });
        let nat = Nat::read(map.take("nat"), &mut places, faults);
        let tunnel_port = read_tunnel(&mut map, faults);
        let metrics = Metrics::read(map.take_map("metrics", faults), faults);
        let limits = Limits::read(map.take("limits"), &mut places, faults);
        let rejects = Rejects::read(map.take_map("rejects", faults), faults);
        let allow = map.take("allowNodeAddresses");
        let allow_node_addresses = allow.and_then(|at| at.boolean(faults)).unwrap_or(false);
        let cluster_key = map.take("clusterKey").and_then(|at| at.parse(faults));
        let kubernetes = map.take("kubernetes");
        let services = map.take("services").and_then(|at| {
            if kubernetes.is_some() {
                at.fault(
                    faults,
                    "services beside kubernetes",
                    "take one of the two: the cluster's Services are the services then",
                );
            }
            at.list(faults)
        });
        let kubernetes = kubernetes
            .and_then(|at| at.map(faults))
            .map(|map| Kubernetes::read(map, faults));
        map.close(faults);
        let services: Vec<_> = services
            .unwrap_or_default()
            .iter()
            .filter_map(|entry| Service::read(entry, faults))
            .collect();
        check_across(&services, faults);
        for placed in &services {
            for (index, at) in placed.frontend_places.iter().enumerate() {
                places.insert(format!("{}.frontends[{index}]", placed.path), *at);
            }
        }
        Self {
            interfaces,
            xdp_mode: xdp_mode.unwrap_or_default(),
            without_agent,
            nat,
            tunnel_port,
            metrics,
            limits,
            rejects,
            announce_l2,
            allow_node_addresses,
            cluster_key,
            services: services.into_iter().map(|placed| placed.service).collect(),
            kubernetes,
            places,
        }
    }
}

/// `never`, or a term within [`WITHOUT_AGENT`].
fn read_without_agent(map: &mut Map<'_>, faults: &mut Faults) -> Option<Duration> {
    let mut without = map.take_map("withoutAgent", faults)?;
    let after = without.take("after").and_then(|after| {
        let never = after.text(faults)? == "never";
        (!never)
            .then(|| after.duration(WITHOUT_AGENT, faults))
            .flatten()
    });
    without.close(faults);
    after
}

fn read_announce(map: &mut Map<'_>, faults: &mut Faults) -> bool {
    let Some(mut announce) = map.take_map("announce", faults) else {
        return false;
    };
    let l2 = announce.take("l2").and_then(|l2| l2.boolean(faults));
    announce.close(faults);
    l2.unwrap_or(false)
}

fn read_tunnel(map: &mut Map<'_>, faults: &mut Faults) -> u16 {
    let port = map.take_map("tunnel", faults).and_then(|mut tunnel| {
        let port = tunnel
            .take("port")
            .and_then(|at| at.number(1..=u16::MAX.into(), faults));
        tunnel.close(faults);
        u16::try_from(port?).ok()
    });
    port.unwrap_or(TUNNEL_PORT)
}

fn read_interfaces(map: &mut Map<'_>, faults: &mut Faults) -> Vec<String> {
    let list = map.take("interfaces").and_then(|at| at.list(faults));
    let mut names = Vec::new();
    for entry in list.unwrap_or_default() {
        let Some(name) = entry.text(faults) else {
            continue;
        };
        // IFNAMSIZ is 16 with the terminating zero; the kernel forbids '/', ':' and white space.
        let good = |c: char| !c.is_whitespace() && c != '/' && c != ':';
        if name.is_empty() || name.len() > 15 || !name.chars().all(good) {
            entry.fault(
                faults,
                format!("\"{name}\" is not the name of an interface"),
                "write a name as `ip link` shows it, or a glob as eth*",
            );
        } else {
            names.push(name.to_owned());
        }
    }
    names
}

impl Nat {
    fn read(
        entry: Option<Entry<'_>>,
        places: &mut BTreeMap<String, Place>,
        faults: &mut Faults,
    ) -> Self {
        let mut nat = Self {
            addresses: Vec::new(),
            ports: 61_000..=65_535,
        };
        let Some(entry) = entry else { return nat };
        for field in ["nat.addresses", "nat.ports"] {
            places.insert(field.into(), entry.at());
        }
        let Some(mut map) = entry.map(faults) else {
            return nat;
        };
        if let Some(addresses) = map.take("addresses") {
            places.insert("nat.addresses".into(), addresses.at());
            for address in addresses.list(faults).unwrap_or_default() {
                if let Some(Source(ip)) = address.parse(faults) {
                    places.insert(
                        format!("nat.addresses[{}]", nat.addresses.len()),
                        address.at(),
                    );
                    nat.addresses.push(ip);
                }
            }
        }
        if let Some(ports) = map.take("ports") {
            places.insert("nat.ports".into(), ports.at());
            if let Some(Ports(range)) = ports.parse(faults) {
                nat.ports = range;
            }
        }
        map.close(faults);
        nat
    }
}

impl Metrics {
    fn read(map: Option<Map<'_>>, faults: &mut Faults) -> Self {
        let mut metrics = Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9470)),
            per_backend: false,
        };
        let Some(mut map) = map else { return metrics };
        if let Some(listen) = map.take("listen")
            && let Some(text) = listen.text(faults)
        {
            match text.parse() {
                Ok(address) => metrics.listen = address,
                Err(_) => listen.fault(
                    faults,
                    format!("\"{text}\" is not an address with a port"),
                    "write \"127.0.0.1:9470\"",
                ),
            }
        }
        if let Some(per_backend) = map.take("perBackend") {
            metrics.per_backend = per_backend.boolean(faults).unwrap_or(false);
        }
        map.close(faults);
        metrics
    }
}

impl Limits {
    fn read(
        entry: Option<Entry<'_>>,
        places: &mut BTreeMap<String, Place>,
        faults: &mut Faults,
    ) -> Self {
        let mut limits = Self::default();
        let Some(entry) = entry else { return limits };
        let Some(mut map) = entry.map(faults) else {
            return limits;
        };
        for (name, value, most) in [
            ("frontends", &mut limits.frontends, 262_144),
            ("backends", &mut limits.backends, 1 << 20),
            ("flows", &mut limits.flows, 1 << 26),
        ] {
            if let Some(entry) = map.take(name) {
                places.insert(entry.path.clone(), entry.at());
                *value = entry.number(1..=most, faults).unwrap_or(*value);
            }
        }
        map.close(faults);
        limits
    }
}

impl Rejects {
    fn read(map: Option<Map<'_>>, faults: &mut Faults) -> Self {
        let rate = map.and_then(|mut map| {
            let rate = map
                .take("perSecond")
                .and_then(|rate| rate.number(0..=1_000_000, faults));
            map.close(faults);
            rate
        });
        Self {
            per_second: rate.unwrap_or(1000),
        }
    }
}

/// What services can only be wrong in together.
fn check_across(services: &[Placed], faults: &mut Faults) {
    let mut names = HashMap::new();
    let mut frontends = HashMap::new();
    let mut vips = HashSet::new();
    for placed in services {
        let service = &placed.service;
        if let Some(first) = names.insert(&service.name, &placed.path) {
            faults.push(
                placed.name_at,
                &format!("{}.name", placed.path),
                format!("{} is the name of {first}, too", service.name),
                "rename one",
            );
        }
        for (index, frontend) in service.frontends.iter().enumerate() {
            vips.insert(frontend.address);
            let path = format!("{}.frontends[{index}]", placed.path);
            if let Some(first) = frontends.insert(frontend, path.clone()) {
                faults.push(
                    placed.frontend_places[index],
                    &path,
                    format!("{frontend} is {first}, too"),
                    "remove one",
                );
            }
        }
    }
    for placed in services {
        for (index, backend) in placed.service.backends.iter().enumerate() {
            if vips.contains(&backend.address) {
                faults.push(
                    placed.backend_places[index],
                    &format!("{}.backends[{index}].address", placed.path),
                    format!("{} is a VIP", backend.address),
                    "a backend has an address of its own; name that",
                );
            }
        }
    }
}
