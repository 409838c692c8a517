//! What the agent tells about itself, and what it can be told: the same types are the admin socket's JSON and the
//! CLI's tables. Counters are not in here; who shows them reads the maps.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::desired::kubernetes::{FrontendRules, Origin, Rule};

/// A snapshot of the agent. Times are seconds since the Unix epoch.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub node: String,
    pub version: String,
    pub abi: u32,
    pub kernel: String,
    pub started: u64,
    /// Whether everything passes.
    pub bypass: bool,
    pub bypass_reason: Option<Bypass>,
    /// When everything passes unless the trial is confirmed before.
    pub trial_ends: Option<u64>,
    pub interfaces: Vec<Interface>,
    pub sources: Vec<Source>,
    /// What is left out of the cluster's objects; the first hundred.
    pub skipped: Vec<Skipped>,
    /// By kind and reason.
    pub objects_skipped: Vec<SkippedCount>,
    pub maps: Vec<MapUse>,
    /// By name; shared, so that a change of one service costs little.
    pub services: BTreeMap<String, Arc<Service>>,
    /// By interface and VIP.
    pub announcements: Vec<Announcement>,
    /// The cluster takes this node out of service.
    pub node_leaves: bool,
    pub apply: Apply,
    /// Of the cluster: from the trigger of a change of endpoints to the maps (contract A13.1).
    pub programming: Option<Durations>,
}

/// Why [`State::interfaces`] is empty.
pub const NO_UPLINK: &str =
    "waits for an uplink: no interface has a default route, or a name that `interfaces` asks for";

/// Why everything passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Bypass {
    /// `millrace bypass on`.
    Command,
    /// The trial of `run --try` ended without `confirm`.
    Unconfirmed,
    /// No agent for longer than `withoutAgent.after`.
    Silent,
}

/// An interface that the agent is to be on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    pub name: String,
    /// None while the interface does not exist.
    pub index: Option<u32>,
    /// As `ethtool -i` names it; empty if unknown.
    pub driver: String,
    /// Bytes, without the Ethernet header.
    pub mtu: u32,
    pub attached: Attached,
}

/// How far the program is on an interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Attached {
    Native,
    Generic,
    /// The interface is not there; the program is attached when it comes.
    Missing,
    Refused {
        why: String,
    },
}

/// A VIP on an interface's LAN.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    pub interface: String,
    pub address: IpAddr,
    #[serde(flatten)]
    pub state: Announced,
    /// How often the neighbours were told.
    pub announcements: u64,
}

/// How far a VIP is announced. MACs as `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    tag = "state"
)]
pub enum Announced {
    /// Asking whether another host has it.
    Probing,
    /// Answered for here; another host may say of late that it is his.
    Announced { claimed_by: Option<String> },
    /// Another host has it.
    Conflict { with: String },
}

/// Where facts come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The config file's name, `network`, or of the cluster `services`, `endpointslices` and `nodes`.
    pub name: String,
    pub state: SourceState,
    /// When it became so.
    pub since: u64,
    pub objects: u64,
    pub skipped: u64,
    /// Why the last reading was refused; what was read before is still in force.
    pub error: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceState {
    Waiting,
    Synced,
    /// The last reading was refused or lost; the state before it holds.
    Stale,
}

/// An object, or a part of it, that is not served.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    /// `Service`, `EndpointSlice`.
    pub kind: String,
    /// `namespace/name`.
    pub object: String,
    /// Of the event, in `CamelCase`.
    pub reason: String,
    pub message: String,
}

/// How many objects are left out, in whole or in part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SkippedCount {
    pub kind: String,
    pub reason: String,
    pub objects: u64,
}

/// How full a map is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapUse {
    /// `frontends`, `services`, `backends`, `nextHops`, `slots`, `members`.
    pub name: String,
    pub used: u64,
    pub max: u64,
}

/// How applying goes.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Apply {
    /// Everything that the sources have said was in the maps at least once.
    pub whole: bool,
    pub applied: u64,
    pub errors: u64,
    /// Of the last attempt, if it was not applied.
    pub error: Option<String>,
    /// From a change to the maps.
    pub durations: Durations,
}

/// How long things took.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Durations {
    /// Upper bounds in microseconds (the last is unbounded) and how many took as long at most.
    pub counts_us: Vec<(u64, u64)>,
    pub sum_us: u64,
}

impl Durations {
    /// Counted by these bounds, and by one more that is none.
    pub fn new(bounds_us: &[u64]) -> Self {
        let bounds = bounds_us.iter().copied().chain([u64::MAX]);
        Self {
            counts_us: bounds.map(|bound| (bound, 0)).collect(),
            sum_us: 0,
        }
    }

    pub fn add(&mut self, took: Duration) {
        let took = took.as_micros() as u64;
        self.sum_us += took;
        for (bound, count) in &mut self.counts_us {
            *count += u64::from(took <= *bound);
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub name: String,
    /// How new flows go: `nat`, `ipip`, `l2`, `local`, `dsr` or `pass`; of several, joined by `+`.
    pub mode: String,
    /// Seconds that a client stays with its backend.
    pub affinity: Option<u64>,
    /// Empty: everyone.
    pub source_ranges: Vec<ipnet::IpNet>,
    pub frontends: Vec<Frontend>,
    pub backends: Vec<Backend>,
    /// Of the cluster: frontends that it asks for and does not get.
    pub left_out: Vec<LeftOut>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    pub address: SocketAddr,
    pub protocol: Protocol,
    /// Index into `FRONTEND_STATS` and `REASONS`.
    pub id: u32,
    /// Index into `SERVICES`; frontends with the same backends share it.
    pub service: u32,
    /// Of the cluster.
    pub rules: Option<FrontendRules>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub rule: Rule,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    pub address: SocketAddr,
    /// As in the frontends that it is behind; what is behind others, too, is there once more.
    pub service: u32,
    /// Place in the service's member region.
    pub ordinal: u16,
    /// Index into `BACKENDS` and `BACKEND_STATS`.
    pub id: u32,
    pub weight: u32,
    /// How new flows get there: one of the words of [`Service::mode`].
    pub mode: String,
    pub state: BackendState,
    /// When it became so.
    pub since: u64,
    /// Slots that it owns, of the `table` that its service has.
    pub slots: u32,
    pub table: u32,
    /// None: no route, or the route leads to this host.
    pub path: Option<BackendPath>,
    /// Of the cluster.
    pub origin: Option<Origin>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BackendState {
    Ready,
    /// No new flows, by the config or by command.
    Drain,
    /// The health check says so.
    Down,
}

/// How packets get to a backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendPath {
    pub interface: String,
    pub gateway: IpAddr,
    /// `aa:bb:cc:dd:ee:ff`; None until the neighbour is resolved.
    pub neighbour: Option<String>,
}

/// What the agent can be told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "command")]
pub enum Command {
    /// Takes a backend out of new flows, or back in. Holds until it is undone; survives the agent.
    Drain {
        service: String,
        backend: SocketAddr,
        on: bool,
    },
    /// Everything passes; the maps stay.
    Bypass { on: bool },
    /// The trial of `run --try` went well.
    Confirm,
    /// Reads the config file now.
    Reload,
}

/// Why a command was not done.
#[derive(Clone, PartialEq, Eq, Error, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "error", content = "text")]
pub enum Refused {
    #[error("no service {0}: `millrace services` lists them")]
    NoService(String),
    #[error("no backend {0}: `millrace backends SERVICE` lists them")]
    NoBackend(String),
    #[error("{0}")]
    Failed(String),
}

/// A command and where its answer goes: whether anything changed.
#[derive(Debug)]
pub struct Request {
    pub command: Command,
    pub reply: oneshot::Sender<Result<bool, Refused>>,
}

/// The agent's two ends towards its admin socket.
#[derive(Clone, Debug)]
pub struct Handle {
    pub state: tokio::sync::watch::Receiver<Arc<State>>,
    pub commands: mpsc::Sender<Request>,
}
