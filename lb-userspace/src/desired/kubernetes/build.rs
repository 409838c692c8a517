//! One Service, built from its facts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::Mode;

use super::{
    Objects,
    affinity::affinity,
    backends::{Candidate, Wanted, candidates},
    frontends::{Asked, Class, frontends},
    health::{self, HealthCheck},
    objects::Known,
    ranges::source_ranges,
    rule::{FrontendRules, LeftOut, Origin, Rule},
    selection::{Client, Outcome, Policies, Set, outcome, select, set},
    skip::{Reason, Skip, Skips},
    topology::Place,
    way::Way,
};
use crate::{
    cluster::facts::ServicePort,
    config::{Algorithm, Protocol, ServiceName},
    desired::{Backend, Group, GroupFrontend, GroupKey, Service, check::keeps_manageable},
    net::Facts,
};

/// All endpoints weigh the same: the API has no weights (A4.9).
const WEIGHT: u16 = 100;

impl Objects {
    /// A Service as it is to be on this host now, if it asks for frontends; and what of it is left out.
    pub fn service(&self, name: &ServiceName, host: &Facts) -> (Option<Service>, Vec<Skip>) {
        if self.tunnel_end() == Some(name) {
            return (Some(self.tunnel()), Vec::new());
        }
        let Some(known) = self.services.get(name).filter(|known| known.is_of_interest) else {
            return (None, Vec::new());
        };
        let mut skips = Skips::of(&known.key);
        // Asked once more for what it skips.
        frontends(&known.fact, &self.options, self.own_node(), &mut skips);
        if known.asked.is_empty() {
            return (None, skips.into_found());
        }
        let (mut held, mut left_out) = (Vec::new(), Vec::new());
        for asked in &known.asked {
            match self.holds(known, asked, host, &mut skips) {
                Ok(()) => held.push(asked),
                Err(rule) => left_out.push(LeftOut {
                    frontend: asked.frontend,
                    rule,
                }),
            }
        }
        let dsr = self.is_dsr(&known.fact, &mut skips);
        let ranges = source_ranges(&known.fact, &mut skips);
        if let Some(ranges) = &ranges {
            let families: BTreeSet<bool> = held
                .iter()
                .filter(|asked| self.is_restricted(asked.class))
                .map(|asked| asked.frontend.address.is_ipv4())
                .collect();
            ranges.tell_of_closed_family(families, &mut skips);
        }
        let mut groups: BTreeMap<GroupKey, Vec<&Asked>> = BTreeMap::new();
        for asked in held {
            let restricted = ranges.is_some() && self.is_restricted(asked.class);
            let key = self.key(known, asked, restricted);
            groups.entry(key).or_default().push(asked);
        }
        let mut joined = HashMap::new();
        let groups = groups.into_iter().map(|(key, mut asked)| {
            asked.sort_unstable();
            let (port, v4) = (asked[0].port, key.v4.unwrap_or_default());
            let endpoints = joined.entry((port, v4)).or_insert_with(|| {
                self.candidates(name, &known.fact.ports[port], v4, host, &mut skips)
            });
            let (backends, outcome) = self.backends(endpoints, key, dsr, host);
            let clients = match &ranges {
                None => Rule::NoRanges,
                Some(_) if !key.restricted => Rule::RangesOfVipsOnly,
                Some(ranges) => ranges.rule(v4),
            };
            let frontend = |asked: &Asked| {
                let owns_address = asked.class.is_vip() && !self.is_nodes(asked, host);
                GroupFrontend {
                    frontend: asked.frontend,
                    owns_address,
                    rules: Some(FrontendRules {
                        asked: asked.class.rule(),
                        clients,
                        unserved: outcome.rule(),
                        others: owns_address.then_some(Rule::WholeAddress),
                    }),
                }
            };
            Group {
                key,
                frontends: asked.into_iter().map(frontend).collect(),
                backends,
                source_ranges: ranges
                    .as_ref()
                    .filter(|_| key.restricted)
                    .map(|ranges| ranges.nets.clone()),
                drop: outcome == Outcome::Drop,
            }
        });
        let service = Service {
            // kube-proxy serves all of it as well.
            mode: if dsr { Mode::Dsr } else { Mode::Local },
            is_tunnel_end: false,
            affinity: affinity(&known.fact),
            algorithm: Algorithm::default(),
            groups: groups.collect(),
            left_out,
        };
        (Some(service), skips.into_found())
    }

    /// What the Service's health check port is to tell, if it has one (A11.1).
    pub fn health_check(&self, name: &ServiceName, host: &Facts) -> Option<HealthCheck> {
        let known = self.services.get(name)?;
        let port = health::port(&known.fact)?;
        let mut skips = Skips::of(&known.key);
        let local = [true, false].map(|v4| {
            let ports = known.fact.ports.iter();
            let endpoints: Vec<_> = ports
                .flat_map(|port| self.candidates(name, port, v4, host, &mut skips))
                .collect();
            health::local_ready(&endpoints)
        });
        Some(HealthCheck {
            service: known.key.clone(),
            uid: known.fact.uid.as_str().into(),
            port,
            local_endpoints4: local[0],
            local_endpoints6: local[1],
        })
    }

    /// Whether the Service has what it asks for; if not, by which rule.
    fn holds(
        &self,
        known: &Known,
        asked: &Asked,
        host: &Facts,
        skips: &mut Skips,
    ) -> Result<(), Rule> {
        let frontend = &asked.frontend;
        let address = frontend.address;
        let nodes = self.is_nodes(asked, host);
        let tunnel = frontend.port == self.options.tunnel_port;
        if nodes && tunnel && frontend.protocol == Protocol::Udp {
            skips.service(
                Reason::NodeAddressRefused,
                format!("{frontend}: this port of a node's address is that of the tunnels; use another, or change tunnel.port"),
            );
            return Err(Rule::TunnelsPort);
        }
        if nodes && keeps_manageable(frontend.port) {
            skips.service(
                Reason::NodeAddressRefused,
                format!("{frontend}: this port of a node's address keeps the node manageable; use another address"),
            );
            return Err(Rule::NodesPort);
        }
        if nodes && asked.class != Class::NodePort && !self.options.allow_node_addresses {
            skips.service(
                Reason::NodeAddressRefused,
                format!("{frontend}: {address} is an address of a node; use another, or set allowNodeAddresses: true"),
            );
            return Err(Rule::NodesAddress);
        }
        if asked.class != Class::NodePort && self.options.nat_addresses.contains(&address) {
            skips.service(
                Reason::NodeAddressRefused,
                format!("{frontend}: {address} is one of nat.addresses; use another"),
            );
            return Err(Rule::NatAddress);
        }
        match self.claims.holder(frontend) {
            Some(holder) if *holder != known.claimant => {
                skips.service(
                    Reason::FrontendConflict,
                    format!("{frontend} is that of Service {}, which is older; use another port or address", holder.service),
                );
                Err(Rule::OlderHasIt)
            }
            _ => Ok(()),
        }
    }

    /// Whether a frontend's address is a node's, or this host's.
    fn is_nodes(&self, asked: &Asked, host: &Facts) -> bool {
        let address = asked.frontend.address;
        self.is_node_address(address) || host.is_host_address(address)
    }

    /// Whether source ranges hold for a frontend of this class.
    const fn is_restricted(&self, class: Class) -> bool {
        !self.options.vip_only_source_ranges || matches!(class, Class::LoadBalancer)
    }

    fn key(&self, known: &Known, asked: &Asked, restricted: bool) -> GroupKey {
        let policies = Policies {
            external_local: known.fact.external_local,
            internal_local: known.fact.internal_local,
        };
        let local = set(Client::OffCluster, asked.class, policies) == Set::Local;
        GroupKey {
            v4: Some(asked.frontend.address.is_ipv4()),
            port: u16::try_from(known.fact.ports[asked.port].port).ok(),
            protocol: Some(asked.frontend.protocol),
            local,
            hints: !local && (!asked.class.is_external() || self.options.topology_hints),
            restricted,
        }
    }

    fn candidates<'a>(
        &'a self,
        name: &ServiceName,
        port: &ServicePort,
        v4: bool,
        host: &Facts,
        skips: &mut Skips,
    ) -> Vec<Candidate<'a>> {
        let wanted = Wanted {
            name: &port.name,
            protocol: if port.protocol.is_empty() {
                "TCP"
            } else {
                &port.protocol
            },
            v4,
            node: &self.options.node,
        };
        // Pods of the host network have a node's address, whoever else claims it.
        let is_vip = |address: IpAddr| {
            self.claims.is_vip(address)
                && !self.is_node_address(address)
                && !host.is_host_address(address)
        };
        let slices = self.slices.get(name).into_iter().flatten();
        candidates(slices, wanted, is_vip, skips)
    }

    /// The backends of a group, and what becomes of its packets.
    fn backends(
        &self,
        endpoints: &[Candidate<'_>],
        key: GroupKey,
        dsr: bool,
        host: &Facts,
    ) -> (Vec<Backend>, Outcome) {
        let place = Place {
            node: &self.options.node,
            zone: self.own_node().and_then(|node| node.zone.as_deref()),
        };
        let hints = key.hints.then_some(place);
        let set = if key.local { Set::Local } else { Set::Cluster };
        let selected = select(endpoints, set, hints);
        let anywhere = select(endpoints, Set::Cluster, None).indexes.len();
        let outcome = outcome(selected.indexes.len(), anywhere);
        let backends = endpoints.iter().enumerate().filter_map(|(at, endpoint)| {
            let chosen = selected.rule_of(at, endpoint);
            let way = self.way(endpoint, dsr, host);
            let backend = Self::backend(endpoint, selected.has(at), chosen, way);
            // What passes has its flows with kube-proxy. Of UDP flows we know who serves them: they stay with it (A7.1).
            let passed = backend.mode == Mode::Pass && backend.drain;
            let forgotten = passed && (key.protocol != Some(Protocol::Udp) || backend.down);
            (!forgotten).then_some(backend)
        });
        (backends.collect(), outcome)
    }

    fn backend(endpoint: &Candidate<'_>, selected: bool, chosen: Rule, way: Way) -> Backend {
        let address = endpoint.address;
        Backend {
            socket: SocketAddr::new(address, endpoint.port),
            mode: way.mode,
            address,
            port: endpoint.port,
            weight: WEIGHT,
            // Established flows go on until the endpoint leaves its slices (A4.4).
            drain: !selected,
            down: !selected && !endpoint.serving,
            away: way.away,
            node_address: way.node_address,
            source: way.source,
            path: way.path,
            origin: Some(Origin {
                node: endpoint.node.cloned(),
                zone: endpoint.zone.cloned(),
                chosen,
                placed: way.rule,
            }),
        }
    }
}
