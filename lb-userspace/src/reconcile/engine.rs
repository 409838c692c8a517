//! The agent without its tasks: what is asked for, what is known, and what the maps hold. Facts come in;
//! [`Engine::flush`] brings the maps after them, at a cost in proportion to what changed. It has no channel, and its
//! dataplane may be in memory.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::Instant;

mod cluster;
mod flush;
mod lease;
#[cfg(test)]
mod tests;

use super::paths::{Moved, Paths};
use crate::{
    cluster::keys::Keys,
    config::{self, Config, ConfigError, Service, ServiceName},
    dataplane::{ApplyError, Dataplane, DumpError},
    desired::{self, Drains},
    health::{self, Assignment, Check, Target, View},
    lease::Lease,
    net::{Facts, Masquerade, Pokes, Update},
    plan::{self, PlanError, Planner},
    random,
    state::Refused,
};

/// Everything between facts and maps.
#[derive(Debug)]
pub struct Engine<D> {
    config: Config,
    /// Index in `config.services`.
    at: HashMap<ServiceName, usize>,
    facts: Facts,
    health: View,
    drains: Drains,
    /// None: services come from the file.
    cluster: Option<cluster::Cluster>,
    announced: plan::Announced,
    general: General,
    paths: Paths,
    pokes: Pokes,
    planner: Planner,
    dataplane: D,
    /// Services to plan again, those that are gone among them.
    dirty: BTreeSet<ServiceName>,
    /// Services that did not fit.
    unfit: BTreeSet<ServiceName>,
    /// An op failed: the maps are not what the planner believes.
    astray: bool,
    /// At the start the maps had backends that were down, or gone.
    found_unusable: bool,
}

/// What is no service's own.
#[derive(Debug)]
struct General {
    hash_key: [u64; 2],
    hz: u32,
    /// By command.
    bypass: bool,
    lease: Lease,
    /// Settings and devices are to be planned again.
    dirty: bool,
}

/// What an engine starts from.
#[derive(Debug)]
pub struct Start {
    /// Passed by [`desired::check`].
    pub config: Config,
    pub facts: Facts,
    pub drains: Drains,
    /// None: that of the maps, or a new one.
    pub hash_key: Option<[u64; 2]>,
    /// Jiffies per second of this kernel.
    pub hz: u32,
    /// This node's name in the cluster.
    pub node: String,
    /// The agents' own Service, whose endpoints say where they are ready.
    pub agents: Option<ServiceName>,
}

/// Why the maps are not as they should be. The next [`Engine::flush`] tries again.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error("a random key: {0}")]
    Random(#[from] std::io::Error),
    /// Everything else is in the maps; these are as they were. They are tried again after [`Engine::retry_unfit`].
    #[error("{}", flush::words(.unfit))]
    Plan {
        unfit: Vec<(ServiceName, PlanError)>,
        flushed: Flushed,
    },
}

/// What a flush did.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Flushed {
    pub ops: usize,
    pub services: Vec<ServiceName>,
    /// When changes of endpoints that are in the maps now were triggered, in milliseconds since the Unix epoch.
    pub triggers: Vec<i64>,
}

impl<D: Dataplane> Engine<D> {
    /// Takes over what the maps hold. Nothing is written before the first flush.
    pub fn start(start: Start, mut dataplane: D) -> Result<Self, FlushError> {
        let Start {
            config,
            facts,
            drains,
            hash_key,
            hz,
            node,
            agents,
        } = start;
        let dump = dataplane.dump()?;
        let bypass = dump.settings.flags & lb_common::abi::setting_flag::BYPASS != 0;
        let hash_key = match (hash_key, dump.settings.hash_key) {
            (Some(key), _) => key,
            (None, [0, 0]) => random::key()?,
            (None, kept) => kept,
        };
        let mut cluster = cluster::Cluster::new(&config, &node, agents.as_ref());
        if let (Some(cluster), Some(keys)) = (&mut cluster, Keys::of(&dump.settings)) {
            // The server may be away; what it says later counts more.
            cluster.objects.adopt_keys(keys);
        }
        let mut engine = Self {
            at: index(&config),
            dirty: config
                .services
                .iter()
                .map(|service| service.name.clone())
                .collect(),
            planner: Planner::new(config.limits, hash_key),
            cluster,
            config,
            facts,
            health: View::default(),
            drains,
            announced: dump.announced,
            general: General {
                hash_key,
                hz,
                bypass,
                lease: Lease::adopt(&dump.settings, hz),
                dirty: true,
            },
            paths: Paths::default(),
            pokes: Pokes::default(),
            dataplane,
            unfit: BTreeSet::new(),
            astray: true,
            found_unusable: dump
                .backends
                .values()
                .any(|backend| backend.state == lb_common::abi::backend_state::DOWN),
        };
        engine.note_backends(
            engine
                .config
                .services
                .iter()
                .map(|s| s.name.clone())
                .collect::<Vec<_>>(),
        );
        Ok(engine)
    }

    pub const fn config(&self) -> &Config {
        &self.config
    }

    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    pub const fn planner(&self) -> &Planner {
        &self.planner
    }

    /// For those who make it fail, or read it.
    pub const fn dataplane_mut(&mut self) -> &mut D {
        &mut self.dataplane
    }

    /// Ends the engine; what is applied stays.
    pub fn into_dataplane(self) -> D {
        self.dataplane
    }

    pub const fn drains(&self) -> &Drains {
        &self.drains
    }

    /// A service of the config.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.at.get(name).map(|at| &self.config.services[*at])
    }

    /// What a service is to be now.
    pub fn desired(&self, name: &ServiceName) -> Option<desired::Service> {
        if let Some(cluster) = &self.cluster {
            return cluster.objects.service(name, &self.facts).0;
        }
        let asked = self.service(name.as_str())?;
        Some(desired::service(
            &self.config,
            asked,
            &self.facts,
            &self.health,
            &self.drains,
        ))
    }

    /// The network changed. True if it is more than neighbours.
    pub fn network(&mut self, updates: Vec<Update>) -> bool {
        let mut moved = Moved::default();
        let mut wider = false;
        let own: BTreeSet<IpAddr> = self.facts.host_addresses().collect();
        for update in updates {
            let neighbours = match &update {
                Update::Neighbour(index, ip, _) => vec![(*index, *ip)],
                Update::All(all) => self.facts.neighbours_that_differ(all),
                _ => Vec::new(),
            };
            wider |= match &update {
                Update::Neighbour(..) => false,
                Update::All(all) => self.facts.differs_beyond_neighbours(all),
                _ => true,
            } & self.facts.apply(update);
            for next_hop in neighbours {
                let concerned = self
                    .paths
                    .neighbour_changed(next_hop, &self.facts, &mut moved);
                self.dirty.extend(concerned);
            }
        }
        if wider {
            self.general.dirty = true;
            let concerned = self.paths.network_changed(&self.facts, &mut moved);
            self.dirty.extend(concerned);
            self.host_addresses_changed(&own);
        }
        self.want(moved);
        wider
    }

    /// Other interfaces than before have our XDP program.
    pub fn set_attached(&mut self, attached: BTreeSet<u32>) {
        if self.facts.attached == attached {
            return;
        }
        self.facts.attached = attached;
        self.general.dirty = true;
        let mut moved = Moved::default();
        let concerned = self.paths.network_changed(&self.facts, &mut moved);
        self.dirty.extend(concerned);
        self.want(moved);
    }

    /// Who gives packets another source on this host.
    pub fn set_masquerades(&mut self, masquerades: Vec<Masquerade>) {
        self.facts.masquerades = masquerades;
    }

    /// What the program answers neighbours for.
    pub const fn announced(&self) -> &plan::Announced {
        &self.announced
    }

    pub fn set_announced(&mut self, announced: plan::Announced) {
        self.general.dirty |= self.announced != announced;
        self.announced = announced;
    }

    /// Backends went up or down.
    pub fn health(&mut self, changes: Vec<health::Change>) {
        for change in changes {
            let Some((name, _)) = self.at.get_key_value(&*change.service) else {
                continue;
            };
            if self.health.set(name.as_str(), change.backend, !change.up) {
                self.dirty.insert(name.clone());
            }
        }
    }

    /// Drains a backend or takes it back. True if that is a change.
    pub fn drain(&mut self, service: &str, backend: SocketAddr, on: bool) -> Result<bool, Refused> {
        if self.cluster.is_some() {
            return Err(Refused::Failed(
                "services come from the cluster: delete the pod, or `kubectl drain` its node"
                    .to_owned(),
            ));
        }
        let known = self
            .service(service)
            .ok_or_else(|| Refused::NoService(service.to_owned()))?;
        // A backend without a port of its own is shown with that of each frontend.
        let means = |one: &&config::Backend| {
            let ports = || {
                known
                    .frontends
                    .iter()
                    .any(|frontend| frontend.port == backend.port())
            };
            known.socket(one) == backend
                || (one.port.is_none() && one.address == backend.ip() && ports())
        };
        let meant = known.backends.iter().find(means);
        let backend = known.socket(meant.ok_or_else(|| Refused::NoBackend(backend.to_string()))?);
        let name = known.name.clone();
        let changed = self.drains.set(service, backend, on);
        if changed {
            self.dirty.insert(name);
        }
        Ok(changed)
    }

    /// Takes another config, whole or not at all. Gives back what is to be checked from now on.
    pub fn reload(&mut self, config: Config) -> Result<Vec<Assignment>, Vec<ConfigError>> {
        let mut refusals = desired::check(&config, &self.facts);
        let fixed = [
            ("limits", config.limits == self.config.limits),
            ("clusterKey", config.cluster_key == self.config.cluster_key),
            ("metrics", config.metrics == self.config.metrics),
            ("announce", config.announce_l2 == self.config.announce_l2),
            ("kubernetes", same_cluster(&config, &self.config)),
        ];
        refusals.extend(
            fixed
                .iter()
                .filter(|(_, same)| !same)
                .map(|(field, _)| ConfigError {
                    at: config.place(field).unwrap_or_default(),
                    field: (*field).to_owned(),
                    what: "a change needs a restart".to_owned(),
                    fix: "restart the agent (it goes on forwarding meanwhile)".to_owned(),
                }),
        );
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let at = index(&config);
        let changed: Vec<ServiceName> = {
            let gone = self.at.keys().filter(|name| !at.contains_key(*name));
            let different = at.iter().filter(|(name, at)| {
                config.nat != self.config.nat
                    || config.allow_node_addresses != self.config.allow_node_addresses
                    || self.service(name.as_str()) != Some(&config.services[**at])
            });
            gone.chain(different.map(|(name, _)| name))
                .cloned()
                .collect()
        };
        self.config = config;
        self.at = at;
        self.follow_options();
        self.general.dirty = true;
        self.dirty.extend(changed.iter().cloned());
        for name in &changed {
            let checked: HashSet<SocketAddr> =
                self.targets(name).iter().map(|t| t.backend).collect();
            self.health
                .retain(name.as_str(), |backend| checked.contains(backend));
        }
        let assignments = self.assignments(&changed);
        self.note_backends(changed);
        Ok(assignments)
    }

    /// What is to be checked of all services.
    pub fn all_assignments(&self) -> Vec<Assignment> {
        let names: Vec<_> = self.at.keys().cloned().collect();
        self.assignments(&names)
    }

    /// What is to be checked of these services.
    pub fn assignments(&self, names: &[ServiceName]) -> Vec<Assignment> {
        let assignment = |name: &ServiceName| Assignment {
            service: name.as_str().into(),
            targets: self.targets(name),
        };
        names.iter().map(assignment).collect()
    }

    /// How long the slowest first check takes, if the maps that were taken over have backends without new flows: some
    /// of them may be down, which only checks can tell.
    pub fn first_checks_take(&self) -> Option<Duration> {
        let checked = self
            .config
            .services
            .iter()
            .filter_map(|one| one.health.as_ref());
        let longest = checked.map(|health| health.timeout).max()?;
        self.found_unusable.then_some(longest + health::SPREAD)
    }

    fn targets(&self, name: &ServiceName) -> Vec<Target> {
        let Some(service) = self.service(name.as_str()) else {
            return Vec::new();
        };
        let Some(health) = &service.health else {
            return Vec::new();
        };
        let check = Check {
            interval: health.interval,
            timeout: health.timeout,
            rise: health.rise,
            fall: health.fall,
        };
        let target = |backend| {
            let socket = service.socket(backend);
            Target {
                backend: socket,
                connect: service.probe(backend),
                check,
                up: !self.health.is_down(name.as_str(), socket),
            }
        };
        service.backends.iter().map(target).collect()
    }

    /// Neighbours to ask the kernel for now.
    pub fn due_pokes(&mut self, now: Instant) -> Vec<(u32, IpAddr)> {
        self.pokes.due(&self.facts, now)
    }

    fn note_backends(&mut self, names: Vec<ServiceName>) {
        let mut moved = Moved::default();
        for name in names {
            let backends = self
                .service(name.as_str())
                .map(|service| {
                    service
                        .backends
                        .iter()
                        .map(|backend| backend.address)
                        .collect()
                })
                .unwrap_or_default();
            self.paths.assign(&name, backends, &self.facts, &mut moved);
        }
        self.want(moved);
    }

    fn want(&mut self, moved: Moved) {
        let now = Instant::now();
        for (ifindex, ip) in moved.lost {
            self.pokes.forget(ifindex, ip);
        }
        for (ifindex, ip) in moved.gained {
            self.pokes.want(ifindex, ip, now);
        }
    }
}

/// Whether the same cluster is watched as the same node.
fn same_cluster(one: &Config, other: &Config) -> bool {
    let part = |config: &Config| {
        let asked = config.kubernetes.clone()?;
        Some((asked.node, asked.kubeconfig, asked.health_check_ports))
    };
    part(one) == part(other)
}

fn index(config: &Config) -> HashMap<ServiceName, usize> {
    let services = config.services.iter().enumerate();
    services
        .map(|(at, service)| (service.name.clone(), at))
        .collect()
}
