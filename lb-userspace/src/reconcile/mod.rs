//! The loop: whatever changed is taken in, as much as there is at once; then the maps are brought after it.
//!
//! Level-triggered: nothing depends on seeing each change, only on the last state of each source. What is applied stays
//! when a source falters.

mod announcing;
mod config_file;
mod drains;
mod engine;
mod paths;
mod replies;
mod report;
mod shown;
mod trial;
mod uplinks;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use self::{
    announcing::Announcing,
    config_file::{Text, read, watch},
    drains::DrainFile,
    engine::{Engine, FlushError, Flushed, Start},
    replies::Replies,
    report::{About, Report},
    trial::TrialFile,
    uplinks::Uplinks,
};
use crate::{
    announce::Claim,
    attach::{Clock, Installation, Mode},
    cluster::{events::Warnings, facts},
    config::{Config, ConfigErrors, XdpMode},
    dataplane::Dataplane,
    desired::kubernetes::{HealthChecks, Objects},
    health::{Assignment, Change},
    lease::Ended,
    net::{self, Masquerade, Update},
    state::{Command, Refused, Request},
};

/// Between two signs of life, and two looks at the neighbours.
const TICK: Duration = Duration::from_secs(1);

/// After a failed flush: doubled from the first to the last.
const RETRY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// What comes in.
#[derive(Debug)]
pub struct Inputs {
    pub network: mpsc::Receiver<Vec<Update>>,
    pub health: mpsc::Receiver<Vec<Change>>,
    pub config: mpsc::Receiver<Text>,
    /// Nobody sends where services come from the file.
    pub cluster: mpsc::Receiver<Vec<facts::Change>>,
    pub requests: mpsc::Receiver<Request>,
    pub claims: mpsc::Receiver<Claim>,
}

/// What goes out.
#[derive(Debug)]
pub struct Outputs {
    pub checks: mpsc::Sender<Vec<Assignment>>,
    pub pokes: mpsc::Sender<Vec<(u32, IpAddr)>>,
    /// None: services come from the file.
    pub cluster: Option<ClusterEnds>,
}

/// What the cluster is told, by events and by health check ports.
#[derive(Debug)]
pub struct ClusterEnds {
    pub warnings: Warnings,
    pub health_checks: watch::Sender<HealthChecks>,
    /// Whether keys are to be made if there are none.
    pub keys_wanted: watch::Sender<bool>,
}

/// The agent at work.
#[derive(Debug)]
pub struct Reconciler<D> {
    pub engine: Engine<D>,
    pub uplinks: Uplinks,
    pub installation: Installation,
    pub clock: Arc<Clock>,
    pub report: Report,
    pub drain_file: DrainFile,
    pub trial_file: TrialFile,
    pub announcing: Announcing,
    pub replies: Replies,
    /// The config file's name, for messages.
    pub file: String,
    pub outputs: Outputs,
}

enum Event {
    Network(Vec<Update>),
    Health(Vec<Change>),
    Config(Text),
    Cluster(Vec<facts::Change>),
    Request(Request),
    Claim(Claim),
    Time,
}

/// Who gives packets another source on this host; nobody where the kernel does not say.
pub fn masquerades() -> Vec<Masquerade> {
    net::masquerades().unwrap_or_else(|error| {
        tracing::warn!(%error, "rules that masquerade cannot be read");
        Vec::new()
    })
}

/// The config's word for it.
pub const fn mode(config: &Config) -> Mode {
    match config.xdp_mode {
        XdpMode::Native => Mode::Native,
        XdpMode::Generic => Mode::Generic,
    }
}

impl<D: Dataplane> Reconciler<D> {
    /// Runs until `stop`. Nothing is taken out of the kernel then. Blocks its thread while it writes (up to some 10 ms
    /// for a grace period), so it wants one of its own.
    pub async fn run(mut self, mut inputs: Inputs, stop: CancellationToken) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut retry, mut pause, mut unfit_again) = (None, RETRY[0], None);
        loop {
            let wake = [
                retry,
                unfit_again,
                self.uplinks.retry(),
                self.report.due(),
                self.announcing.next(),
            ];
            let wake = wake.into_iter().flatten().min();
            let event = tokio::select! {
                Some(updates) = inputs.network.recv() => Event::Network(updates),
                Some(changes) = inputs.health.recv() => Event::Health(changes),
                Some(text) = inputs.config.recv() => Event::Config(text),
                Some(changes) = inputs.cluster.recv() => Event::Cluster(changes),
                Some(request) = inputs.requests.recv() => Event::Request(request),
                Some(claim) = inputs.claims.recv() => Event::Claim(claim),
                _ = ticks.tick() => {
                    self.poke();
                    self.beat();
                    self.replies.look();
                    Event::Time
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => Event::Time,
                () = stop.cancelled() => return self.end(),
            };
            let begin = Instant::now();
            let mut answers = Vec::new();
            let mut wider = self.take(event, &mut answers).await;
            while let Some(event) = inputs.next_waiting() {
                wider |= self.take(event, &mut answers).await;
            }
            let tried = self.uplinks.retry().is_some_and(|at| at <= Instant::now());
            if wider || tried {
                self.follow_interfaces();
                self.announcing.look_again();
            }
            self.announce();
            if unfit_again.is_some_and(|at| at <= Instant::now()) {
                self.engine.retry_unfit();
                unfit_again = None;
            }
            let due = retry.is_none_or(|at| at <= Instant::now());
            if self.engine.is_behind() && (due || !answers.is_empty()) {
                match self.flush(begin) {
                    Ok(()) => {
                        (retry, pause) = (None, RETRY[0]);
                        self.poke();
                    }
                    Err(error) => {
                        let unfit = matches!(error, FlushError::Plan { .. });
                        let pause_now = if unfit { RETRY[1] } else { pause };
                        tracing::error!(%error, "not applied; trying again in {pause_now:?}");
                        for (_, answer) in answers.iter_mut().filter(|(_, answer)| answer.is_ok()) {
                            *answer = Err(Refused::Failed(format!("not in the maps yet: {error}")));
                        }
                        let again = Some(Instant::now() + pause_now);
                        if unfit {
                            // The others do not wait for it.
                            (retry, pause, unfit_again) = (None, RETRY[0], again);
                        } else {
                            (retry, pause) = (again, RETRY[1].min(pause * 2));
                        }
                    }
                }
            }
            if !self.engine.is_behind() {
                self.announcing.say();
            }
            if !answers.is_empty() {
                self.report.publish(&self.engine);
            }
            for (request, answer) in answers {
                // Who asked may have gone.
                drop(request.reply.send(answer));
            }
            self.report.publish_if_due(&self.engine);
            self.keep_replies();
        }
    }

    /// Brings the maps after the facts; `begin` is when the first of the changes came.
    pub fn flush(&mut self, begin: Instant) -> Result<(), FlushError> {
        let flushed = self.engine.flush();
        self.report
            .flushed(&flushed, begin.elapsed(), SystemTime::now(), &self.engine);
        self.tell_cluster();
        let (Ok(done) | Err(FlushError::Plan { flushed: done, .. })) = &flushed else {
            return flushed.map(|_| ());
        };
        for name in &done.services {
            self.replies
                .follow(name, self.engine.desired(name).as_ref());
        }
        let Flushed { ops, services, .. } = flushed?;
        if ops > 0 {
            let took = begin.elapsed();
            tracing::debug!(ops, services = services.len(), ?took, "applied");
        }
        Ok(())
    }

    /// Brings the chain for forgotten replies after the backends, or takes it away.
    fn keep_replies(&mut self) {
        let now = self.now();
        self.replies.keep(self.engine.bypass(now).is_none());
    }

    /// Jiffies; those of the last sign of life where the kernel does not say.
    fn now(&self) -> u64 {
        self.clock.now().unwrap_or_else(|error| {
            tracing::error!(%error, "the kernel's clock");
            self.engine.heartbeat()
        })
    }

    /// Gives a sign of life.
    fn beat(&mut self) {
        let now = self.now();
        if let Err(error) = self.engine.beat(now) {
            tracing::error!(%error, "no sign of life in the maps");
        }
        if self.report.bypass(&self.engine, now) {
            tracing::warn!(
                "the trial has ended unconfirmed: everything passes; `millrace bypass off` takes over again"
            );
        }
    }

    /// Tells the agent after this one of a trial that is over.
    fn note_trial(&mut self) {
        if self.engine.on_trial() {
            return;
        }
        if let Err(error) = self.trial_file.passed() {
            tracing::error!(%error, "an agent after a crash will not know that the trial went well");
        }
    }

    /// A good end: the next agent's trial is its own.
    fn end(&mut self) {
        if let Err(error) = self.trial_file.remove() {
            tracing::error!(%error, "the next agent's trial will be what is left of this one's");
        }
    }

    /// Asks the kernel for the neighbours that are due.
    fn poke(&mut self) {
        let due = self.engine.due_pokes(Instant::now());
        // A full queue means that the last ones are not sent yet; these come again.
        if !due.is_empty() && self.outputs.pokes.try_send(due).is_err() {
            tracing::debug!("neighbours are asked for later");
        }
    }

    /// Takes one event in; true if interfaces may be concerned.
    async fn take(
        &mut self,
        event: Event,
        answers: &mut Vec<(Request, Result<bool, Refused>)>,
    ) -> bool {
        match event {
            Event::Network(updates) => return self.engine.network(updates),
            Event::Health(changes) => {
                for change in &changes {
                    let (service, backend) = (&change.service, change.backend);
                    let state = if change.up { "up" } else { "down" };
                    tracing::info!(%service, %backend, state, "health");
                }
                self.engine.health(changes);
            }
            Event::Config(text) => {
                if let Err(error) = self.reload(text).await {
                    tracing::error!("config refused, the one before stays in force: {error}");
                    self.report.config_refused(error);
                }
            }
            Event::Cluster(changes) => self.follow_cluster(changes),
            Event::Request(request) => {
                let answer = self.obey(&request.command).await;
                answers.push((request, answer));
            }
            Event::Claim(claim) => {
                self.announcing.heard(&claim, self.engine.facts());
            }
            Event::Time => {}
        }
        false
    }

    fn follow_cluster(&mut self, changes: Vec<facts::Change>) {
        self.report.cluster_told(&changes);
        let synced = |engine: &Engine<D>| engine.objects().is_some_and(Objects::is_synced);
        let before = synced(&self.engine);
        self.engine.cluster(changes);
        if !before && synced(&self.engine) {
            tracing::info!("the cluster is known whole");
        }
    }

    fn tell_cluster(&mut self) {
        let Some(ends) = &mut self.outputs.cluster else {
            return;
        };
        let wanted = self.engine.objects().is_some_and(Objects::wants_keys);
        ends.keys_wanted
            .send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
        if let Some((warnings, health_checks)) = self.engine.cluster_news() {
            ends.warnings.set(warnings);
            ends.health_checks.send_replace(health_checks);
        }
    }

    async fn obey(&mut self, command: &Command) -> Result<bool, Refused> {
        match command {
            Command::Drain {
                service,
                backend,
                on,
            } => {
                let changed = self.engine.drain(service, *backend, *on)?;
                if changed {
                    tracing::info!(service, %backend, on, "drain");
                    self.drain_file
                        .write(self.engine.drains())
                        .map_err(|error| {
                            Refused::Failed(format!(
                                "drained, but it will not outlive the agent: {error}"
                            ))
                        })?;
                }
                Ok(changed)
            }
            Command::Bypass { on } => {
                let now = self.now();
                let changed = self.engine.set_bypass(*on, now);
                if changed {
                    tracing::warn!(on, "bypass");
                    self.beat();
                    self.note_trial();
                }
                Ok(changed)
            }
            Command::Confirm => {
                let now = self.now();
                let confirmed = self.engine.confirm(now).map_err(|Ended(ago)| {
                    Refused::Failed(format!(
                        "the trial ended {} s ago and everything passes: `millrace bypass off` takes over again",
                        ago.as_secs()
                    ))
                })?;
                if confirmed {
                    tracing::info!("trial confirmed");
                    self.beat();
                    self.note_trial();
                }
                Ok(confirmed)
            }
            Command::Reload => {
                let text = read(std::path::Path::new(&self.file));
                let result = self.reload(text).await;
                result.map(|()| true).map_err(|error| {
                    self.report.config_refused(error.clone());
                    Refused::Failed(error)
                })
            }
        }
    }

    async fn reload(&mut self, text: Text) -> Result<(), String> {
        let config = Config::parse(&text?, &self.file).map_err(|errors| errors.to_string())?;
        let services = config.services.len();
        self.engine.set_masquerades(masquerades());
        let assignments = self.engine.reload(config).map_err(|errors| {
            let file = self.file.clone();
            ConfigErrors { file, errors }.to_string()
        })?;
        tracing::info!(services, changed = assignments.len(), "config read");
        self.report.config_read(&self.engine);
        if self.outputs.checks.send(assignments).await.is_err() {
            tracing::error!("nobody checks backends");
        }
        let config = self.engine.config();
        self.uplinks.ask(
            &mut self.installation,
            self.engine.facts(),
            &config.interfaces,
            mode(config),
        );
        self.note_interfaces();
        self.announcing.look_again();
        Ok(())
    }

    /// What is due in announcing, but for the words: those wait for the maps.
    fn announce(&mut self) {
        let report = self
            .announcing
            .act(&mut self.engine, &mut self.installation);
        if let Some(report) = report {
            self.report.announcements(report);
        }
    }

    fn follow_interfaces(&mut self) {
        let patterns = &self.engine.config().interfaces;
        let facts = self.engine.facts();
        if self.uplinks.follow(&mut self.installation, facts, patterns) {
            self.note_interfaces();
        }
    }

    /// Interfaces came, went or changed.
    pub fn note_interfaces(&mut self) {
        self.report.interfaces(&self.uplinks);
        self.engine.set_attached(self.uplinks.indexes());
    }
}

impl Inputs {
    /// What is there already, without waiting.
    fn next_waiting(&mut self) -> Option<Event> {
        let network = |inputs: &mut Self| inputs.network.try_recv().ok().map(Event::Network);
        let health = |inputs: &mut Self| inputs.health.try_recv().ok().map(Event::Health);
        let cluster = |inputs: &mut Self| inputs.cluster.try_recv().ok().map(Event::Cluster);
        let request = |inputs: &mut Self| inputs.requests.try_recv().ok().map(Event::Request);
        let claim = |inputs: &mut Self| inputs.claims.try_recv().ok().map(Event::Claim);
        network(self)
            .or_else(|| health(self))
            .or_else(|| cluster(self))
            .or_else(|| request(self))
            .or_else(|| claim(self))
    }
}
