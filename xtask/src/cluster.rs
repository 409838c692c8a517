//! `cargo xtask cluster`: a real Kubernetes on this machine, in network namespaces.
//!
//! In: Kubernetes' own programs, built once; containerd, runc, CNI plugins of the distribution. Out: a control plane,
//! nodes, a client in another subnet behind a router, kubectl. Nothing of it touches the machine's own network. What is
//! running is written down in a folder below `target/`, and `down` ends exactly that.

mod bridge;
mod cgroups;
mod configs;
mod control;
mod flannel;
mod images;
mod layout;
mod modules;
mod network;
mod nic;
mod node;
mod pki;
mod process;
mod programs;
mod state;

use crate::{Outcome, cargo, setup};
use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use layout::{MOST_NODES, Node};
use process::until;
use programs::Programs;
use serde_json::Value;
use state::State;
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Its folder, if it is not `cluster` below the target folder
    #[arg(long, env = "MILLRACE_CLUSTER", value_name = "FOLDER")]
    folder: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Start a cluster and wait until its nodes are ready
    Up(Up),
    /// End the cluster and remove what it left
    Down,
    /// Run kubectl as the cluster's administrator
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run a command at a place: `client`, `router`, `control`, `node1`, …
    At {
        place: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Kill one of its programs: `kube-apiserver`, `etcd`, `node1-kubelet`, …
    Stop { program: String },
    /// Start it again
    Start { program: String },
    /// Bring an image from a docker-archive to all nodes
    LoadImage { file: PathBuf },
}

#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Up {
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    pub(crate) nodes: u8,
    /// What serves Services without us
    #[arg(long, value_enum, default_value_t = KubeProxy::Nftables)]
    pub(crate) kube_proxy: KubeProxy,
    /// How pods of different nodes reach each other
    #[arg(long, value_enum, default_value_t = Cni::Bridge)]
    pub(crate) cni: Cni,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KubeProxy {
    Nftables,
    Iptables,
    None,
}

impl KubeProxy {
    /// As kube-proxy itself calls it.
    fn mode(self) -> Option<&'static str> {
        match self {
            Self::Nftables => Some("nftables"),
            Self::Iptables => Some("iptables"),
            Self::None => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cni {
    /// A route to each node's pods
    Bridge,
    /// vxlan; flannel is built at first use
    Flannel,
}

/// From the kubelet's start to a node that is ready, on two busy cores; alone it takes 5 s.
const PATIENCE: Duration = Duration::from_mins(2);

pub(crate) fn run(args: Args) -> Outcome {
    let folder = match args.folder {
        Some(folder) => std::path::absolute(folder)?,
        None => folder("cluster")?,
    };
    match args.verb {
        Verb::Up(wanted) => {
            setup::ensure_for_cluster()?;
            up(&folder, wanted)?;
            eprintln!(
                "cluster: `cargo xtask cluster kubectl get nodes`, `cargo xtask cluster at client curl …`"
            );
        }
        Verb::Down => down(&folder)?,
        Verb::Kubectl { arguments } => {
            let mut kubectl = control::kubectl_command(&running(&folder)?)?;
            return Ok(cargo::exit_code(kubectl.args(arguments).status()?));
        }
        Verb::At { place, command } => {
            let state = running(&folder)?;
            let node = state.layout.nodes().find(|node| node.name() == place);
            let mut command = match node {
                Some(node) => node::command(&state, node, &command)?,
                None if state.layout.places().any(|known| known == place) => {
                    network::inside(&state.layout, &place, command)
                }
                None => {
                    let places: Vec<_> = state.layout.places().collect();
                    bail!("no place `{place}`: one of {}", places.join(", "));
                }
            };
            return Ok(cargo::exit_code(command.status()?));
        }
        Verb::Stop { program } => {
            let state = running(&folder)?;
            let process = state.process(&program)?;
            node::end(&state.layout, process)?;
        }
        Verb::Start { program } => {
            let mut state = running(&folder)?;
            let process = state.process(&program)?;
            ensure!(!process.alive(), "{program} runs already");
            let again = process.again(&state.layout.file(&format!("log/{program}")))?;
            state.started(again)?;
        }
        Verb::LoadImage { file } => load(&folder, &std::path::absolute(file)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A cluster's folder, by its name below `target/`.
pub(crate) fn folder(name: &str) -> Result<PathBuf> {
    Ok(cargo::target_dir()?.join(name))
}

/// What this machine lacks and set-up does not bring; none where nothing is lacking.
pub(crate) fn need(cni: Cni) -> Result<Option<String>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Some("root".to_owned()));
    }
    Programs::need(cni)
}

/// Builds what [`up`] would build first.
pub(crate) fn provide(cni: Cni) -> Result<()> {
    Programs::provide(cni).map(drop)
}

/// Starts a cluster in a folder that has none.
pub(crate) fn up(folder: &Path, wanted: Up) -> Result<()> {
    if let Some(need) = need(wanted.cni)? {
        bail!("a cluster needs {need}");
    }
    ensure!(
        State::read(folder)?.is_none(),
        "a cluster is up already: `cargo xtask cluster down` ends it"
    );
    let mut state = State::new(folder, wanted.nodes);
    network::ensure_unused(&state.layout)?;
    let programs = Programs::provide(wanted.cni)?;
    let images = images::provide(&programs)?;
    let begun = Instant::now();
    let log = folder.join("log");
    fs::create_dir_all(&log).with_context(|| log.display().to_string())?;
    // Who starts and stops programs for tests.
    state.tell("xtask", text(&env::current_exe()?)?);
    state.tell("kubectl", text(&programs.file("kubectl")?)?);
    state.tell(
        "kubeconfig",
        text(&pki::kubeconfig(&state.layout, "admin"))?,
    );
    state.tell("kube-proxy", wanted.kube_proxy.mode().unwrap_or("none"));
    state.tell("server image", images.server.name.as_str());
    state.save()?;
    let started = start(&mut state, &programs, &images, wanted);
    started.with_context(|| {
        format!(
            "logs are in {}; `cargo xtask cluster down` ends what runs",
            log.display()
        )
    })?;
    eprintln!(
        "cluster: {} nodes with Kubernetes {} are ready after {:.0} s",
        wanted.nodes,
        programs::KUBERNETES.version,
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

fn start(
    state: &mut State,
    programs: &Programs,
    images: &images::Images,
    wanted: Up,
) -> Result<()> {
    let layout = state.layout.clone();
    network::lay(&layout)?;
    if wanted.kube_proxy == KubeProxy::None {
        network::apply(&layout, &layout::api_without_proxy(&layout))?;
    }
    pki::make(&layout)?;
    for node in layout.nodes() {
        node::hold(state, node, &images.pause.name)?;
    }
    control::start(state, programs, wanted.cni)?;
    for node in layout.nodes() {
        node::import(state, node, &images.pause.archive)?;
        node::join(state, programs, node, wanted.kube_proxy)?;
    }
    match wanted.cni {
        Cni::Bridge => bridge::start(state)?,
        Cni::Flannel => flannel::start(state, programs)?,
    }
    for node in layout.nodes() {
        node::import(state, node, &images.server.archive)?;
        wait_for(state, node)?;
    }
    control::wait(state)
}

fn wait_for(state: &State, node: Node) -> Result<()> {
    let name = node.name();
    until(PATIENCE, || {
        for program in ["containerd", "kubelet"] {
            control::ended(state, &format!("{name}-{program}"))?;
        }
        let answer = control::kubectl(state, &["get", "node", &name, "-o", "json"])?;
        let found: Value = serde_json::from_slice(&answer).context("kubectl")?;
        let conditions = found["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == "Ready")
            .with_context(|| format!("{name} says nothing of itself"))?;
        ensure!(ready["status"] == "True", "{name}: {}", ready["message"]);
        Ok(())
    })
}

/// Ends what runs and removes the folder; nothing happens where no cluster is.
pub(crate) fn down(folder: &Path) -> Result<()> {
    let Some(state) = State::read(folder)? else {
        return Ok(());
    };
    // In this order: a node's first process was started before all others in it, which end with it.
    for process in &state.processes {
        process.kill()?;
    }
    for node in state.layout.nodes() {
        node::forget(&state.layout, node)?;
    }
    network::remove(&state.layout)?;
    fs::remove_dir_all(folder).with_context(|| folder.display().to_string())
}

/// Brings an image to all nodes of the cluster in a folder.
pub(crate) fn load(folder: &Path, archive: &Path) -> Result<()> {
    let state = running(folder)?;
    for node in state.layout.nodes() {
        node::import(&state, node, archive)?;
    }
    Ok(())
}

fn running(folder: &Path) -> Result<State> {
    let state = State::read(folder)?;
    state.context("no cluster is up: `cargo xtask cluster up`")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is no text", path.display()))
}
