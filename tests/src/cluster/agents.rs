//! Our image in our `DaemonSet`, as `kubectl apply -f deploy/millrace.yaml` brings it.

use std::{net::SocketAddr, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Cluster, PATIENCE, wait_for};
use crate::{
    netns::{run, until},
    servers::sibling,
};

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/millrace.yaml");
const NAMESPACE: &str = "--namespace=millrace-system";

/// Counters of a frontend on one node.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    pub new_flows: u64,
    pub replies: u64,
    /// Packets that were left to kube-proxy, or to the stack.
    pub passed: u64,
}

/// An agent on every node. On drop the manifest's objects are deleted, and every node is as it was.
#[derive(Debug)]
pub struct Agents<'a> {
    cluster: &'a Cluster,
}

impl Cluster {
    /// Applies the manifest and waits until every agent is ready. The nodes have the image already.
    pub fn install(&self) -> Result<Agents<'_>> {
        let agents = Agents { cluster: self };
        self.kubectl(&["apply", "--filename", MANIFEST])?;
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let rollout = [
            "rollout",
            "status",
            "daemonset/millrace",
            NAMESPACE,
            &timeout,
        ];
        if let Err(error) = self.kubectl(&rollout) {
            let said = self.kubectl(&["describe", "pods", NAMESPACE])?;
            let log = agents.log().unwrap_or_default();
            return Err(error.context(format!("{said}\n{log}")));
        }
        Ok(agents)
    }
}

impl Agents<'_> {
    /// The pod of a node.
    fn pod(&self, node: &str) -> Result<String> {
        let field = format!("--field-selector=spec.nodeName={node}");
        let answer = self
            .cluster
            .kubectl(&["get", "pods", NAMESPACE, &field, "--output=json"])?;
        let list: Value = serde_json::from_str(&answer)?;
        let name = list["items"][0]["metadata"]["name"].as_str();
        Ok(name
            .with_context(|| format!("no agent on {node}"))?
            .to_owned())
    }

    /// `millrace …` in the pod of a node.
    pub fn millrace(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let pod = self.pod(node)?;
        let exec = ["exec", NAMESPACE, &pod, "--", "millrace"];
        self.cluster.kubectl(&[&exec[..], arguments].concat())
    }

    pub fn status(&self, node: &str) -> Result<Value> {
        let answer = self.millrace(node, &["status", "--output=json"])?;
        serde_json::from_str(&answer).context(answer)
    }

    /// What a node's program has done for a TCP frontend.
    pub fn served(&self, node: &str, frontend: SocketAddr) -> Result<Served> {
        let row = self.frontend(node, frontend)?;
        let count = |field: &str| row[field].as_u64().with_context(|| format!("{row:#}"));
        let reasons = row["reasons"].as_array().context("reasons")?.iter();
        let passed = reasons.filter(|reason| reason["kind"] == "passed");
        Ok(Served {
            new_flows: count("newFlows")?,
            replies: count("replies")?,
            passed: passed
                .map(|reason| reason["packets"].as_u64().unwrap_or_default())
                .sum(),
        })
    }

    /// Waits until a node's agent knows ready backends of a TCP frontend, and it answers.
    pub fn serve(&self, node: &str, frontend: SocketAddr) -> Result<()> {
        until(PATIENCE, || {
            let row = self.frontend(node, frontend)?;
            ensure!(row["ready"] != 0, "{row:#}");
            Ok(())
        })?;
        wait_for(&self.cluster.client, frontend)
    }

    /// A TCP frontend's element of `millrace services`.
    fn frontend(&self, node: &str, frontend: SocketAddr) -> Result<Value> {
        let answer = self.millrace(node, &["services", "--output=json"])?;
        let rows: Vec<Value> = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        let name = format!("{frontend}/tcp");
        let row = rows
            .into_iter()
            .find(|row| row["frontend"] == name.as_str());
        row.with_context(|| format!("{node} does not serve {name}: {answer}"))
    }

    /// What all agents logged.
    pub fn log(&self) -> Result<String> {
        let selector = "--selector=app.kubernetes.io/component=agent";
        self.cluster
            .kubectl(&["logs", NAMESPACE, selector, "--prefix", "--tail=-1"])
    }

    /// Deletes what was installed, then takes out of the kernel what outlives agents.
    pub fn remove(&self) -> Result<()> {
        self.cluster
            .kubectl(&["delete", "--ignore-not-found", "--filename", MANIFEST])?;
        for node in self.cluster.nodes()? {
            let mut detach = self.cluster.on_node(&node)?;
            detach.arg(sibling("millrace")?).arg("detach");
            // The pod is gone from the API before its process is from the node.
            until(PATIENCE, || run(&mut detach).map(drop)).context(node)?;
        }
        Ok(())
    }
}

impl Drop for Agents<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("{error:#}");
        }
    }
}

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
}
