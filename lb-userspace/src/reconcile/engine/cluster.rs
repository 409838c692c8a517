//! Services of the cluster: what is known of it, and what a change of it makes dirty.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use lb_common::abi::Mode;

use super::{Engine, Moved};
use crate::{
    cluster::{
        events::Warning,
        facts::{Change, Kind, ObjectKey},
    },
    config::{Config, ServiceName},
    dataplane::Dataplane,
    desired::{
        self,
        kubernetes::{HealthCheck, HealthChecks, Objects, Options, Reason, Skip},
    },
    plan::PlanError,
};

/// What is known of the cluster, and what of it is left out.
#[derive(Debug)]
pub(super) struct Cluster {
    pub objects: Objects,
    pub skips: BTreeMap<ServiceName, Vec<Skip>>,
    pub health_checks: BTreeMap<ServiceName, HealthCheck>,
    /// One of the two changed since it was asked for.
    pub is_news: bool,
}

impl Cluster {
    /// None where services come from the file. `node`: this node's name; `agents`: the agents' own Service.
    pub(super) fn new(config: &Config, node: &str, agents: Option<&ServiceName>) -> Option<Self> {
        Some(Self {
            objects: Objects::new(options(config, node, agents)?),
            skips: BTreeMap::new(),
            health_checks: BTreeMap::new(),
            is_news: false,
        })
    }
}

fn options(config: &Config, node: &str, agents: Option<&ServiceName>) -> Option<Options> {
    let asked = config.kubernetes.as_ref()?;
    Some(Options {
        node: node.into(),
        external_ips: asked.external_ips,
        node_ports: asked.node_ports,
        cluster_ips: asked.cluster_ips,
        topology_hints: asked.topology_hints,
        vip_only_source_ranges: asked.vip_only_source_ranges,
        allow_node_addresses: config.allow_node_addresses,
        nat_addresses: config.nat.addresses.clone(),
        dsr: asked.dsr,
        tunnel_port: config.tunnel_port,
        agents: agents.cloned(),
    })
}

impl<D: Dataplane> Engine<D> {
    /// The cluster changed. Services that are concerned.
    pub fn cluster(&mut self, changes: Vec<Change>) -> BTreeSet<ServiceName> {
        let mut concerned = BTreeSet::new();
        if let Some(cluster) = &mut self.cluster {
            let before = (cluster.objects.keys().cloned(), cluster.objects.is_whole());
            for change in changes {
                concerned.extend(cluster.objects.apply(change));
            }
            // An agent is ready by a flush.
            self.general.dirty |= cluster.objects.is_whole() != before.1;
            if cluster.objects.keys() != before.0.as_ref() {
                self.follow_keys();
            }
        }
        self.dirty.extend(concerned.iter().cloned());
        concerned
    }

    /// The nodes' common keys are others than before.
    fn follow_keys(&mut self) {
        self.general.dirty = true;
        let keys = self.objects().and_then(Objects::keys);
        let Some(hash) = keys.map(|keys| keys.hash) else {
            return;
        };
        // A key of the config is one that its writer gave to all nodes.
        if self.config.cluster_key.is_none() && self.general.hash_key != hash {
            self.general.hash_key = hash;
            // Every table is another one by this key; what the maps hold becomes its history.
            self.astray = true;
        }
    }

    /// What is known of the cluster; none where services come from the file.
    pub fn objects(&self) -> Option<&Objects> {
        self.cluster.as_ref().map(|cluster| &cluster.objects)
    }

    /// What is left out, by Service, as of the last flush.
    pub fn skips(&self) -> impl Iterator<Item = &Skip> {
        let skips = self
            .cluster
            .iter()
            .flat_map(|cluster| cluster.skips.values());
        skips.flatten()
    }

    /// What is left out and what health check ports are to tell, if that changed since the last call.
    pub fn cluster_news(&mut self) -> Option<(HashSet<Warning>, HealthChecks)> {
        let cluster = self.cluster.as_mut().filter(|cluster| cluster.is_news)?;
        cluster.is_news = false;
        let skips = cluster.skips.values().flatten();
        let warnings = skips.map(|skip| Warning {
            kind: skip.kind,
            object: skip.object.clone(),
            uid: cluster.objects.uid(skip.kind, &skip.object).into(),
            reason: skip.reason.name(),
            message: skip.message.clone(),
        });
        let checks = cluster.health_checks.values();
        let checks = checks.map(|check| (check.port.get(), check.clone()));
        Some((warnings.collect(), Arc::new(checks.collect())))
    }

    /// Until the cluster was told whole, nothing is known to be gone: the maps stay as they are.
    pub(super) fn waits_for_cluster(&self) -> bool {
        self.objects().is_some_and(|objects| !objects.is_synced())
    }

    /// All services.
    pub(super) fn names(&self) -> Vec<ServiceName> {
        match &self.cluster {
            Some(cluster) => cluster.objects.names().cloned().collect(),
            None => self.at.keys().cloned().collect(),
        }
    }

    /// Whether there is anything to put into the maps for a service.
    pub(super) fn is_wanted(&self, name: &ServiceName) -> bool {
        match &self.cluster {
            Some(cluster) => cluster.objects.asks(name),
            None => self.at.contains_key(name),
        }
    }

    /// [`Self::desired`], and takes note of what is left out of it and of the ways that it needs.
    pub(super) fn build(&mut self, name: &ServiceName) -> Option<desired::Service> {
        let Some(cluster) = &mut self.cluster else {
            return self.desired(name);
        };
        let (service, skips) = cluster.objects.service(name, &self.facts);
        cluster.is_news |= keep(
            &mut cluster.skips,
            name,
            Some(skips).filter(|s| !s.is_empty()),
        );
        let check = cluster.objects.health_check(name, &self.facts);
        cluster.is_news |= keep(&mut cluster.health_checks, name, check);
        let groups = service.iter().flat_map(|service| &service.groups);
        let backends = groups.flat_map(|group| &group.backends);
        let routed: HashSet<IpAddr> = backends
            .filter_map(|backend| match backend.mode {
                Mode::Nat => Some(backend.address),
                _ => backend.node_address,
            })
            .collect();
        let mut moved = Moved::default();
        self.paths.assign(name, routed, &self.facts, &mut moved);
        self.want(moved);
        service
    }

    /// Of the services that are in the maps now.
    pub(super) fn take_triggers(
        &mut self,
        planned: &[ServiceName],
        unfit: &[(ServiceName, PlanError)],
    ) -> Vec<i64> {
        let Some(cluster) = &mut self.cluster else {
            return Vec::new();
        };
        let fits = |name: &&ServiceName| !unfit.iter().any(|(other, _)| other == *name);
        let names = planned.iter().filter(fits);
        names
            .flat_map(|name| cluster.objects.take_triggers(name))
            .collect()
    }

    /// What did not fit is told on the object as well.
    pub(super) fn note_unfit(&mut self, unfit: &[(ServiceName, PlanError)]) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        for (name, error) in unfit {
            let Some((namespace, object)) = name.as_str().split_once('/') else {
                continue;
            };
            cluster.is_news = true;
            cluster.skips.entry(name.clone()).or_default().push(Skip {
                kind: Kind::Service,
                object: ObjectKey::new(namespace, object),
                reason: Reason::MapsFull,
                message: format!("{error}; it stays as it was"),
            });
        }
    }

    /// Whether a VIP's other ports are ours depends on the host's addresses, and whether it is one at all.
    pub(super) fn host_addresses_changed(&mut self, before: &BTreeSet<IpAddr>) {
        let now: BTreeSet<IpAddr> = self.facts.host_addresses().collect();
        if let Some(cluster) = &self.cluster {
            // Pods come and go, and addresses of their links with them: only services that have such an address.
            for address in before.symmetric_difference(&now) {
                self.dirty.extend(cluster.objects.concerned_by(*address));
            }
            return;
        }
        if *before == now {
            return;
        }
        self.dirty.extend(self.at.keys().cloned());
        for frontend in desired::left_to_host(&self.config, &self.facts) {
            tracing::warn!(
                %frontend,
                "its address is one of this host now: left to the host; use another address"
            );
        }
    }

    /// The config changed, and with it perhaps what is taken of Services.
    pub(super) fn follow_options(&mut self) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        let before = cluster.objects.options();
        let (node, agents) = (Arc::clone(&before.node), before.agents.clone());
        let Some(options) = options(&self.config, &node, agents.as_ref()) else {
            return;
        };
        let before: Vec<_> = cluster.objects.names().cloned().collect();
        if cluster.objects.set_options(options) {
            self.dirty.extend(before);
            self.dirty.extend(cluster.objects.names().cloned());
        }
    }
}

/// Keeps a value, or none; true if that is another one than before.
fn keep<V: PartialEq>(
    map: &mut BTreeMap<ServiceName, V>,
    name: &ServiceName,
    value: Option<V>,
) -> bool {
    if map.get(name) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => drop(map.insert(name.clone(), value)),
        None => drop(map.remove(name)),
    }
    true
}
