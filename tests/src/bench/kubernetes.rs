//! `bench kubernetes`: the way of a slice's change from its write through a real API server into the maps of a node, among
//! 1,000 Services with 25 endpoints each, and what the agent in its pod takes for it. Needs the cluster that
//! `MILLRACE_CLUSTER` names, with our image on its nodes.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{
    api::{core::v1, discovery::v1::EndpointSlice},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{machine, plan::Random};
use crate::{
    cluster::{Agents, Cluster, PATIENCE, Space, with_agents},
    netns::until,
};

const SERVICES: u32 = 1000;
const ENDPOINTS: u32 = 25;
/// Endpoints are on this one, and on others that there are not.
const NODE: &str = "node1";
const NODES: u32 = 3;

/// Slices written per second, and for how long.
const RATE: u32 = 50;
const SECONDS: u32 = 60;

/// For how long an agent is looked at that has nothing to do.
const IDLE: Duration = Duration::from_secs(20);

/// What the agent counts: contract A13.1.
const HISTOGRAM: &str = "millrace_network_programming_duration_seconds";

/// Measures and prints.
pub(super) fn run(json: bool) -> Result<()> {
    let mut figures = None;
    with_agents(|cluster, agents| {
        figures = Some(measure(cluster, agents)?);
        Ok(())
    })?;
    let figures = figures.context("a cluster in MILLRACE_CLUSTER")?;
    machine::show(&figures, json, Figures::table)
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Figures {
    /// What it was measured on.
    machine: String,
    services: u32,
    endpoints: u32,
    /// Writes of slices whose way was counted.
    changes: u64,
    /// Upper bounds of time in seconds, each with the share of changes that took as long at most.
    shares: Vec<(f64, f64)>,
    /// Time in milliseconds until the API server has answered who writes: of half of the changes, and of 99 %.
    answered_ms: [f64; 2],
    /// Of one processor: with nothing to do, and at [`RATE`] changes per second.
    idle_percent: f64,
    busy_percent: f64,
    /// Anonymous memory of the agent in KiB: on a cluster without any Service of ours, with all of them, and after all
    /// changes.
    empty_kib: u64,
    full_kib: u64,
    worn_kib: u64,
}

fn measure(cluster: &Cluster, agents: &Agents<'_>) -> Result<Figures> {
    let empty_kib = agents.anonymous_kib(NODE)?;
    let idle_percent = share(agents, || {
        std::thread::sleep(IDLE);
        Ok(())
    })?;
    let space = cluster.space("bench")?;
    let others = agents.frontends(NODE)?.len();
    cluster.with_client(async |client| load(&client, &space).await)?;
    until(PATIENCE, || {
        let frontends = agents.frontends(NODE)?.len() - others;
        ensure!(frontends == SERVICES as usize, "{frontends} frontends");
        Ok(())
    })?;
    let full_kib = agents.anonymous_kib(NODE)?;
    let before = Counts::of(agents)?;
    let mut answered = Vec::new();
    let busy_percent = share(agents, || {
        answered = cluster.with_client(async |client| write(&client, &space).await)?;
        Ok(())
    })?;
    answered.sort_unstable();
    let answered_ms = [50, 99].map(|percent| {
        let at = answered.len() * percent / 100;
        answered[at].as_secs_f64() * 1e3
    });
    let wanted = u64::from(RATE * SECONDS);
    let after = until(PATIENCE, || {
        let after = Counts::of(agents)?;
        let all = after.all - before.all;
        ensure!(all >= wanted, "{all} of {wanted} changes counted");
        Ok(after)
    })?;
    Ok(Figures {
        machine: machine::describe()?,
        services: SERVICES,
        endpoints: ENDPOINTS,
        changes: after.all - before.all,
        shares: after.shares_since(&before),
        answered_ms,
        idle_percent,
        busy_percent,
        empty_kib,
        full_kib,
        worn_kib: agents.anonymous_kib(NODE)?,
    })
}

/// What of one processor the agent has while `work` is done, in percent.
fn share(agents: &Agents<'_>, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (begin, before) = (Instant::now(), agents.processor_time(NODE)?);
    work()?;
    let busy = agents.processor_time(NODE)?.saturating_sub(before);
    Ok(busy.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0)
}

/// The agent's histogram.
struct Counts {
    /// Upper bounds in seconds and how many took as long at most.
    counts: Vec<(f64, u64)>,
    all: u64,
}

impl Counts {
    fn of(agents: &Agents<'_>) -> Result<Self> {
        let buckets = agents.buckets(NODE, HISTOGRAM)?;
        let (_, all) = buckets.last().with_context(|| format!("no {HISTOGRAM}"))?;
        Ok(Self {
            all: *all,
            counts: buckets,
        })
    }

    fn shares_since(&self, before: &Self) -> Vec<(f64, f64)> {
        let changes = (self.all - before.all) as f64;
        let counts = self.counts.iter().zip(&before.counts);
        let shares =
            counts.map(|(&(bound, now), &(_, then))| (bound, (now - then) as f64 / changes));
        shares.filter(|(bound, _)| bound.is_finite()).collect()
    }
}

/// All Services with their addresses and slices.
async fn load(client: &Client, space: &Space<'_>) -> Result<()> {
    let services: Api<v1::Service> = Api::namespaced(client.clone(), &space.name);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &space.name);
    for number in 0..SERVICES {
        let service = json!({
            "metadata": {"name": name(number)},
            "spec": {
                "type": "LoadBalancer",
                "allocateLoadBalancerNodePorts": false,
                "ports": [{"port": 80, "targetPort": 8080}],
            },
        });
        let made: v1::Service = of(service)?;
        services.create(&PostParams::default(), &made).await?;
        let vip = Ipv4Addr::from_bits(0xc612_0000 + number);
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": vip}]}}});
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(status));
        services
            .patch_status(&name(number), &parameters, &patch)
            .await?;
        let mut slice = json!({
            "metadata": {"name": name(number), "labels": {"kubernetes.io/service-name": name(number)}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        });
        slice["endpoints"] = endpoints(number, 0);
        let slice: EndpointSlice = of(slice)?;
        slices.create(&PostParams::default(), &slice).await?;
    }
    Ok(())
}

/// Writes slices at [`RATE`], each with the time at which that begins. How long each answer took.
async fn write(client: &Client, space: &Space<'_>) -> Result<Vec<Duration>> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &space.name);
    let mut random = Random::new();
    let mut answered = Vec::new();
    let mut due = interval(Duration::from_secs(1) / RATE);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for change in 1..=RATE * SECONDS {
        due.tick().await;
        let number = random.below(SERVICES);
        let begin = Instant::now();
        let trigger = Timestamp::now().to_string();
        let patch = json!({
            "metadata": {"annotations": {"endpoints.kubernetes.io/last-change-trigger-time": trigger}},
            "endpoints": endpoints(number, change),
        });
        slices
            .patch(&name(number), &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        answered.push(begin.elapsed());
    }
    Ok(answered)
}

fn name(number: u32) -> String {
    format!("service-{number}")
}

/// Those of a Service after the change of this number: a pod that never was is in one place.
fn endpoints(number: u32, change: u32) -> Value {
    let endpoint = |place: u32| {
        let replaced = change > 0 && place == change % ENDPOINTS;
        let low = if replaced { ENDPOINTS + change } else { place };
        let address = Ipv4Addr::from_bits(0x0a80_0000 + (number << 13) + low);
        let node = format!("node{}", place % NODES + 1);
        json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
    };
    (0..ENDPOINTS).map(endpoint).collect()
}

fn of<T: DeserializeOwned>(object: Value) -> Result<T> {
    Ok(serde_json::from_value(object)?)
}

impl Figures {
    /// A table for people.
    fn table(&self) -> String {
        let mib = |kib: u64| kib as f64 / 1024.0;
        let mut table = format!(
            "{}\n{} Services with {} endpoints each, a third of them on the node; {} slices written at {RATE} a second\n\
             from the write of a slice to the maps:\n",
            self.machine, self.services, self.endpoints, self.changes
        );
        for (bound, share) in &self.shares {
            writeln!(
                table,
                "{:>7.0} ms or less: {:>6.2} %",
                bound * 1e3,
                share * 100.0
            )
            .ok();
        }
        let [half, most] = self.answered_ms;
        writeln!(
            table,
            "until the API server has answered the writer: {half:.1} ms (p50), {most:.1} ms (p99)"
        )
        .ok();
        writeln!(
            table,
            "of a processor: {:.1} % meanwhile, {:.2} % with nothing to do\n\
             anonymous memory: {:.1} MiB empty, {:.1} MiB full, {:.1} MiB after all changes",
            self.busy_percent,
            self.idle_percent,
            mib(self.empty_kib),
            mib(self.full_kib),
            mib(self.worn_kib),
        )
        .ok();
        table
    }
}
