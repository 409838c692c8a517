//! What the agent tells: its state, published when it changed, ten times a second at most.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::watch, time::Instant};

use super::{Engine, FlushError, Flushed, Uplinks};
use crate::{
    cluster::facts::{Change, Kind, ObjectKey},
    config::ServiceName,
    dataplane::Dataplane,
    desired::kubernetes::{Objects, Reason, since},
    state::{
        Announcement, BackendState, Bypass, Durations, Skipped, SkippedCount, Source, SourceState,
        State,
    },
};

const PAUSE: Duration = Duration::from_millis(100);

/// Upper bounds of the apply durations that are counted, in microseconds; one more has no bound.
const BOUNDS_US: [u64; 9] = [
    100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000,
];

/// The same of a change's way through the cluster to the maps. Most triggers are told in whole seconds.
const PROGRAMMING_US: [u64; 14] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// The state, as far as it was published and further.
#[derive(Debug)]
pub struct Report {
    state: State,
    sender: watch::Sender<Arc<State>>,
    /// None: nothing new.
    due: Option<Instant>,
    published: Instant,
    /// Since when each backend is in its state.
    since: HashMap<(ServiceName, SocketAddr), (BackendState, u64)>,
}

/// What never changes.
#[derive(Clone, Debug)]
pub struct About {
    pub node: String,
    pub kernel: String,
    /// The config file's name.
    pub file: String,
    /// Services come from the cluster.
    pub cluster: bool,
    /// Keys for tunnels, too.
    pub keys: bool,
}

/// Index in `State::sources`.
const CONFIG: usize = 0;
const NETWORK: usize = 1;
/// The first of [`Kind::ALL`], where services come from the cluster.
const CLUSTER: usize = 2;

/// Lines on what is left out, at most: with more, the counts say enough.
const MOST_SKIPPED: usize = 100;

impl Report {
    pub fn new(about: About) -> (Self, watch::Receiver<Arc<State>>) {
        let now = seconds();
        let source = |name: &str| Source {
            name: name.to_owned(),
            state: SourceState::Waiting,
            since: now,
            objects: 0,
            skipped: 0,
            error: None,
        };
        let kinds: &[Kind] = match (about.cluster, about.keys) {
            (false, _) => &[],
            (true, false) => &Kind::SERVED,
            (true, true) => &Kind::ALL,
        };
        let state = State {
            node: about.node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: lb_common::ABI_VERSION,
            kernel: about.kernel,
            started: now,
            sources: [about.file.as_str(), "network"]
                .into_iter()
                .chain(kinds.iter().map(|kind| kind.source()))
                .map(source)
                .collect(),
            apply: crate::state::Apply {
                durations: Durations::new(&BOUNDS_US),
                ..crate::state::Apply::default()
            },
            programming: about.cluster.then(|| Durations::new(&PROGRAMMING_US)),
            ..State::default()
        };
        let (sender, receiver) = watch::channel(Arc::new(state.clone()));
        let now = Instant::now();
        let report = Self {
            state,
            sender,
            due: Some(now),
            published: now,
            since: HashMap::new(),
        };
        (report, receiver)
    }

    /// When something new is to be published.
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }
}
impl Report {
    /// The config was taken.
    pub fn config_read<D: Dataplane>(&mut self, engine: &Engine<D>) {
        let source = &mut self.state.sources[CONFIG];
        source.state = SourceState::Synced;
        source.since = seconds();
        source.error = None;
        source.objects = engine.config().services.len() as u64;
        self.changed();
    }

    /// The config was refused; the one before holds.
    pub fn config_refused(&mut self, error: String) {
        let source = &mut self.state.sources[CONFIG];
        if source.state == SourceState::Synced {
            source.state = SourceState::Stale;
            source.since = seconds();
        }
        source.error = Some(error);
        self.changed();
    }

    /// The cluster's watches go on, or do not.
    pub fn cluster_told(&mut self, changes: &[Change]) {
        for change in changes {
            let (kind, lost) = match change {
                Change::Lost(kind, why) => (*kind, Some(why)),
                Change::Found(kind) => (*kind, None),
                _ => continue,
            };
            if let Some(source) = self.state.sources.get_mut(CLUSTER + kind as usize) {
                let state = match (source.state, lost) {
                    (SourceState::Synced, Some(_)) => SourceState::Stale,
                    (SourceState::Stale, None) => SourceState::Synced,
                    (state, _) => state,
                };
                enter(source, state);
                source.error = lost.cloned();
            }
        }
        self.changed();
    }

    /// What is known of the cluster, and what is left out.
    fn cluster<D: Dataplane>(&mut self, engine: &Engine<D>) {
        let Some(objects) = engine.objects() else {
            return;
        };
        self.state.node_leaves = objects.own_node().is_some_and(|node| node.leaving);
        let sources = self.state.sources.iter_mut().skip(CLUSTER);
        for (source, kind) in sources.zip(Kind::ALL) {
            if source.state == SourceState::Waiting && objects.is_kind_synced(kind) {
                enter(source, SourceState::Synced);
            }
            source.objects = objects.count(kind) as u64;
            source.skipped = 0;
            if kind == Kind::Secret && source.state == SourceState::Synced {
                source.error = objects.keys_fault().map(str::to_owned);
            }
        }
        let mut counts: BTreeMap<(Kind, Reason), BTreeSet<&ObjectKey>> = BTreeMap::new();
        self.state.skipped.clear();
        for skip in engine.skips() {
            counts
                .entry((skip.kind, skip.reason))
                .or_default()
                .insert(&skip.object);
            if self.state.skipped.len() < MOST_SKIPPED {
                self.state.skipped.push(Skipped {
                    kind: skip.kind.name().to_owned(),
                    object: skip.object.to_string(),
                    reason: skip.reason.name().to_owned(),
                    message: skip.message.clone(),
                });
            }
        }
        self.state.objects_skipped.clear();
        for ((kind, reason), objects) in counts {
            let count = objects.len() as u64;
            self.state.sources[CLUSTER + kind as usize].skipped += count;
            self.state.objects_skipped.push(SkippedCount {
                kind: kind.name().to_owned(),
                reason: reason.name().to_owned(),
                objects: count,
            });
        }
    }

    pub fn interfaces(&mut self, uplinks: &Uplinks) {
        self.state.interfaces = uplinks.report();
        self.changed();
    }

    pub fn announcements(&mut self, announcements: Vec<Announcement>) {
        if self.state.announcements != announcements {
            self.state.announcements = announcements;
            self.changed();
        }
    }

    /// A flush ended at `now`, after `took` from the first change.
    pub fn flushed<D: Dataplane>(
        &mut self,
        result: &Result<Flushed, FlushError>,
        took: Duration,
        now: SystemTime,
        engine: &Engine<D>,
    ) {
        let apply = &mut self.state.apply;
        match result {
            Ok(_) => {
                apply.applied += 1;
                apply.whole |= engine.objects().is_none_or(Objects::is_whole);
                if !engine.has_unfit() {
                    apply.error = None;
                }
                apply.durations.add(took);
            }
            Err(error) => {
                apply.errors += 1;
                apply.error = Some(error.to_string());
            }
        }
        if let Ok(flushed) | Err(FlushError::Plan { flushed, .. }) = result {
            let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
            for name in &flushed.services {
                self.service(name, engine, now.as_secs());
            }
            if let Some(programming) = &mut self.state.programming {
                for triggered in &flushed.triggers {
                    programming.add(since(*triggered, now.as_millis() as i64));
                }
            }
        }
        self.changed();
    }

    /// Publishes now.
    pub fn publish<D: Dataplane>(&mut self, engine: &Engine<D>) {
        let facts = engine.facts();
        let network = &mut self.state.sources[NETWORK];
        if network.state == SourceState::Waiting && !facts.links.is_empty() {
            network.state = SourceState::Synced;
            network.since = seconds();
        }
        network.objects = (facts.links.len() + facts.neighbours.len()) as u64;
        self.cluster(engine);
        self.state.maps = engine.map_use();
        self.sender.send_replace(Arc::new(self.state.clone()));
        self.due = None;
        self.published = Instant::now();
    }

    /// Whether everything passes, and until when a trial lasts. True if a trial has ended by that.
    pub fn bypass<D: Dataplane>(&mut self, engine: &Engine<D>, now: u64) -> bool {
        let reason = engine.bypass(now);
        let left = engine.trial_left(now);
        let ended = reason == Some(Bypass::Unconfirmed) && self.state.bypass_reason != reason;
        if self.state.bypass_reason != reason || self.state.trial_ends.is_some() != left.is_some() {
            self.state.bypass = reason.is_some();
            self.state.bypass_reason = reason;
            self.state.trial_ends = left.map(|left| seconds() + left.as_secs());
            self.changed();
        }
        ended
    }

    pub fn publish_if_due<D: Dataplane>(&mut self, engine: &Engine<D>) {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.publish(engine);
        }
    }

    fn changed(&mut self) {
        self.due.get_or_insert(self.published + PAUSE);
    }

    fn service<D: Dataplane>(&mut self, name: &ServiceName, engine: &Engine<D>, now: u64) {
        let Some(mut service) = engine.shown(name) else {
            if let Some(gone) = self.state.services.remove(name.as_str()) {
                for backend in &gone.backends {
                    self.since.remove(&(name.clone(), backend.address));
                }
            }
            return;
        };
        if let Some(before) = self.state.services.get(name.as_str()) {
            let still = |address| service.backends.iter().any(|one| one.address == address);
            for backend in &before.backends {
                if !still(backend.address) {
                    self.since.remove(&(name.clone(), backend.address));
                }
            }
        }
        for backend in &mut service.backends {
            let key = (name.clone(), backend.address);
            let known = self.since.entry(key).or_insert((backend.state, now));
            if known.0 != backend.state {
                *known = (backend.state, now);
            }
            backend.since = known.1;
        }
        self.state
            .services
            .insert(name.as_str().to_owned(), Arc::new(service));
    }
}

fn enter(source: &mut Source, state: SourceState) {
    if source.state != state {
        source.state = state;
        source.since = seconds();
    }
}

fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
