//! Watches on Services, slices and nodes, and on the one Secret of ours: lists, then changes, for as long as somebody listens. What the server does not
//! have (streamed lists), what it forgot (410) and when it is away is dealt with here; what was told stays true for whoever
//! listens.

use std::{fmt::Debug, pin::pin, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::{
    core::v1::{Node, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    api::WatchParams,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::{
    facts::Change,
    keys,
    tell::{Teller, is_refusal},
    trim::{SELECTOR, Trim},
};

/// Changes that are handed over at once, at most.
const BATCH: usize = 1024;

/// Between two looks whether a server that was away is back. A watch that goes on says nothing of it before the next
/// change.
const LOOK: Duration = Duration::from_secs(2);

/// Selects nothing.
const NOTHING: &str = "millrace.io/nothing=at-all";

/// Follows the three kinds, and the keys in a namespace; ends when nobody listens any more.
pub async fn follow(client: Client, namespace: Option<String>, changes: mpsc::Sender<Vec<Change>>) {
    let mut kinds = JoinSet::new();
    let selected = || watcher::Config::default().labels(SELECTOR);
    let services: Api<Service> = Api::all(client.clone());
    kinds.spawn(kind(services, selected(), changes.clone()));
    let slices: Api<EndpointSlice> = Api::all(client.clone());
    kinds.spawn(kind(slices, selected(), changes.clone()));
    let nodes: Api<Node> = Api::all(client.clone());
    kinds.spawn(kind(nodes, watcher::Config::default(), changes.clone()));
    if let Some(namespace) = namespace {
        // The permission is for this one, which the server wants to see in the request.
        let one = format!("metadata.name={}", keys::NAME);
        let secrets: Api<Secret> = Api::namespaced(client, &namespace);
        let one = watcher::Config::default().fields(&one);
        kinds.spawn(kind(secrets, one, changes));
    }
    while kinds.join_next().await.is_some() {}
}

async fn kind<K>(api: Api<K>, config: watcher::Config, changes: mpsc::Sender<Vec<Change>>)
where
    K: Trim + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut teller = Teller::new(K::KIND);
    let streamed = config.clone().streaming_lists();
    if follow_kind(&api, streamed, &mut teller, &changes).await {
        tracing::info!(kind = K::KIND.name(), "no streamed lists here: plain ones");
        follow_kind(&api, config, &mut teller, &changes).await;
    }
}

/// True if the server does not take the kind of list that was asked for; else it ends when nobody listens.
async fn follow_kind<K>(
    api: &Api<K>,
    config: watcher::Config,
    teller: &mut Teller,
    changes: &mpsc::Sender<Vec<Change>>,
) -> bool
where
    K: Trim + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher(api.clone(), config.clone()).default_backoff();
    let mut events = pin!(events.ready_chunks(BATCH));
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let told = tokio::select! {
            some = events.next() => {
                let Some(some) = some else { return false };
                if some.iter().any(|event| is_refusal(event.as_ref().err())) {
                    return true;
                }
                some.into_iter().flat_map(|event| teller.tell(event)).collect()
            }
            _ = looks.tick(), if teller.is_resuming() => {
                if !answers(api, &config).await {
                    continue;
                }
                teller.found()
            }
            () = changes.closed() => return false,
        };
        let told: Vec<Change> = told;
        if !told.is_empty() && changes.send(told).await.is_err() {
            return false;
        }
    }
}

/// Whether the server lets us watch.
async fn answers<K>(api: &Api<K>, config: &watcher::Config) -> bool
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = WatchParams::default().labels(NOTHING).timeout(1);
    params.field_selector.clone_from(&config.field_selector);
    api.watch(&params, "0").await.is_ok()
}
