//! A real Kubernetes that `cargo xtask cluster up` started, as `MILLRACE_CLUSTER` names its folder: kubectl, the client
//! outside of it, servers in pods, Services with addresses.
//!
//! `cargo xtask test` starts one for the suite. For a test alone: `cargo xtask cluster up`, then `MILLRACE_CLUSTER` is
//! `target/cluster`.

pub mod agents;

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    clients::curl,
    is_root,
    netns::{Netns, unique_name, until},
};

/// From an object's creation to its pods' readiness, or to a rule of kube-proxy's, on two busy cores.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Servers in pods: HTTP and UDP.
pub const PORT: u16 = 8080;

/// What is up.
#[derive(Debug)]
pub struct Cluster {
    state: Value,
    /// In a subnet that is not the nodes', behind the router.
    pub client: Netns,
    pub router: Netns,
}

impl Cluster {
    /// The one that the environment names; says what is missing without one.
    pub fn named() -> Result<Option<Self>> {
        if !is_root() {
            return Ok(None);
        }
        let folder = env::var_os("MILLRACE_CLUSTER").map(PathBuf::from);
        let state = folder.map(|folder| folder.join("state.json"));
        let Some(path) = state.filter(|path| path.is_file()) else {
            eprintln!("skipped: a cluster in MILLRACE_CLUSTER");
            return Ok(None);
        };
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let state: Value = serde_json::from_str(&text)?;
        let netns = |place: &str| {
            let name = state["places"][place]["namespace"].as_str();
            Netns::existing(name.context("a namespace's name")?)
        };
        Ok(Some(Self {
            client: netns("client")?,
            router: netns("router")?,
            state,
        }))
    }

    /// Something the cluster's state says by name.
    fn fact(&self, name: &str) -> Result<&str> {
        let fact = self.state["facts"][name].as_str();
        fact.with_context(|| format!("the cluster's state has no {name}"))
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

    /// Objects as YAML or JSON.
    pub fn apply(&self, objects: &str) -> Result<()> {
        let mut command = self.command()?;
        command
            .args(["apply", "--filename", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
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
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(self.fact("kubectl")?);
        command.args(["--kubeconfig", self.fact("kubeconfig")?]);
        Ok(command)
    }

    fn control(&self) -> Result<Netns> {
        let name = self.state["places"]["control"]["namespace"].as_str();
        Netns::existing(name.context("control")?)
    }

    /// Sends everything for an address to one node.
    pub fn route(&self, vip: IpAddr, node: &str) -> Result<()> {
        let gateway = self.address(node, vip.is_ipv6())?;
        let command = format!("route replace {vip} via {gateway}");
        self.router.ip([command.as_str()])
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

/// A Kubernetes namespace, deleted on drop.
#[derive(Debug)]
pub struct Space<'a> {
    cluster: &'a Cluster,
    pub name: String,
}

impl Space<'_> {
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let own = ["--namespace", &self.name];
        let whole: Vec<_> = own.iter().chain(arguments).copied().collect();
        self.cluster.kubectl(&whole)
    }

    /// A Deployment of servers, spread over the nodes, all of them ready. Each answers `/hostname` with its pod's name
    /// and `/clientip` with the address that it sees.
    pub fn servers(&self, name: &str, replicas: usize) -> Result<()> {
        let labels = json!({"app": name});
        let deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": self.name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "terminationGracePeriodSeconds": 5,
                        "topologySpreadConstraints": [{
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "DoNotSchedule",
                            "labelSelector": {"matchLabels": labels},
                        }],
                        "containers": [{
                            "name": "server",
                            "image": self.cluster.fact("server image")?,
                            "imagePullPolicy": "Never",
                            "args": ["netexec", format!("--http-port={PORT}"), format!("--udp-port={PORT}")],
                            "readinessProbe": {
                                "httpGet": {"path": "/healthz", "port": PORT},
                                "periodSeconds": 1,
                            },
                        }],
                    },
                },
            },
        });
        self.cluster.apply(&deployment.to_string())?;
        let rollout = format!("deployment/{name}");
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["rollout", "status", &rollout, &timeout])?;
        Ok(())
    }

    /// Names of the pods of a Deployment; on one node, or on all.
    pub fn pods(&self, name: &str, node: Option<&str>) -> Result<BTreeSet<String>> {
        let selector = format!("--selector=app={name}");
        let answer = self.kubectl(&["get", "pods", &selector, "--output=json"])?;
        let list: Value = serde_json::from_str(&answer)?;
        let items = list["items"].as_array().context("a list of pods")?;
        let wanted = |pod: &&Value| node.is_none_or(|node| pod["spec"]["nodeName"] == node);
        let names = items.iter().filter(wanted);
        names
            .map(|pod| {
                Ok(pod["metadata"]["name"]
                    .as_str()
                    .context("a name")?
                    .to_owned())
            })
            .collect()
    }

    /// A Service of type `LoadBalancer` for a Deployment of the same name, TCP and UDP 80 on these addresses, which are
    /// put into its status as an allocator would. `more` are further fields of its spec.
    pub fn service(&self, name: &str, vips: &[IpAddr], more: &Value) -> Result<()> {
        let port = |protocol: &str| {
            json!({
                "name": protocol.to_lowercase(),
                "protocol": protocol,
                "port": 80,
                "targetPort": PORT,
            })
        };
        let mut spec = json!({
            "type": "LoadBalancer",
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": name},
            "ports": [port("TCP"), port("UDP")],
        });
        let fields = spec.as_object_mut().context("a spec")?;
        fields.extend(more.as_object().context("fields")?.clone());
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": self.name},
            "spec": spec,
        });
        self.cluster.apply(&service.to_string())?;
        self.addresses(name, vips)
    }

    /// Puts addresses into a Service's status, instead of those that are there.
    pub fn addresses(&self, name: &str, vips: &[IpAddr]) -> Result<()> {
        let ingress: Vec<_> = vips.iter().map(|vip| json!({"ip": vip})).collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
        let patch = [
            "patch",
            "service",
            name,
            "--subresource=status",
            "--type=merge",
        ];
        self.kubectl(&[&patch[..], &["--patch", &status]].concat())?;
        Ok(())
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", &self.name, "--wait=false"];
        if let Err(error) = self.cluster.kubectl(&delete) {
            eprintln!("{error:#}");
        }
    }
}

/// What a server in a pod says to `GET path`.
pub fn get(client: &Netns, server: SocketAddr, path: &str) -> Result<String> {
    let mut url = String::new();
    write!(url, "http://{server}/{path}")?;
    curl(client, &["--connect-timeout", "5", &url])
}

/// What it says to a datagram: `hostname` or `clientip`.
pub fn ask(client: &Netns, server: SocketAddr, question: &str) -> Result<String> {
    client.enter(|| {
        let own = match server {
            SocketAddr::V4(_) => "0.0.0.0:0",
            SocketAddr::V6(_) => "[::]:0",
        };
        let socket = UdpSocket::bind(own)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(server)?;
        socket.send(question.as_bytes())?;
        let mut answer = [0; 256];
        let length = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    })
}

/// Waits until a server answers at all: kube-proxy may not know it yet.
pub fn wait_for(client: &Netns, server: SocketAddr) -> Result<()> {
    until(PATIENCE, || get(client, server, "hostname").map(drop))
}
