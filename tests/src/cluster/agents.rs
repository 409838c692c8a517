//! Our image in our `DaemonSet`, as `kubectl apply -f deploy/millrace.yaml` brings it.

use std::{
    collections::BTreeSet,
    env, fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::symlink,
    process::Output,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Reason;
use lb_userspace::doctor::Line;
use serde_json::Value;

use super::{Cluster, PATIENCE, Undo};
use crate::{
    netns::{Folder, checked, run, until},
    servers::sibling,
};

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/millrace.yaml");
const NAMESPACE: &str = "--namespace=millrace-system";

/// What the manifest's config says of the cluster.
const SETTINGS: &str = "kubernetes: {forwardingMode: dsr}";

/// What tests have in its place: what goes to other nodes is kube-proxy's.
const PASSING: &str = "kubernetes: {}";

/// Where agents tell of their health and of their counters.
const OBSERVED: u16 = 9470;

/// Counters of a frontend on one node.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    pub new_flows: u64,
    pub replies: u64,
    /// Backends that get new flows.
    pub ready: u64,
    /// Packets that were left to kube-proxy, or to the stack.
    pub passed: u64,
}

impl Served {
    /// What came in between; `ready` is of now.
    pub fn since(self, before: Self) -> Self {
        Self {
            new_flows: self.new_flows - before.new_flows,
            replies: self.replies - before.replies,
            ready: self.ready,
            passed: self.passed - before.passed,
        }
    }
}

/// An agent on every node.
#[derive(Debug)]
pub struct Agents<'a> {
    cluster: &'a Cluster,
    /// What they come from.
    manifest: String,
}

/// A test beside our agents, which are installed if they are not there, and stay for the next one. None of them may have
/// been forbidden anything then: contract A14.1.
pub fn with_agents(test: impl FnOnce(&Cluster, &Agents<'_>) -> Result<()>) -> Result<()> {
    with_settings(&[PASSING], test)
}

/// The same as the manifest says: endpoints on other nodes are reached through tunnels.
pub fn with_tunnels(test: impl FnOnce(&Cluster, &Agents<'_>) -> Result<()>) -> Result<()> {
    with_settings(&[SETTINGS], test)
}

/// [`with_agents`] with these fields of the config in place of what the manifest says of the cluster. The next test has agents as it wants them.
pub fn with_settings(
    fields: &[&str],
    test: impl FnOnce(&Cluster, &Agents<'_>) -> Result<()>,
) -> Result<()> {
    let Some(cluster) = Cluster::named()? else {
        return Ok(());
    };
    let agents = Agents {
        cluster: &cluster,
        manifest: manifest(fields)?,
    };
    agents.install()?;
    let done = test(&cluster, &agents);
    let log = agents.log();
    done.with_context(|| match &log {
        Ok(log) => log.clone(),
        Err(error) => format!("{error:#}"),
    })?;
    let log = log?;
    let forbidden = |line: &&str| line.contains("forbidden") || line.contains("no permission");
    let lines: Vec<_> = log.lines().filter(forbidden).collect();
    ensure!(lines.is_empty(), "{}", lines.join("\n"));
    Ok(())
}

/// A test of what the cluster does without us.
pub fn without_agents(test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let Some(cluster) = Cluster::named()? else {
        return Ok(());
    };
    cluster.uninstall(&[])?;
    test(&cluster)
}

fn manifest(fields: &[&str]) -> Result<String> {
    let text = fs::read_to_string(MANIFEST).context(MANIFEST)?;
    let (before, after) = text.split_once(SETTINGS).context(SETTINGS)?;
    Ok(format!("{before}{}{after}", fields.join("\n    ")))
}

impl Cluster {
    /// `kubectl millrace uninstall …`; what it printed.
    pub fn uninstall(&self, arguments: &[&str]) -> Result<String> {
        let folder = Folder::create("plugin")?;
        symlink(sibling("millrace")?, folder.file("kubectl-millrace"))?;
        let mut command = self.command()?;
        let path = env::var("PATH").context("PATH")?;
        command.env("PATH", format!("{}:{path}", folder.path().display()));
        command.args(["millrace", "uninstall"]).args(arguments);
        self.control()?.run(&mut command)
    }
}

impl Agents<'_> {
    /// `kubectl apply` of the manifest; what became of each object.
    pub fn apply(&self) -> Result<String> {
        self.cluster.apply(&self.manifest)
    }

    /// Applies the manifest and waits until every agent is ready and has read its config. The nodes have the image already.
    pub fn install(&self) -> Result<()> {
        let said = self.apply()?;
        // Most settings are read once.
        let settled = if said.contains("configmap/millrace configured") {
            self.restart()
        } else {
            self.settled()
        };
        settled.or_else(|error| {
            let said = self.cluster.kubectl(&["describe", "pods", NAMESPACE])?;
            let log = self.log().unwrap_or_default();
            Err(error.context(format!("{said}\n{log}")))
        })
    }

    /// Ends all agents, and brings others when `work` is done. What they put into the kernel stays there.
    pub fn away<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let delete = ["delete", "daemonset/millrace", "--cascade=foreground"];
        self.cluster
            .kubectl(&[&delete[..], &[NAMESPACE]].concat())?;
        let done = work();
        self.install()?;
        done
    }

    /// Waits until the agents of all nodes are as the manifest says, and ready.
    pub fn settled(&self) -> Result<()> {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let set = "daemonset/millrace";
        let rollout = ["rollout", "status", set, NAMESPACE, &timeout];
        self.cluster.kubectl(&rollout).map(drop)
    }

    /// Replaces all agents by new ones, as an upgrade does.
    pub fn restart(&self) -> Result<()> {
        let restart = ["rollout", "restart", "daemonset/millrace", NAMESPACE];
        self.cluster.kubectl(&restart)?;
        self.settled()
    }

    /// No pod of ours is there but the agents', or it is told to end.
    pub fn ensure_nothing_detaches(&self) -> Result<()> {
        let work = "--selector=millrace.io/work=detach";
        let pods = self.cluster.list(&["pods", NAMESPACE, work])?;
        let going = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
        ensure!(pods.iter().all(going), "{pods:#?}");
        Ok(())
    }

    /// The pod of a node.
    fn pod(&self, node: &str) -> Result<String> {
        let field = format!("--field-selector=spec.nodeName={node}");
        let pods = self.cluster.list(&["pods", NAMESPACE, &field])?;
        let running = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        let pod = pods.iter().find(running);
        let name = pod.and_then(|pod| pod["metadata"]["name"].as_str());
        Ok(name
            .with_context(|| format!("no agent on {node}"))?
            .to_owned())
    }

    /// `millrace …` on a node, where the agent's socket lies. In its pod it says the same, by way of kubectl and the
    /// container runtime; some hundred calls of a test run are for what it says.
    pub fn millrace(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let output = self.output(node, arguments)?;
        checked(&format!("millrace {arguments:?} on {node}"), &output)
    }

    /// The same, however it ends.
    pub(super) fn output(&self, node: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.cluster.on_node(node)?;
        Ok(command.arg(sibling("millrace")?).args(arguments).output()?)
    }

    /// What `millrace doctor` says in the pod of a node, however fit that is.
    pub fn doctor(&self, node: &str) -> Result<Vec<Line>> {
        let pod = self.pod(node)?;
        let exec = ["exec", NAMESPACE, &pod, "--", "millrace"];
        let mut command = self.cluster.command()?;
        command.args(exec).args(["doctor", "--output=json"]);
        let output = self.cluster.control()?.output(&mut command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).with_context(|| format!("doctor on {node}: {said}"))
    }

    pub fn status(&self, node: &str) -> Result<Value> {
        let answer = self.millrace(node, &["status", "--output=json"])?;
        serde_json::from_str(&answer).context(answer)
    }

    /// What a node's program has done for a TCP frontend.
    pub fn served(&self, node: &str, frontend: SocketAddr) -> Result<Served> {
        self.done_for(node, &format!("{frontend}/tcp"))
    }

    /// Who answers the client's requests ([`Cluster::answering`]), and what a node's program did for them.
    pub fn answering(
        &self,
        node: &str,
        frontend: SocketAddr,
    ) -> Result<(BTreeSet<String>, Served)> {
        let before = self.served(node, frontend)?;
        let answered = self.cluster.answering(frontend)?;
        Ok((answered, self.served(node, frontend)?.since(before)))
    }

    /// What a node's program has done for a UDP frontend.
    pub fn served_datagrams(&self, node: &str, frontend: SocketAddr) -> Result<Served> {
        self.done_for(node, &format!("{frontend}/udp"))
    }

    fn done_for(&self, node: &str, frontend: &str) -> Result<Served> {
        let row = self.frontend(node, frontend)?;
        let count = |field: &str| row[field].as_u64().with_context(|| format!("{row:#}"));
        let reasons = row["reasons"].as_array().context("reasons")?.iter();
        let passed = reasons.filter(|reason| reason["kind"] == "passed");
        Ok(Served {
            new_flows: count("newFlows")?,
            replies: count("replies")?,
            ready: count("ready")?,
            passed: passed
                .map(|reason| reason["packets"].as_u64().unwrap_or_default())
                .sum(),
        })
    }

    /// Waits until a node's agent knows ready backends of a TCP frontend, and all requests to it are answered: those that are
    /// left to kube-proxy, too.
    pub fn serve(&self, node: &str, frontend: SocketAddr) -> Result<()> {
        until(PATIENCE, || {
            let row = self.frontend(node, &format!("{frontend}/tcp"))?;
            ensure!(row["ready"] != 0, "{row:#}");
            Ok(())
        })
        .with_context(|| {
            let said = [
                "get",
                "endpointslices,pods",
                "--all-namespaces",
                "--output=yaml",
            ];
            self.cluster.kubectl(&said).unwrap_or_default()
        })?;
        self.cluster.wait_for(frontend)?;
        until(PATIENCE, || self.cluster.answering(frontend).map(drop))?;
        // The first answers may have come by XDP, and kube-proxy have learnt of the VIP since.
        self.cluster.forget_early_packets(frontend.ip())
    }

    /// Routes VIPs to node 1 and waits until their TCP port 80 is served there.
    pub fn serve_vips<const N: usize>(&self, vips: [IpAddr; N]) -> Result<[SocketAddr; N]> {
        let servers = vips.map(|vip| SocketAddr::new(vip, 80));
        for server in servers {
            self.cluster.route(server.ip(), "node1")?;
            self.serve("node1", server)?;
        }
        Ok(servers)
    }

    /// Sends everything for a frontend to a node and waits until the packet path there serves all of it: other nodes are
    /// known to have an agent when that is ready. Names of the pods that answered.
    pub fn serve_wholly(&self, node: &str, server: SocketAddr) -> Result<BTreeSet<String>> {
        self.cluster.route(server.ip(), node)?;
        until(PATIENCE, || {
            let (answered, done) = self.answering(node, server)?;
            let all = done.new_flows == Cluster::REQUESTS && done.passed == 0;
            ensure!(all, "{server}: {done:?}");
            Ok(answered)
        })
    }

    /// The element of `millrace services` of `192.0.2.1:80/tcp`, for example.
    fn frontend(&self, node: &str, name: &str) -> Result<Value> {
        let mut rows = self.services(node)?.into_iter();
        let row = rows.find(|row| row["frontend"] == name);
        row.with_context(|| format!("{node} does not serve {name}"))
    }

    /// Lets everything pass on a node, until the switch is dropped.
    pub fn bypass(&self, node: &str) -> Result<Undo<'_>> {
        self.millrace(node, &["bypass", "on"])?;
        let node = node.to_owned();
        Ok(Undo::by(move || {
            self.millrace(&node, &["bypass", "off"]).map(drop)
        }))
    }

    fn services(&self, node: &str) -> Result<Vec<Value>> {
        let answer = self.millrace(node, &["services", "--output=json"])?;
        serde_json::from_str(&answer).context(answer)
    }

    /// What all agents logged.
    pub fn log(&self) -> Result<String> {
        let selector = "--selector=app.kubernetes.io/component=agent";
        self.cluster
            .kubectl(&["logs", NAMESPACE, selector, "--prefix", "--tail=-1"])
    }

    /// Waits until a node's agent has no TCP frontend of this address any more.
    pub fn release(&self, node: &str, vip: IpAddr) -> Result<()> {
        until(PATIENCE, || {
            let names = self.frontends(node)?;
            let own = SocketAddr::new(vip, 0).to_string();
            let own = own.trim_end_matches('0');
            ensure!(!names.iter().any(|name| name.starts_with(own)), "{names:?}");
            Ok(())
        })
    }

    /// All frontends that a node's agent serves, as `192.0.2.1:80/tcp`.
    pub fn frontends(&self, node: &str) -> Result<Vec<String>> {
        let rows = self.services(node)?;
        let name = |row: &Value| row["frontend"].as_str().map(str::to_owned);
        rows.iter()
            .map(|row| name(row).context("frontend"))
            .collect()
    }

    /// Anonymous memory of a node's agent in KiB, `RssAnon` of its status.
    pub fn anonymous_kib(&self, node: &str) -> Result<u64> {
        let script = "grep RssAnon /proc/$(pidof millrace)/status";
        let line = run(self.cluster.on_node(node)?.args(["sh", "-c", script]))?;
        let figure = line.split_whitespace().nth(1).context(line.clone())?;
        Ok(figure.parse()?)
    }

    /// What all threads of a node's agent have had of processors so far.
    pub fn processor_time(&self, node: &str) -> Result<Duration> {
        let script = "cat /proc/$(pidof millrace)/task/*/schedstat";
        let lines = run(self.cluster.on_node(node)?.args(["sh", "-c", script]))?;
        // Time on the processor in nanoseconds, then time waiting for it (Documentation/scheduler/sched-stats.rst).
        let times = lines.lines().filter_map(|line| line.split(' ').next());
        let times: Vec<u64> = times.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Duration::from_nanos(times.iter().sum()))
    }

    /// A node's agent calls itself healthy.
    pub fn ensure_healthy(&self, node: &str) -> Result<()> {
        let own = SocketAddr::from(([127, 0, 0, 1], OBSERVED));
        self.cluster.get_at(node, own, "healthz").map(drop)
    }

    /// What a node's agent tells Prometheus.
    fn metrics(&self, node: &str) -> Result<String> {
        let own = SocketAddr::from(([127, 0, 0, 1], OBSERVED));
        self.cluster.get_at(node, own, "metrics")
    }

    /// Upper bounds of a histogram, and how many samples each has.
    pub fn buckets(&self, node: &str, histogram: &str) -> Result<Vec<(f64, u64)>> {
        let text = self.metrics(node)?;
        let begin = format!("{histogram}_bucket{{le=\"");
        let buckets = text.lines().filter_map(|line| line.strip_prefix(&begin));
        let bucket = |line: &str| -> Result<(f64, u64)> {
            let (bound, count) = line.split_once("\"} ").context("a bucket")?;
            Ok((bound.parse()?, count.parse()?))
        };
        buckets
            .map(|line| bucket(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// All that a node's agent has counted of a namespace's Services, as it tells Prometheus.
    pub fn counters(&self, node: &str, namespace: &str) -> Result<Vec<String>> {
        let label = format!("_total{{namespace=\"{namespace}\"");
        let text = self.metrics(node)?;
        let counters = text.lines().filter(|line| line.contains(&label));
        Ok(counters.map(str::to_owned).collect())
    }

    /// Packets to VIPs, to no frontend of theirs, that a node's program dropped or answered for a reason.
    pub fn ended(&self, node: &str, reason: Reason) -> Result<u64> {
        let (kind, reason) = (reason.kind(), reason.name());
        let kind = if kind == "dropped" { "drops" } else { kind };
        let labels = format!("namespace=\"\",service=\"\",reason=\"{reason}\"");
        let count = self.metric(node, &format!("millrace_{kind}_total{{{labels}}}"))?;
        Ok(count.unwrap_or_default() as u64)
    }

    /// A sample of what a node's agent tells Prometheus; none if there is no such series.
    pub fn metric(&self, node: &str, series: &str) -> Result<Option<f64>> {
        let text = self.metrics(node)?;
        let sample = text.lines().find_map(|line| line.strip_prefix(series));
        Ok(sample.map(|sample| sample.trim().parse()).transpose()?)
    }
}
