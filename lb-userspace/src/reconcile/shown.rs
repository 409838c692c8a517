//! What is told of a service: the config's words, joined with the planner's ids and slots.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::abi::Mode;

use super::Engine;
use crate::{
    config::{self, ServiceName},
    dataplane::Dataplane,
    desired::{self, kubernetes},
    net::{Facts, Path},
    plan::{PlacedBackend, PlacedGroup},
    state::{Backend, BackendPath, BackendState, Frontend, LeftOut, MapUse, Protocol, Service},
};

impl<D: Dataplane> Engine<D> {
    /// None: there is no such service (any more).
    pub(super) fn shown(&self, name: &ServiceName) -> Option<Service> {
        let desired = self.desired(name)?;
        let mut frontends = Vec::new();
        let mut backends: Vec<Backend> = Vec::new();
        for placed in self.planner().placed(name) {
            let first = placed.frontends.first().map(|(frontend, _)| *frontend);
            let group = desired.groups.iter().find(|group| {
                let one = group.frontends.first().map(|one| one.frontend);
                one == first
                    || group
                        .frontends
                        .iter()
                        .any(|one| Some(one.frontend) == first)
            });
            frontends.extend(placed.frontends.iter().map(|(frontend, id)| {
                let mut wanted = group.into_iter().flat_map(|group| &group.frontends);
                Frontend {
                    address: (frontend.address, frontend.port).into(),
                    protocol: protocol(frontend.protocol),
                    id: *id,
                    service: placed.service,
                    rules: wanted
                        .find(|one| one.frontend == *frontend)
                        .and_then(|one| one.rules),
                }
            }));
            let Some(group) = group else { continue };
            let known: HashMap<(IpAddr, u16), &PlacedBackend> = placed
                .backends
                .iter()
                .map(|one| ((one.address, one.port), one))
                .collect();
            for backend in &group.backends {
                if let Some(placed_as) = known.get(&(backend.address, backend.port)) {
                    backends.push(self.backend(backend, placed_as, &placed));
                }
            }
        }
        frontends.sort_by_key(|frontend| (frontend.address, frontend.protocol));
        Some(Service {
            name: name.as_str().to_owned(),
            mode: modes(&desired),
            affinity: desired.affinity.map(|time| time.as_secs()),
            source_ranges: match self.service(name.as_str()) {
                Some(asked) => asked.source_ranges.clone(),
                None => source_ranges(&desired),
            },
            frontends,
            backends,
            left_out: desired.left_out.iter().map(left_out).collect(),
        })
    }

    pub(super) fn map_use(&self) -> Vec<MapUse> {
        let usage = self.planner().usage();
        usage
            .iter()
            .map(|map| MapUse {
                name: map.name.to_owned(),
                used: map.used,
                max: map.max,
            })
            .collect()
    }

    fn backend(
        &self,
        backend: &desired::Backend,
        placed: &PlacedBackend,
        group: &PlacedGroup,
    ) -> Backend {
        let mut address = backend.socket;
        if backend.port != 0 {
            address.set_port(backend.port);
        }
        Backend {
            address,
            service: group.service,
            ordinal: placed.ordinal,
            id: placed.id,
            weight: backend.weight.into(),
            mode: mode(backend).name().to_owned(),
            state: if backend.drain {
                BackendState::Drain
            } else if backend.usable() || backend.weight == 0 {
                BackendState::Ready
            } else {
                BackendState::Down
            },
            since: 0,
            slots: placed.slots,
            table: group.slots,
            path: backend
                .path
                .as_ref()
                .map(|path| shown_path(path, self.facts())),
            origin: backend.origin.clone(),
        }
    }
}

const fn protocol(protocol: config::Protocol) -> Protocol {
    match protocol {
        config::Protocol::Tcp => Protocol::Tcp,
        config::Protocol::Udp => Protocol::Udp,
    }
}

fn left_out(one: &kubernetes::LeftOut) -> LeftOut {
    LeftOut {
        address: (one.frontend.address, one.frontend.port).into(),
        protocol: protocol(one.frontend.protocol),
        rule: one.rule,
    }
}

/// How a backend gets new flows: by kube-proxy where its node takes none.
const fn mode(backend: &desired::Backend) -> Mode {
    if backend.away {
        Mode::Pass
    } else {
        backend.mode
    }
}

/// One word each: how the backends are reached.
fn modes(service: &desired::Service) -> String {
    let backends = service.groups.iter().flat_map(|group| &group.backends);
    let modes: BTreeSet<_> = backends.map(mode).collect();
    if modes.is_empty() {
        return service.mode.name().to_owned();
    }
    let names: Vec<_> = modes.into_iter().map(Mode::name).collect();
    names.join("+")
}

fn source_ranges(service: &desired::Service) -> Vec<IpNet> {
    let ranges = service.groups.iter().flat_map(|group| &group.source_ranges);
    let ranges: BTreeSet<_> = ranges.flatten().copied().collect();
    ranges.into_iter().collect()
}

fn shown_path(path: &Path, facts: &Facts) -> BackendPath {
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    BackendPath {
        interface: facts
            .links
            .get(&path.ifindex)
            .map(|link| link.name.clone())
            .unwrap_or_default(),
        gateway: path.gateway,
        neighbour: path.neighbour.map(mac),
    }
}
