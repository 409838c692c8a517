//! Taking the agents off a cluster: every node detached, then everything deleted that `deploy/millrace.yaml` installed.
//!
//! In: the rights of whoever asks; the agent itself has none of these. For each node a pod is made that does once what the
//! agent's pod may do, `millrace detach`, and waits for the agent to end. Then the `DaemonSet` is deleted, so the agents
//! end. The pods are what there is to do: a node that is away does it when it is back, an interrupted command is given
//! again. Only when all of them are done, the rest is deleted.

mod detacher;
mod installed;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Namespace, Node, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

pub use self::installed::Object;
use self::{
    detacher::{Progress, SELECTOR, agents_labels, detacher, is_ready, progress, wants},
    installed::{DAEMON_SET, NAMESPACE},
};

/// Between two looks at what is not done yet.
const PERIOD: Duration = Duration::from_millis(250);

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error("{what}: {error}")]
    Api { what: String, error: kube::Error },
    #[error("{}", left(.0))]
    Nodes(BTreeMap<String, String>),
    #[error(
        "namespace {NAMESPACE} is not gone after {0:?}: `kubectl get namespace {NAMESPACE} -o yaml` says what holds it"
    )]
    Namespace(Duration),
}

/// What the nodes' operator is to know.
fn left(nodes: &BTreeMap<String, String>) -> String {
    let nodes: Vec<_> = nodes
        .iter()
        .map(|(node, why)| format!("{node}: {why}"))
        .collect();
    let nodes = nodes.join("\n");
    format!(
        "not on every node is everything gone; the pods that see to it stay until then:\n{nodes}\n\
         A node that is back detaches by itself: `millrace uninstall` again then. At once, on the node itself: \
         `crictl stopp $(crictl pods --quiet --namespace {NAMESPACE})`, then `millrace detach`. To give a node up: \
         `millrace uninstall --leave NODE`"
    )
}

fn failed(what: impl Into<String>) -> impl FnOnce(kube::Error) -> UninstallError {
    let what = what.into();
    |error| UninstallError::Api { what, error }
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes to detach on, and whether they are ready.
    pub nodes: BTreeMap<String, bool>,
    /// In the order of their deletion.
    pub objects: Vec<Object>,
    set: Option<DaemonSet>,
    /// Whether nodes were given up.
    left: bool,
}

/// Looks at the cluster; nothing changes. Nodes in `leave` are as if they were not there.
///
/// # Errors
/// The API server does not answer, or not to us.
pub async fn plan(client: &Client, leave: &[String]) -> Result<Plan, UninstallError> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    let set = sets
        .get_opt(DAEMON_SET)
        .await
        .map_err(failed("daemonset"))?;
    let pods = detachers(client).await?;
    let asked = |node: &Node, name: &str| match &set {
        Some(set) => wants(set, node),
        None => pods.contains_key(name),
    };
    let nodes = nodes(client).await?;
    let nodes = nodes
        .iter()
        .filter_map(|node| Some((node.metadata.name.clone()?, node)))
        .filter(|(name, node)| asked(node, name) && !leave.contains(name))
        .map(|(name, node)| (name, is_ready(node)))
        .collect();
    let mut objects = Vec::new();
    for object in installed::objects() {
        let found = api(client, &object).get_metadata_opt(&object.name).await;
        if found.map_err(failed(object.to_string()))?.is_some() {
            objects.push(object);
        }
    }
    Ok(Plan {
        nodes,
        objects,
        set,
        left: !leave.is_empty(),
    })
}

/// Does it; `tell` hears of each node and object. What is not done within `patience` is an error, and deletes nothing but
/// the agents.
///
/// # Errors
/// Nodes that are not done, by name, with what to do; what the API server refuses.
pub async fn carry_out(
    client: &Client,
    plan: &Plan,
    patience: Duration,
    mut tell: impl FnMut(&str),
) -> Result<(), UninstallError> {
    let deadline = Instant::now() + patience;
    if let Some(set) = &plan.set {
        send_detachers(client, plan, set).await?;
    }
    detached(client, plan, deadline, &mut tell).await?;
    for object in &plan.objects {
        delete(client, object).await?;
        tell(&format!("deleted {object}"));
    }
    // Pods of a node that was given up may hold it for long.
    while !plan.left && namespace_is_there(client).await? {
        if Instant::now() >= deadline {
            return Err(UninstallError::Namespace(patience));
        }
        sleep(PERIOD).await;
    }
    Ok(())
}

/// First the pods, then the end of the agents: whatever interrupts this, nothing of it is forgotten. Then the pods get the
/// agents' labels: of whoever installs again before they are done, the new `DaemonSet` takes them for outdated agents and puts
/// its own in their place. The one that is deleted would have done so, too.
async fn send_detachers(
    client: &Client,
    plan: &Plan,
    set: &DaemonSet,
) -> Result<(), UninstallError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    // Of a time before these agents; a pod that is done says nothing of them.
    for name in detachers(client)
        .await?
        .into_values()
        .filter_map(|pod| pod.metadata.name)
    {
        gone(
            pods.delete(&name, &DeleteParams::default().grace_period(0))
                .await,
        )
        .map_err(failed(format!("pod {name}")))?;
    }
    let mut made = Vec::new();
    for node in plan.nodes.keys() {
        let Some(pod) = detacher(set, node) else {
            continue;
        };
        let pod = pods.create(&PostParams::default(), &pod).await;
        let pod = pod.map_err(failed(format!("a pod for node {node}")))?;
        made.extend(pod.metadata.name);
    }
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    let deleted = sets.delete(DAEMON_SET, &DeleteParams::background()).await;
    gone(deleted).map_err(failed(format!("daemonset {NAMESPACE}/{DAEMON_SET}")))?;
    let labels = Patch::Merge(json!({"metadata": {"labels": agents_labels(set)}}));
    for name in made {
        let labelled = pods.patch(&name, &PatchParams::default(), &labels).await;
        gone(labelled).map_err(failed(format!("pod {name}")))?;
    }
    Ok(())
}

/// Waits for the pods of all nodes.
async fn detached(
    client: &Client,
    plan: &Plan,
    deadline: Instant,
    tell: &mut impl FnMut(&str),
) -> Result<(), UninstallError> {
    for (node, _) in plan.nodes.iter().filter(|(_, ready)| !**ready) {
        tell(&format!("{node} is not ready; waiting for it"));
    }
    let mut open: BTreeSet<_> = plan.nodes.keys().cloned().collect();
    loop {
        let pods = detachers(client).await?;
        let mut why = BTreeMap::new();
        open.retain(|node| match progress(pods.get(node)) {
            Progress::Done => {
                tell(&format!("detached on {node}"));
                false
            }
            Progress::Open(what) => {
                why.insert(node.clone(), what);
                true
            }
        });
        if open.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            for node in nodes(client).await?.iter().filter(|node| !is_ready(node)) {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                why.entry(name.to_owned())
                    .and_modify(|what| "the node is not ready".clone_into(what));
            }
            return Err(UninstallError::Nodes(why));
        }
        sleep(PERIOD).await;
    }
}

async fn nodes(client: &Client) -> Result<Vec<Node>, UninstallError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await;
    Ok(nodes.map_err(failed("nodes"))?.items)
}

/// Pods that detach, by node.
async fn detachers(client: &Client) -> Result<BTreeMap<String, Pod>, UninstallError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let ours = ListParams::default().labels(SELECTOR);
    let pods = pods.list(&ours).await.map_err(failed("pods"))?;
    let node = |pod: &Pod| pod.spec.as_ref()?.node_name.clone();
    Ok(pods
        .items
        .into_iter()
        .filter_map(|pod| Some((node(&pod)?, pod)))
        .collect())
}

async fn namespace_is_there(client: &Client) -> Result<bool, UninstallError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = namespaces.get_metadata_opt(NAMESPACE).await;
    Ok(found.map_err(failed("namespace"))?.is_some())
}

async fn delete(client: &Client, object: &Object) -> Result<(), UninstallError> {
    let deleted = api(client, object)
        .delete(&object.name, &DeleteParams::background())
        .await;
    gone(deleted).map_err(failed(object.to_string()))
}

/// What is gone already is as good as deleted.
fn gone<T>(deleted: kube::Result<T>) -> kube::Result<()> {
    match deleted {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

fn api(client: &Client, object: &Object) -> Api<DynamicObject> {
    let resource = object.resource();
    match &object.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}
