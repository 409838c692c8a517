//! What the agent tells: its state, published when it changed, ten times a second at most.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::watch, time::Instant};

use super::{Engine, FlushError, Flushed, Uplinks};
use crate::{
    config::ServiceName,
    dataplane::Dataplane,
    state::{Announcement, BackendState, Bypass, Source, SourceState, State},
};

const PAUSE: Duration = Duration::from_millis(100);

/// Upper bounds of the apply durations that are counted, in microseconds; one more has no bound.
const BOUNDS_US: [u64; 9] = [
    100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000,
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
}

/// Index in `State::sources`.
const CONFIG: usize = 0;
const NETWORK: usize = 1;

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
        let mut bounds: Vec<_> = BOUNDS_US.iter().map(|bound| (*bound, 0)).collect();
        bounds.push((u64::MAX, 0));
        let state = State {
            node: about.node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: lb_common::ABI_VERSION,
            kernel: about.kernel,
            started: now,
            sources: vec![source(&about.file), source("network")],
            apply: crate::state::Apply {
                duration_us: bounds,
                ..crate::state::Apply::default()
            },
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

    /// A flush ended, after `took` from the first change.
    pub fn flushed<D: Dataplane>(
        &mut self,
        result: &Result<Flushed, FlushError>,
        took: Duration,
        engine: &Engine<D>,
    ) {
        let apply = &mut self.state.apply;
        match result {
            Ok(flushed) => {
                apply.applied += 1;
                apply.error = None;
                let took = took.as_micros() as u64;
                apply.duration_sum_us += took;
                for (bound, count) in &mut apply.duration_us {
                    *count += u64::from(took <= *bound);
                }
                let now = seconds();
                for name in &flushed.services {
                    self.service(name, engine, now);
                }
            }
            Err(error) => {
                apply.errors += 1;
                apply.error = Some(error.to_string());
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

fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
