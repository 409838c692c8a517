//! The cluster, as the agent follows it: who this is there, what is told, and what is said back.

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};

use super::WARNINGS;
use crate::{
    cli::{Exit, ExitWith as _, Failure},
    cluster::{self, events::Warnings},
    config::{Config, HealthCheckPorts, ServiceName},
    desired::kubernetes::HealthChecks,
    reconcile::ClusterEnds,
};

/// This host's name, in the cluster its node's.
pub(super) fn node_name(config: &Config) -> String {
    let asked = config.kubernetes.as_ref();
    let named = asked.and_then(|asked| asked.node.clone());
    let given = || asked.and_then(|_| std::env::var("NODE_NAME").ok());
    let host = || {
        let name = rustix::system::uname();
        name.nodename().to_string_lossy().into_owned()
    };
    named.or_else(given).unwrap_or_else(host)
}

/// The agents' own Service, in their namespace.
pub(super) fn agents(namespace: &str) -> Option<ServiceName> {
    format!("{namespace}/millrace").parse().ok()
}

/// What the cluster tells and is told; nothing where services come from the file.
pub(super) struct Followed {
    pub(super) changes: mpsc::Receiver<Vec<cluster::facts::Change>>,
    pub(super) ends: Option<ClusterEnds>,
    pub(super) health_ports: Option<(HealthCheckPorts, watch::Receiver<HealthChecks>, Warnings)>,
}

/// `namespace`: that of the agents, where keys are kept.
pub(super) async fn follow_cluster(
    config: &Config,
    node: &str,
    namespace: Option<String>,
) -> Result<Followed, Failure> {
    let (changes_in, changes) = mpsc::channel(16);
    let mut followed = Followed {
        changes,
        ends: None,
        health_ports: None,
    };
    if let Some(asked) = &config.kubernetes {
        let client = cluster::connect(asked.kubeconfig.as_deref()).await;
        let client = client.context("kubernetes").exit(Exit::Usage)?;
        let follow = cluster::follow(client.clone(), namespace.clone(), changes_in);
        tokio::spawn(follow);
        let (keys_wanted, wanted) = watch::channel(false);
        if let Some(namespace) = namespace {
            tokio::spawn(cluster::keep(client.clone(), namespace, wanted));
        }
        let (warnings_in, warnings) = mpsc::channel(WARNINGS);
        tokio::spawn(cluster::events::record(client, node.to_owned(), warnings));
        let (checks_in, checks) = watch::channel(HealthChecks::default());
        followed.ends = Some(ClusterEnds {
            warnings: Warnings::new(warnings_in.clone()),
            health_checks: checks_in,
            keys_wanted,
        });
        followed.health_ports =
            Some((asked.health_check_ports, checks, Warnings::new(warnings_in)));
    }
    Ok(followed)
}
