//! Nodes and programs of the cluster: what a node's kernel has, and what it is like when a program is away.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{Cluster, PATIENCE};
use crate::netns::{run, until};

impl Cluster {
    /// Names of all nodes.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let places = self.state["places"].as_object().context("places")?;
        let nodes: Vec<_> = places
            .keys()
            .filter(|name| name.starts_with("node"))
            .cloned()
            .collect();
        ensure!(!nodes.is_empty(), "no nodes");
        Ok(nodes)
    }

    /// A command in a node's network, mounts and processes; its own words are to be added.
    pub fn on_node(&self, node: &str) -> Result<Command> {
        let init = &self.state["facts"][format!("{node} init")];
        let init = init.as_i64().with_context(|| node.to_owned())?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={init}"));
        command.args(["--net", "--uts", "--mount", "--pid", "--"]);
        Ok(command)
    }

    /// What a server in a pod says to a process of a node's own.
    pub fn get_at(&self, node: &str, server: SocketAddr, path: &str) -> Result<String> {
        let url = format!("http://{server}/{path}");
        let curl = [
            "curl",
            "-sS",
            "--fail",
            "--globoff",
            "--max-time",
            "5",
            &url,
        ];
        run(self.on_node(node)?.args(curl))
    }

    /// Sends everything for an address to one node.
    pub fn route(&self, vip: IpAddr, node: &str) -> Result<()> {
        let gateway = self.address(node, vip.is_ipv6())?;
        let command = format!("route replace {vip} via {gateway}");
        self.router.ip([command.as_str()])
    }

    /// Makes all nodes forget packets to a VIP that came before kube-proxy knew it. Connection tracking keeps each of them
    /// for two minutes as a connection that is not translated, and a SYN from the same port would go nowhere until then.
    pub(super) fn forget_early_packets(&self, vip: IpAddr) -> Result<()> {
        let v6 = vip.is_ipv6();
        let vip = vip.to_string();
        let untranslated = ["--orig-dst", &vip, "--reply-src", &vip];
        for node in self.nodes()? {
            let mut delete = self.conntrack(&node, "--delete", v6)?;
            delete_all(delete.args(untranslated)).context(node)?;
        }
        Ok(())
    }

    /// A node's connection tracking of one family; what it is to be asked about is to be added.
    pub fn conntrack(&self, node: &str, verb: &str, v6: bool) -> Result<Command> {
        let family = if v6 { "ipv6" } else { "ipv4" };
        let mut command = self.on_node(node)?;
        command.args(["conntrack", verb, "--family", family]);
        Ok(command)
    }

    /// Open connections over TCP from a client's port, as a node's connection tracking has them.
    pub fn tracked(&self, node: &str, from: SocketAddr) -> Result<Vec<Tracked>> {
        self.open(node, from, ["--orig-src", "--orig-port-src"])
    }

    /// The same of connections to his port.
    pub fn tracked_to(&self, node: &str, to: SocketAddr) -> Result<Vec<Tracked>> {
        self.open(node, to, ["--orig-dst", "--orig-port-dst"])
    }

    /// `end`: what it is called of a connection.
    fn open(&self, node: &str, client: SocketAddr, end: [&str; 2]) -> Result<Vec<Tracked>> {
        let (address, port) = (client.ip().to_string(), client.port().to_string());
        let mut dump = self.conntrack(node, "--dump", client.is_ipv6())?;
        let open = ["--proto", "tcp", "--state", "ESTABLISHED"];
        let listed = run(dump.args(open).args([end[0], &address, end[1], &port]))?;
        listed.lines().map(Tracked::read).collect()
    }

    /// Makes a node forget a client's connection over TCP.
    pub fn forget(&self, node: &str, from: SocketAddr) -> Result<()> {
        let (address, port) = (from.ip().to_string(), from.port().to_string());
        let of = ["--orig-src", &address, "--orig-port-src", &port];
        let mut delete = self.conntrack(node, "--delete", from.is_ipv6())?;
        delete_all(delete.args(["--proto", "tcp"]).args(of))
    }

    /// BPF programs at interfaces, and pins: what someone who removed everything of his leaves as it was.
    pub fn programs_and_pins(&self, node: &str) -> Result<String> {
        let programs = run(self.on_node(node)?.args(["bpftool", "net", "show"]))?;
        let pins = run(self.on_node(node)?.args(["find", "/sys/fs/bpf"]))?;
        Ok(format!("{programs}\n{pins}"))
    }

    /// Waits until the API server says so of a node.
    pub fn wait_for_node(&self, node: &str, ready: bool) -> Result<()> {
        until(PATIENCE, || {
            let path = "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}";
            let status = self.kubectl(&["get", "node", node, path])?;
            ensure!((status == "True") == ready, "{node}: {status}");
            Ok(())
        })
    }

    /// Kills a program: `kube-apiserver`, `etcd`, `node1-kubelet`, …
    pub fn stop(&self, program: &str) -> Result<Stopped<'_>> {
        self.xtask(&["stop", program])?;
        Ok(Stopped {
            cluster: self,
            program: program.to_owned(),
            away: true,
        })
    }

    /// The API server answers as someone who has all he needs.
    pub fn wait_for_api(&self) -> Result<()> {
        until(PATIENCE, || {
            self.kubectl(&["get", "--raw=/readyz"]).map(drop)
        })
    }
}

/// `conntrack --delete`, where there may be nothing to delete.
fn delete_all(delete: &mut Command) -> Result<()> {
    let output = delete.output()?;
    // 1: there are none.
    let done = matches!(output.status.code(), Some(0 | 1));
    ensure!(done, "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What connection tracking knows of a connection: each way's source and destination.
#[derive(Debug)]
pub struct Tracked {
    pub original: [SocketAddr; 2],
    pub reply: [SocketAddr; 2],
}

impl Tracked {
    /// `tcp 6 86399 ESTABLISHED src=10.90.0.2 dst=10.244.1.3 sport=4000 dport=8080 src=10.244.1.3 dst=…`
    fn read(line: &str) -> Result<Self> {
        let values = |name: &str| {
            let mut words = line.split_whitespace();
            let mut value = || {
                words
                    .find_map(|word| word.strip_prefix(name))
                    .context(name.to_owned())
            };
            Ok::<_, anyhow::Error>([value()?, value()?])
        };
        let read = || {
            let (source, destination) = (values("src=")?, values("dst=")?);
            let (from, to) = (values("sport=")?, values("dport=")?);
            let way = |at: usize| {
                let source = SocketAddr::new(source[at].parse()?, from[at].parse()?);
                let destination = SocketAddr::new(destination[at].parse()?, to[at].parse()?);
                Ok::<_, anyhow::Error>([source, destination])
            };
            Ok::<_, anyhow::Error>(Self {
                original: way(0)?,
                reply: way(1)?,
            })
        };
        read().with_context(|| line.to_owned())
    }
}

/// A program that was killed. On drop it is started again, whatever became of the test.
#[derive(Debug)]
pub struct Stopped<'a> {
    cluster: &'a Cluster,
    program: String,
    away: bool,
}

impl Stopped<'_> {
    pub fn start(mut self) -> Result<()> {
        self.away = false;
        self.cluster.xtask(&["start", &self.program])
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if self.away
            && let Err(error) = self.cluster.xtask(&["start", &self.program])
        {
            eprintln!("{error:#}");
        }
    }
}
