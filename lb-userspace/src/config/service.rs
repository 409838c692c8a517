//! `services[]`: frontends, backends and how the two are joined.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::abi::Mode;

use super::{
    error::Place,
    reader::{Entry, Faults, Map},
    values::{Frontend, Protocol, Range, ServiceName, Target},
};

/// Backends that a service may have: ordinals are 16 bits, and each wants at least 16 of 65,536 slots.
pub const MAX_BACKENDS_PER_SERVICE: usize = 4096;

/// Prefixes of source ranges over all services, each family; a service takes its own once for each group of frontends
/// that share backends.
pub const MAX_SOURCE_RANGES: u32 = 65_536;

/// One service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub name: ServiceName,
    /// At least one; unique over all services.
    pub frontends: Vec<Frontend>,
    /// `mode`. Default: nat.
    pub mode: Mode,
    /// `affinity.clientIP`, 1 s to 1 day. A client keeps its backend at least as long while the members stay.
    /// Default: none.
    pub affinity: Option<Duration>,
    /// Clients that are allowed. Default: empty, which allows all.
    pub source_ranges: Vec<IpNet>,
    pub algorithm: Algorithm,
    /// Default: no checks, every backend counts as up.
    pub health: Option<Health>,
    /// Unique in address and port.
    pub backends: Vec<Backend>,
}

/// How slots are given to backends: `algorithm`. Default: rendezvous.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Algorithm {
    /// Rendezvous hashing with bounded loads and weights.
    #[default]
    Rendezvous,
}

/// `health`: when a backend counts as up. All backends begin as up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// `tcp.port`. Default: that of [`Service::socket`].
    pub tcp_port: Option<u16>,
    /// Between two checks, 100 ms to 1 h. Default: 2 s.
    pub interval: Duration,
    /// For a check's connection, at most the interval. Default: 1 s, or the interval if that is shorter.
    pub timeout: Duration,
    /// Successes in a row that make it up, 1 to 100. Default: 2.
    pub rise: u32,
    /// Failures in a row that make it down, 1 to 100. Default: 3.
    pub fall: u32,
}

/// `backends[]`: a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    pub address: IpAddr,
    /// None: the frontend's port. Always none or the frontends' only port in the modes that do not translate.
    pub port: Option<u16>,
    /// Share of new flows, relative to the others; 0 to 65,535. 0: no new flows. Default: 100.
    pub weight: u16,
    /// No new flows. Default: false.
    pub drain: bool,
}

impl Service {
    /// Reads one element of `services`. What it finds wrong goes into `faults`; an element with faults may be partial,
    /// and is dropped with them.
    pub(super) fn read(entry: &Entry<'_>, faults: &mut Faults) -> Option<Placed> {
        let mut map = entry.map(faults)?;
        let name = map
            .require("name", faults)
            .and_then(|entry| Some((entry.parse(faults)?, entry.at())));
        let frontends = read_frontends(&mut map, faults);
        let modes = [
            (Mode::Nat.name(), Mode::Nat),
            (Mode::Ipip.name(), Mode::Ipip),
            (Mode::L2.name(), Mode::L2),
        ];
        let mode = map.take("mode").and_then(|at| at.word(&modes, faults));
        let algorithm = map
            .take("algorithm")
            .and_then(|at| at.word(&[("rendezvous", Algorithm::Rendezvous)], faults));
        let affinity = map.take_map("affinity", faults).and_then(|mut map| {
            let client = map.take("clientIP").and_then(|at| {
                at.duration(Duration::from_secs(1)..=Duration::from_hours(24), faults)
            });
            map.close(faults);
            client
        });
        let source_ranges = map
            .take("sourceRanges")
            .map(|at| at.parse_list(faults))
            .unwrap_or_default();
        let health = map
            .take_map("health", faults)
            .map(|map| Health::read(map, faults));
        let backends = read_backends(&mut map, faults);
        map.close(faults);

        let (name, name_at) = name?;
        let (frontends, frontend_places) = frontends.into_iter().unzip();
        let (backends, backend_places) = backends.into_iter().unzip();
        let placed = Placed {
            path: entry.path.clone(),
            name_at,
            frontend_places,
            backend_places,
            service: Self {
                name,
                frontends,
                mode: mode.unwrap_or(Mode::Nat),
                affinity,
                source_ranges: source_ranges.into_iter().map(|Range(net)| net).collect(),
                algorithm: algorithm.unwrap_or_default(),
                health,
                backends,
            },
        };
        placed.check(faults);
        Some(placed)
    }

    /// What names a backend to people, drains and health checks: its address with its port, or where it has none with
    /// that of the first TCP frontend (of the first frontend, if all are UDP).
    pub fn socket(&self, backend: &Backend) -> SocketAddr {
        let first = || {
            let tcp = |frontend: &&Frontend| frontend.protocol == Protocol::Tcp;
            let frontend = self.frontends.iter().find(tcp).or(self.frontends.first());
            frontend.map(|frontend| frontend.port)
        };
        SocketAddr::new(
            backend.address,
            backend.port.or_else(first).unwrap_or_default(),
        )
    }

    /// What the health check of a backend connects to.
    pub fn probe(&self, backend: &Backend) -> SocketAddr {
        let mut socket = self.socket(backend);
        if let Some(port) = self.health.as_ref().and_then(|health| health.tcp_port) {
            socket.set_port(port);
        }
        socket
    }
}

/// A service and where its parts stand.
pub(super) struct Placed {
    pub path: String,
    pub name_at: Place,
    pub frontend_places: Vec<Place>,
    pub backend_places: Vec<Place>,
    pub service: Service,
}

impl Placed {
    /// What one service can be wrong in by itself.
    fn check(&self, faults: &mut Faults) {
        let service = &self.service;
        let mut seen = HashMap::new();
        for (index, backend) in service.backends.iter().enumerate() {
            let path = format!("{}.backends[{index}].address", self.path);
            let at = self.backend_places[index];
            let target = (backend.address, backend.port);
            if let Some(first) = seen.insert(target, index) {
                faults.push(
                    at,
                    &path,
                    format!("the same backend as backends[{first}]"),
                    "remove one; weight gives a larger share",
                );
            }
            match service.mode {
                Mode::Nat => {
                    let v4 = backend.address.is_ipv4();
                    let served = service
                        .frontends
                        .iter()
                        .any(|frontend| frontend.address.is_ipv4() == v4);
                    if !served && !service.frontends.is_empty() {
                        faults.push(
                            at,
                            &path,
                            format!("{} has no frontend of its family", backend.address),
                            "mode nat keeps the family: add a frontend of that family or use mode ipip or l2",
                        );
                    }
                }
                // The cluster's, no words of the file.
                Mode::Local | Mode::Pass | Mode::Dsr => {}
                Mode::Ipip | Mode::L2 => {
                    let other = service
                        .frontends
                        .iter()
                        .find(|frontend| backend.port.is_some_and(|port| port != frontend.port));
                    if let Some(frontend) = other {
                        faults.push(
                            at,
                            &path,
                            format!(
                                "another port than frontend {frontend}, and mode {} does not translate",
                                service.mode.name()
                            ),
                            "write the address without port",
                        );
                    }
                }
            }
        }
        for (index, frontend) in service.frontends.iter().enumerate() {
            let v4 = frontend.address.is_ipv4();
            let served = service.mode != Mode::Nat
                || service.backends.is_empty()
                || service
                    .backends
                    .iter()
                    .any(|backend| backend.address.is_ipv4() == v4);
            if !served {
                faults.push(
                    self.frontend_places[index],
                    &format!("{}.frontends[{index}]", self.path),
                    format!("{frontend} has no backend of its family"),
                    "mode nat keeps the family: add a backend of that family or use mode ipip or l2",
                );
            }
        }
    }
}

fn read_frontends(map: &mut Map<'_>, faults: &mut Faults) -> Vec<(Frontend, Place)> {
    let Some(entry) = map.require("frontends", faults) else {
        return Vec::new();
    };
    let Some(list) = entry.list(faults) else {
        return Vec::new();
    };
    if list.is_empty() {
        entry.fault(faults, "a service without frontends", "add one");
    }
    list.iter()
        .filter_map(|entry| Some((entry.parse(faults)?, entry.at())))
        .collect()
}

fn read_backends(map: &mut Map<'_>, faults: &mut Faults) -> Vec<(Backend, Place)> {
    let Some(entry) = map.take("backends") else {
        return Vec::new();
    };
    let list = entry.list(faults).unwrap_or_default();
    if list.len() > MAX_BACKENDS_PER_SERVICE {
        entry.fault(
            faults,
            format!("{} backends", list.len()),
            format!("a service has {MAX_BACKENDS_PER_SERVICE} at most; divide it"),
        );
        return Vec::new();
    }
    list.iter()
        .filter_map(|entry| Backend::read(entry, faults))
        .collect()
}

impl Backend {
    fn read(entry: &Entry<'_>, faults: &mut Faults) -> Option<(Self, Place)> {
        let mut map = entry.map(faults)?;
        let address = map.require("address", faults);
        let target = address
            .as_ref()
            .and_then(|address| address.parse::<Target>(faults));
        let weight = map
            .take("weight")
            .and_then(|weight| weight.number(0..=u16::MAX, faults));
        let drain = map.take("drain").and_then(|drain| drain.boolean(faults));
        map.close(faults);
        let (address, target) = (address?, target?);
        let ip = target.address;
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
            address.fault(
                faults,
                format!("{ip} cannot be a backend"),
                "use a unicast address that a network leads to",
            );
            return None;
        }
        let backend = Self {
            address: ip,
            port: target.port,
            weight: weight.unwrap_or(100),
            drain: drain.unwrap_or(false),
        };
        Some((backend, address.at()))
    }
}

impl Health {
    const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

    fn read(mut map: Map<'_>, faults: &mut Faults) -> Self {
        let tcp = map.require("tcp", faults).and_then(|tcp| tcp.map(faults));
        let tcp_port = tcp.and_then(|mut tcp| {
            let port = tcp
                .take("port")
                .and_then(|port| port.number(1..=u16::MAX, faults));
            tcp.close(faults);
            port
        });
        let interval = map
            .take("interval")
            .and_then(|interval| interval.duration(Self::INTERVAL, faults))
            .unwrap_or(Duration::from_secs(2));
        let longest = Duration::from_millis(10)..=interval;
        let timeout = map
            .take("timeout")
            .and_then(|timeout| timeout.duration(longest, faults))
            .unwrap_or(interval.min(Duration::from_secs(1)));
        let rise = map
            .take("rise")
            .and_then(|rise| rise.number(1..=100, faults));
        let fall = map
            .take("fall")
            .and_then(|fall| fall.number(1..=100, faults));
        map.close(faults);
        Self {
            tcp_port,
            interval,
            timeout,
            rise: rise.unwrap_or(2),
            fall: fall.unwrap_or(3),
        }
    }
}
