//! A real Kubernetes that `cargo xtask cluster up` started, as `MILLRACE_CLUSTER` names its folder: kubectl, the client
//! outside of it, servers in pods, Services with addresses.
//!
//! `cargo xtask test` starts one for the suite. For a test alone: `cargo xtask cluster up`, then `MILLRACE_CLUSTER` is
//! `target/cluster`.

mod agents;
mod askers;
mod caller;
mod endpoints;
mod nginx;
mod node;
mod space;
mod traffic;
mod undo;
mod wire;

use std::{
    env, fs,
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use lb_userspace::cluster::connect;
use serde_json::Value;
use tokio::runtime;

pub use self::{
    agents::{Agents, with_agents, with_settings, with_tunnels, without_agents},
    askers::{Asker, Met},
    caller::{Call, Caller, Explained},
    endpoints::{Endpoint, Pod},
    nginx::{NGINX, Nginx},
    node::{Stopped, Tracked},
    space::{Entries, Space},
    traffic::{Datagrams, Reach},
    undo::{Filter, Undo},
    wire::NodeWire,
};
use crate::{
    is_root,
    netns::{Netns, run, unique_name},
};

/// From an object's creation to its pods' readiness, or to a rule of kube-proxy's, on two busy cores.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Servers in pods: HTTP and UDP.
pub const PORT: u16 = 8080;

/// VIPs of one test, one of each family.
pub fn vips(number: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([192, 0, 2, number]),
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)]),
    ]
}

/// What `cargo xtask cluster` writes down, in the cluster's folder.
const STATE: &str = "state.json";

/// What is up.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    state: Value,
    /// In a subnet that is not the nodes', behind the router.
    pub client: Netns,
    pub router: Netns,
}

impl Cluster {
    /// The one that the environment names; says what is missing without one.
    fn named() -> Result<Option<Self>> {
        if !is_root() {
            return Ok(None);
        }
        let folder = env::var_os("MILLRACE_CLUSTER").map(PathBuf::from);
        let Some(folder) = folder.filter(|folder| folder.join(STATE).is_file()) else {
            eprintln!("skipped: a cluster in MILLRACE_CLUSTER");
            return Ok(None);
        };
        let path = folder.join(STATE);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let state: Value = serde_json::from_str(&text)?;
        Ok(Some(Self {
            client: place(&state, "client")?,
            router: place(&state, "router")?,
            folder,
            state,
        }))
    }

    /// Something the cluster's state says by name.
    fn fact(&self, name: &str) -> Result<&str> {
        let fact = self.state["facts"][name].as_str();
        fact.with_context(|| format!("the cluster's state has no {name}"))
    }

    /// The mode of the kube-proxy beside our agents, as it calls it itself, or `none`.
    pub fn kube_proxy(&self) -> Result<&str> {
        self.fact("kube-proxy")
    }

    /// A place's own address: `client`, `node1`, …
    pub fn address(&self, place: &str, v6: bool) -> Result<IpAddr> {
        let address = &self.state["places"][place]["addresses"][usize::from(v6)];
        let text = address.as_str().with_context(|| place.to_owned())?;
        Ok(text.parse()?)
    }

    /// Runs kubectl as the administrator; what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.control()?.run(self.command()?.args(arguments))
    }

    /// A list of objects as kubectl gives it.
    fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let answer = self.kubectl(&[&["get", "--output=json"], arguments].concat())?;
        let mut list: Value = serde_json::from_str(&answer)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            other => anyhow::bail!("{arguments:?}: {other}"),
        }
    }

    /// Objects as YAML or JSON, as a user has them applied; what became of each.
    pub fn apply(&self, objects: &str) -> Result<String> {
        self.applied(objects, &[])
    }

    /// The same for objects of a test's own. kubectl does not read the schemas of all kinds first, which is most of its work.
    pub fn put(&self, objects: &Value) -> Result<()> {
        self.applied(&objects.to_string(), &["--validate=false"])
            .map(drop)
    }

    fn applied(&self, objects: &str, options: &[&str]) -> Result<String> {
        let mut command = self.command()?;
        command
            .args(["apply", "--filename", "-"])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = self.control()?.enter(|| -> Result<_> {
            let mut kubectl = command.spawn()?;
            let mut input = kubectl.stdin.take().context("stdin of kubectl")?;
            input.write_all(objects.as_bytes())?;
            drop(input);
            Ok(kubectl.wait_with_output()?)
        })?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl apply: {said}\n{objects}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// kubectl as the administrator; to be run at the control plane.
    fn command(&self) -> Result<Command> {
        let mut command = Command::new(self.fact("kubectl")?);
        command.env("KUBECONFIG", self.fact("kubeconfig")?);
        Ok(command)
    }

    fn control(&self) -> Result<Netns> {
        self.place("control")
    }

    /// The network of a place.
    fn place(&self, name: &str) -> Result<Netns> {
        place(&self.state, name)
    }

    /// Speaks with the API server as the administrator.
    pub fn with_client<T: Send>(
        &self,
        work: impl AsyncFnOnce(Client) -> Result<T> + Send,
    ) -> Result<T> {
        let file = Path::new(self.fact("kubeconfig")?);
        self.control()?.enter(|| {
            let mut runtime = runtime::Builder::new_current_thread();
            runtime
                .enable_all()
                .build()?
                .block_on(async { work(connect(Some(file)).await?).await })
        })
    }

    /// `cargo xtask cluster …`.
    fn xtask(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(self.fact("xtask")?);
        command.args(["cluster", "--folder"]).arg(&self.folder);
        run(command.args(arguments)).map(drop)
    }

    /// A namespace of its own for one test.
    pub fn space(&self, label: &str) -> Result<Space<'_>> {
        let name = unique_name(label);
        self.kubectl(&["create", "namespace", &name])?;
        Ok(Space {
            cluster: self,
            name,
        })
    }
}

fn place(state: &Value, name: &str) -> Result<Netns> {
    let namespace = state["places"][name]["namespace"].as_str();
    Netns::existing(namespace.with_context(|| name.to_owned())?)
}
