//! The agent's tasks, their order at the start, and its end. Ending takes nothing out of the kernel: programs, maps and
//! links are pinned and go on forwarding.

mod followed;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use aya_log::EbpfLogger;
use tokio::{
    net::TcpListener,
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
    time::{Instant, interval, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::followed::{Followed, agents, follow_cluster, node_name};
use crate::{
    announce::{Claim, Packets},
    attach::{self, Clock, Installation},
    cli::{Exit, ExitWith as _, Failure},
    cluster,
    config::{Config, ConfigErrors},
    dataplane::Bpf,
    desired,
    health::{Prober, Tcp},
    memory,
    net::{self, Facts},
    notify::{Manager, Phase},
    observe::{self, HealthPorts, MetricsEnd, Socket, SocketError},
    privileges,
    reconcile::{
        self, About, Announcing, DrainFile, Engine, Inputs, Outputs, Reconciler, Replies, Report,
        Start, TrialFile, Uplinks,
    },
    state::Handle,
};

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: PathBuf,
    pub pin_root: PathBuf,
    pub run_folder: PathBuf,
    pub socket: PathBuf,
    /// aya-log's level of the packet path; 0: off.
    pub packet_log: u8,
    /// How long to go on unless someone confirms; none: for good.
    pub trial: Option<Duration>,
}

/// The kernel answers the first dump in milliseconds.
const FIRST_FACTS: Duration = Duration::from_secs(10);

/// Health checks under way at most, whatever the number of descriptors.
const MOST_CHECKS: u64 = 4096;

/// An agent that was there before knew which backends were down; how long to wait for as much.
const FIRST_CHECKS: Duration = Duration::from_secs(5);

/// Warnings that wait to become events.
const WARNINGS: usize = 1024;

/// Between two looks into the packet path's log; its buffer holds some thousand messages.
const PACKET_LOG_PERIOD: Duration = Duration::from_millis(20);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, with its exit code. Later trouble is logged, shown and tried again.
pub fn run(options: &Options) -> Result<(), Failure> {
    memory::give_back();
    let file = options.config.display().to_string();
    let text = reconcile::read(&options.config)
        .map_err(anyhow::Error::msg)
        .exit(Exit::Usage)?;
    let config = Config::parse(&text, &file).exit(Exit::Usage)?;
    let installation = Installation::open(&attach::Options {
        pin_root: options.pin_root.clone(),
        run_folder: options.run_folder.clone(),
        limits: config.limits,
        log_level: options.packet_log,
        tunnels: config.kubernetes.is_some(),
        ..attach::Options::default()
    })?;
    let descriptors = privileges::raise_descriptor_limit();
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(|| {
            if let Err(error) = privileges::drop_unneeded() {
                tracing::error!(%error, "capabilities stay");
            }
        })
        .enable_all()
        .build()
        .context("runtime")?;
    let begun = Begun {
        options,
        file,
        text,
        config,
        installation,
        checks: (descriptors / 2).min(MOST_CHECKS) as usize,
    };
    runtime.block_on(begun.serve())
}

/// What was done before there were tasks.
struct Begun<'a> {
    options: &'a Options,
    file: String,
    text: String,
    config: Config,
    installation: Installation,
    checks: usize,
}

impl Begun<'_> {
    async fn serve(self) -> Result<(), Failure> {
        let Self {
            options,
            file,
            text,
            config,
            installation,
            checks,
        } = self;
        let begin = Instant::now();
        let stop = CancellationToken::new();
        let again = Arc::new(Notify::new());
        watch_signals(&stop, &again).context("signals")?;

        let (packets, claims) = announcing(&config)?;
        let node = node_name(&config);
        let namespace = std::env::var("POD_NAMESPACE").ok();
        let agents = namespace.as_deref().and_then(agents);
        let Followed {
            changes,
            ends,
            health_ports,
        } = follow_cluster(&config, &node, namespace).await?;
        let sources = spawn_sources(options, text, checks, &again, claims, changes);
        let (mut inputs, mut outputs, requests) = sources;
        outputs.cluster = ends;
        let mut facts = first_facts(&mut inputs).await?;
        facts.masquerades = reconcile::masquerades();
        let refusals = desired::check(&config, &facts);
        if !refusals.is_empty() {
            let errors = ConfigErrors {
                file,
                errors: refusals,
            };
            return Err(Failure::new(Exit::Usage, errors));
        }
        let socket = Socket::bind(&options.socket).map_err(|error| {
            let exit = match error {
                SocketError::InUse(_) => Exit::SecondAgent,
                _ => Exit::Failed,
            };
            Failure::new(exit, error)
        })?;
        let (drain_file, drains) = DrainFile::open(&options.socket.with_extension("drains.json"));
        let clock = Arc::new(Clock::load().context("the kernel's clock")?);
        let hz = clock.rate().context("measuring the kernel's clock")?;
        let adopted = !installation.is_fresh();
        if let Some(before) = installation.replaces() {
            tracing::warn!(
                abi = before.abi,
                why = before.why,
                flows = before.flows,
                "new maps take the place of others; nat flows in those break"
            );
        }
        let dataplane: Bpf = installation.dataplane().exit(Exit::ForeignPin)?;
        let start = Start {
            hash_key: config.cluster_key.map(|key| key.0),
            config,
            facts,
            drains,
            hz,
            node: node.clone(),
            agents,
        };
        let mut engine = Engine::start(start, dataplane).context("reading the maps")?;
        if installation.replaces().is_some_and(|before| before.bypass) {
            engine.set_bypass(true, 0);
        }
        let now = || clock.now().context("the kernel's clock");
        let begun = now()?;
        let trial_file = options.socket.with_extension("trial.json");
        let (trial_file, trial) =
            TrialFile::begin(&trial_file, &engine, adopted, begun, options.trial)
                .with_context(|| trial_file.display().to_string())?;
        if engine.bypass(begun).is_none() {
            // What is served goes on being served while it is brought up to date; what has expired waits for that.
            engine.begin(begun, trial).context("sign of life")?;
        }
        let (report, state) = Report::new(About {
            node,
            cluster: engine.objects().is_some(),
            keys: engine
                .objects()
                .is_some_and(|objects| objects.options().agents.is_some()),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            file: short(&options.config),
        });
        outputs
            .checks
            .send(engine.all_assignments())
            .await
            .context("health checks")?;
        if adopted {
            first_checks(&mut engine, &mut inputs).await;
        }
        let interfaces = engine.config().interfaces.clone();
        let announcing = Announcing::start(&engine, packets);
        let mut reconciler = Reconciler {
            announcing,
            replies: Replies::default(),
            engine,
            uplinks: Uplinks::default(),
            installation,
            clock: Arc::clone(&clock),
            report,
            drain_file,
            trial_file,
            file,
            outputs,
        };
        reconciler.report.config_read(&reconciler.engine);
        let expected = Uplinks::expected(reconciler.engine.facts(), &interfaces);
        reconciler.engine.set_attached(expected);
        reconciler.flush(begin).context("filling the maps")?;
        let begun = now()?;
        reconciler
            .engine
            .begin(begun, trial)
            .context("sign of life")?;
        reconciler.report.bypass(&reconciler.engine, begun);
        if let Some(left) = reconciler.engine.trial_left(begun) {
            tracing::warn!(
                "on trial: everything passes in {left:.0?} unless `millrace confirm` is given"
            );
        }
        reconciler.uplinks = Uplinks::start(
            &mut reconciler.installation,
            reconciler.engine.facts(),
            reconciler.engine.config(),
        )?;
        drop_privileges(&options.config)?;
        let metrics = match metrics_end(reconciler.engine.config()).await {
            Err(error) if !adopted => {
                // As it was before.
                reconciler.uplinks.leave(&reconciler.installation)?;
                return Err(error);
            }
            end => end?,
        };
        match reconciler.installation.retire() {
            Ok(0) => {}
            Ok(sets) => tracing::info!(sets, "maps of another version removed"),
            Err(error) => tracing::warn!(%error, "maps of another version stay"),
        }
        reconciler.note_interfaces();
        reconciler.report.publish(&reconciler.engine);

        let sources = observe::Sources {
            agent: Handle {
                state,
                commands: requests,
            },
            maps: reconciler.installation.maps().to_owned(),
            clock,
        };
        if let Some((who, checks, warnings)) = health_ports {
            let ports = HealthPorts {
                who,
                checks,
                state: sources.agent.state.clone(),
                warnings,
            };
            tokio::spawn(ports.serve(stop.clone()));
        }
        let observing = {
            let stop = stop.clone();
            tokio::spawn(async move { observe::serve(sources, socket, metrics, stop).await })
        };
        if options.packet_log > 0 {
            read_packet_log(&mut reconciler.installation);
        }
        tracing::info!(took = ?begin.elapsed(), adopted, "serving");
        notify(Phase::Ready);
        Box::pin(reconciler.run(inputs, stop)).await;
        notify(Phase::Stopping);
        // Answers under way are given; the socket's file goes.
        match timeout(Duration::from_secs(2), observing).await {
            Ok(Ok(Err(error))) => tracing::error!(%error, "admin socket"),
            Ok(Err(error)) => tracing::error!(%error, "admin socket"),
            _ => {}
        }
        tracing::info!("ended; what is attached goes on forwarding");
        Ok(())
    }
}

/// A service manager that cannot be told ends us by itself if it minds.
fn notify(phase: Phase) {
    if let Err(error) = Manager::from_environment().and_then(|manager| manager.tell(phase)) {
        tracing::warn!(%error, ?phase, "NOTIFY_SOCKET: the service manager was not told");
    }
}

/// Of this thread, the last that had them all: only with `CAP_SYS_ADMIN` does the kernel tell the names of programs that
/// are in the way.
fn drop_privileges(config: &Path) -> Result<(), Failure> {
    let kept = privileges::drop_unneeded()
        .context("dropping capabilities")
        .exit(Exit::Privileges)?;
    tracing::info!(capabilities = kept, "privileges dropped");
    if let Err(error) = reconcile::read(config) {
        tracing::warn!("changes of the config will not be seen: {error}");
    }
    Ok(())
}

fn watch_signals(stop: &CancellationToken, again: &Arc<Notify>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let (stop, again) = (stop.clone(), Arc::clone(again));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return stop.cancel(),
                _ = interrupt.recv() => return stop.cancel(),
                _ = hang_up.recv() => again.notify_one(),
            }
        }
    });
    Ok(())
}

fn spawn_sources(
    options: &Options,
    text: String,
    checks: usize,
    again: &Arc<Notify>,
    claims: mpsc::Receiver<Claim>,
    cluster: mpsc::Receiver<Vec<cluster::facts::Change>>,
) -> (Inputs, Outputs, mpsc::Sender<crate::state::Request>) {
    let (network_in, network) = mpsc::channel(64);
    let (pokes, pokes_out) = mpsc::channel(4);
    tokio::spawn(net::follow(net::xdp_send, network_in, pokes_out));

    let (health_in, health) = mpsc::channel(64);
    let (checks_in, checks_out) = mpsc::channel(4);
    tokio::spawn(Prober::new(Tcp, checks).run(checks_out, health_in));

    let (config_in, config) = mpsc::channel(1);
    let (path, again) = (options.config.clone(), Arc::clone(again));
    tokio::spawn(async move { reconcile::watch(path, text, &again, config_in).await });

    let (requests_in, requests) = mpsc::channel(16);
    let inputs = Inputs {
        network,
        health,
        config,
        cluster,
        requests,
        claims,
    };
    let outputs = Outputs {
        checks: checks_in,
        pokes,
        cluster: None,
    };
    (inputs, outputs, requests_in)
}

/// What announcing needs: sockets, if it is asked for, and what they hear.
fn announcing(config: &Config) -> Result<(Option<Packets>, mpsc::Receiver<Claim>), Failure> {
    let (claims_in, claims) = mpsc::channel(64);
    if !config.announce_l2 {
        return Ok((None, claims));
    }
    let (packets, listener) = Packets::open()
        .context("packet sockets, which announce.l2 needs: give the process CAP_NET_RAW, or write announce: {l2: false}")
        .exit(Exit::Privileges)?;
    tokio::spawn(async move {
        if let Err(error) = listener.run(claims_in).await {
            tracing::error!(%error, "hosts that claim a VIP are not noticed any more");
        }
    });
    Ok((Some(packets), claims))
}

async fn first_facts(inputs: &mut Inputs) -> Result<Facts, Failure> {
    let first = timeout(FIRST_FACTS, inputs.network.recv()).await;
    let updates = first
        .ok()
        .flatten()
        .ok_or_else(|| anyhow!("the kernel tells nothing of its network within {FIRST_FACTS:?}"))?;
    let mut facts = Facts::default();
    for update in updates {
        facts.apply(update);
    }
    Ok(facts)
}

/// Takes in what the first checks find, so that adopted maps do not get backends back that are down.
async fn first_checks(engine: &mut Engine<Bpf>, inputs: &mut Inputs) {
    let Some(longest) = engine.first_checks_take() else {
        return;
    };
    let deadline = Instant::now() + longest.min(FIRST_CHECKS);
    while let Ok(Some(changes)) = timeout_at(deadline, inputs.health.recv()).await {
        engine.health(changes);
    }
}

/// What the packet path logs comes as events of ours.
fn read_packet_log(installation: &mut Installation) {
    let mut log = match EbpfLogger::init(installation.ebpf()) {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!(%error, "no log of the packet path");
            return;
        }
    };
    tokio::spawn(async move {
        let mut looks = interval(PACKET_LOG_PERIOD);
        loop {
            looks.tick().await;
            log.flush();
        }
    });
}

/// After attaching: who serves the interface already says more than who holds the port.
async fn metrics_end(config: &Config) -> Result<Option<MetricsEnd>, Failure> {
    let listen = config.metrics.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("metrics.listen {listen}: give another address or port, or stop who listens there")
    })?;
    Ok(Some(MetricsEnd {
        listener,
        per_backend: config.metrics.per_backend,
    }))
}

fn short(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}
