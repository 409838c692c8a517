//! The balancer under test: the program `millrace`, driven by its configuration file and its command line.

use std::{
    fmt,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    netns::{Folder, Netns, Process, run, unique_name, until},
    servers::sibling,
};

/// How long the agent may take to load its programs, or to bring a change into the maps. Beside a cluster and an emulated
/// machine a start has taken longer than 20 s on two slow cores.
pub const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nat,
    Ipip,
    L2,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nat => "nat",
            Self::Ipip => "ipip",
            Self::L2 => "l2",
        })
    }
}

/// One service of the configuration file.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    /// As the file has them: `192.0.2.10:80/tcp`.
    pub frontends: Vec<String>,
    pub mode: Mode,
    pub backends: Vec<SocketAddr>,
    /// Whether backends are probed, every 200 ms: two answers make one ready, three silences take it out.
    pub health: bool,
    /// Whether a client address stays with one backend.
    pub affinity: bool,
    pub source_ranges: Vec<String>,
}

impl Service {
    pub fn new(name: &str, mode: Mode, frontends: &[String], backends: &[SocketAddr]) -> Self {
        Self {
            name: name.into(),
            frontends: frontends.into(),
            mode,
            backends: backends.into(),
            health: false,
            affinity: false,
            source_ranges: Vec::new(),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "- name: {}", self.name)?;
        writeln!(f, "  frontends: {:?}", self.frontends)?;
        writeln!(f, "  mode: {}", self.mode)?;
        if self.affinity {
            writeln!(f, "  affinity: {{clientIP: 3h}}")?;
        }
        if !self.source_ranges.is_empty() {
            writeln!(f, "  sourceRanges: {:?}", self.source_ranges)?;
        }
        if self.health {
            writeln!(
                f,
                "  health: {{tcp: {{}}, interval: 200ms, timeout: 150ms, rise: 2, fall: 3}}"
            )?;
        }
        let none = if self.backends.is_empty() { " []" } else { "" };
        writeln!(f, "  backends:{none}")?;
        for backend in &self.backends {
            writeln!(f, "  - {{address: \"{backend}\"}}")?;
        }
        Ok(())
    }
}

/// A configuration file.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub interfaces: Vec<String>,
    /// Ports of the balancer's own addresses for `nat`, `FIRST-LAST`; `None` leaves the default.
    pub nat_ports: Option<String>,
    /// Whether VIPs are announced on the LAN.
    pub announce: bool,
    pub services: Vec<Service>,
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "apiVersion: config.millrace.io/v1alpha1")?;
        writeln!(f, "kind: MillraceConfiguration")?;
        writeln!(f, "interfaces: {:?}", self.interfaces)?;
        if let Some(ports) = &self.nat_ports {
            writeln!(f, "nat: {{ports: {ports}}}")?;
        }
        if self.announce {
            writeln!(f, "announce: {{l2: true}}")?;
        }
        writeln!(
            f,
            "services:{}",
            if self.services.is_empty() { " []" } else { "" }
        )?;
        self.services
            .iter()
            .try_for_each(|service| write!(f, "{service}"))
    }
}

/// A backend as `millrace backends -o json` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendRow {
    pub address: SocketAddr,
    /// `ready`, `drain` or `down`.
    pub state: String,
    pub slots: u64,
}

/// An agent in a namespace, with a folder, a socket and pins of its own. On drop everything is detached and removed.
#[derive(Debug)]
pub struct Balancer {
    netns: Netns,
    folder: Folder,
    pins: PathBuf,
    agent: Option<Process>,
}

impl Balancer {
    /// Everything but a running agent.
    pub fn prepare(netns: &Netns) -> Result<Self> {
        mount_bpffs()?;
        let pins = PathBuf::from("/sys/fs/bpf").join(unique_name("pins"));
        Ok(Self {
            netns: netns.clone(),
            folder: Folder::create("balancer")?,
            pins,
            agent: None,
        })
    }

    /// A running agent that has loaded `configuration`.
    pub fn start(netns: &Netns, configuration: &Configuration) -> Result<Self> {
        let mut balancer = Self::prepare(netns)?;
        balancer.write(&configuration.to_string())?;
        balancer.run()?;
        balancer.wait_for(configuration)?;
        Ok(balancer)
    }

    /// Where the configuration lies.
    pub fn file(&self) -> PathBuf {
        self.folder.file("balancer.yaml")
    }

    /// Replaces the configuration file in one step, as an editor does.
    pub fn write(&self, text: &str) -> Result<()> {
        let new = self.folder.file("balancer.yaml.new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, self.file())?)
    }

    /// Replaces the configuration and waits until the maps hold it.
    pub fn configure(&self, configuration: &Configuration) -> Result<()> {
        self.write(&configuration.to_string())?;
        self.wait_for(configuration)
    }

    /// Starts the agent and waits until it answers.
    pub fn run(&mut self) -> Result<()> {
        self.run_with(&[])
    }

    /// Starts the agent with more arguments and waits until it answers.
    pub fn run_with(&mut self, arguments: &[&str]) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.file("log"))?;
        let mut command = self.run_command()?;
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut agent = self.netns.spawn(&mut command)?;
        until(PATIENCE, || {
            if let Some(status) = agent.exited()? {
                return Err(anyhow::anyhow!("the agent ended: {status}"));
            }
            self.cli(&["status"]).map(drop)
        })
        .with_context(|| self.log())?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Runs an agent that is expected to refuse: its exit code and what it says.
    pub fn refusal(&self) -> Result<(Option<i32>, String)> {
        let log = File::create(self.folder.file("refusal"))?;
        let mut command = self.run_command()?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let status = self.netns.spawn(&mut command)?.wait(PATIENCE)?;
        Ok((
            status.code(),
            fs::read_to_string(self.folder.file("refusal"))?,
        ))
    }

    fn run_command(&self) -> Result<Command> {
        let mut command = self.command()?;
        command.arg("run").arg("--config").arg(self.file());
        Ok(command)
    }

    /// `millrace` with this instance's own places.
    fn command(&self) -> Result<Command> {
        let mut command = Command::new(sibling("millrace")?);
        command.env("MILLRACE_PIN_ROOT", &self.pins);
        command.env("MILLRACE_RUN_FOLDER", self.run_folder());
        command.env("MILLRACE_SOCKET", self.folder.file("millrace.sock"));
        Ok(command)
    }

    /// SIGKILL, with no time to tidy up.
    pub fn kill(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.kill()
    }

    /// SIGTERM, as a service manager stops it.
    pub fn stop(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        agent
            .terminate(PATIENCE)
            .with_context(|| self.log())
            .map(drop)
    }

    /// Whether anything is pinned.
    pub fn has_pins(&self) -> bool {
        self.pins.exists()
    }

    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Where locks, marks and changes of the host are kept.
    pub fn run_folder(&self) -> PathBuf {
        self.folder.file("run")
    }

    /// What the agent has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.file("log")).unwrap_or_default()
    }

    /// `millrace ARGUMENTS`, whatever its exit code.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command()?;
        command.args(arguments);
        self.netns.output(&mut command)
    }

    /// `millrace ARGUMENTS`, which must succeed: what it prints.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "millrace {arguments:?}: {}: {said}",
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `millrace ARGUMENTS -o json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.cli(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| text)
    }

    pub fn backends(&self, service: &str) -> Result<Vec<BackendRow>> {
        let rows = self.json(&["backends", service])?;
        let rows = rows
            .as_array()
            .with_context(|| format!("no list: {rows}"))?;
        rows.iter()
            .map(|row| {
                let text = |key: &str| {
                    row[key]
                        .as_str()
                        .with_context(|| format!("no {key} in {row}"))
                };
                Ok(BackendRow {
                    address: text("backend")?.parse()?,
                    state: text("state")?.into(),
                    slots: row["slots"].as_u64().context("slots")?,
                })
            })
            .collect()
    }

    /// Waits until each service has exactly the backends of `configuration`, all of them ready.
    pub fn wait_for(&self, configuration: &Configuration) -> Result<()> {
        until(PATIENCE, || {
            for service in &configuration.services {
                let mut expected = service.backends.clone();
                expected.sort_unstable();
                let rows = self.backends(&service.name)?;
                let mut ready: Vec<_> = rows
                    .iter()
                    .filter(|row| row.state == "ready")
                    .map(|row| row.address)
                    .collect();
                ready.sort_unstable();
                ensure!(
                    ready == expected,
                    "{}: {rows:?}, not {expected:?}",
                    service.name
                );
            }
            Ok(())
        })
        .with_context(|| self.log())
    }

    /// Waits until a backend is in `state` and the table has followed.
    pub fn wait_for_state(&self, service: &str, backend: SocketAddr, state: &str) -> Result<()> {
        until(PATIENCE, || {
            let rows = self.backends(service)?;
            let row = rows
                .iter()
                .find(|row| row.address == backend)
                .context("no such backend")?;
            let has_slots = row.slots > 0;
            ensure!(
                row.state == state && has_slots == (state == "ready"),
                "{row:?}"
            );
            Ok(())
        })
        .with_context(|| self.log())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.agent.take());
        drop(self.output(&["detach"]));
        drop(fs::remove_dir_all(&self.pins));
        if std::thread::panicking() {
            eprintln!("log of the agent:\n{}", self.log());
        }
    }
}

fn mount_bpffs() -> Result<()> {
    if fs::read_to_string("/proc/mounts")?
        .lines()
        .any(|line| line.contains(" /sys/fs/bpf bpf "))
    {
        return Ok(());
    }
    run(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"])).map(drop)
}
