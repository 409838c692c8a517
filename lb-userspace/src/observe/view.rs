//! What the admin API says: the JSON of `-o json`, and what the CLI's tables are drawn from. It joins the agent's
//! [`crate::state`] with counters. Rates are per second; ages are whole seconds.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::state::{
    Announcement, Attached, BackendPath, BackendState, Bypass as Reason, Frontend, Protocol,
    Skipped, SourceState,
};

/// `GET /v1/status`.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub node: String,
    pub version: String,
    pub abi: u32,
    pub kernel: String,
    /// Age of the agent; absent when nobody runs and the pins alone were read.
    pub up_seconds: Option<u64>,
    /// Whether everything passes.
    pub bypass: bool,
    pub bypass_reason: Option<Reason>,
    /// Left of a trial that is to be confirmed.
    pub trial_seconds: Option<u64>,
    /// Since the agent's last sign of life, as the maps have it; absent when nobody could tell the time.
    pub silent_seconds: Option<u64>,
    pub interfaces: Vec<Interface>,
    pub sources: Vec<Source>,
    /// What is left out of the cluster's objects; the first hundred.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
    pub maps: Vec<Map>,
    /// VIPs on the LAN; empty where none are announced.
    pub announcements: Vec<Announcement>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    pub name: String,
    pub driver: String,
    pub mtu: u32,
    pub attached: Attached,
    pub vips: usize,
    pub rx_per_second: f64,
    pub tx_per_second: f64,
    pub dropped_per_second: f64,
}

/// Where desired state comes from.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    pub name: String,
    pub state: SourceState,
    pub age_seconds: u64,
    pub objects: u64,
    pub skipped: u64,
    /// Why it was refused.
    pub error: Option<String>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Map {
    pub name: String,
    pub used: u64,
    pub max: u64,
}

/// An element of `GET /v1/services`: one frontend of a service.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub name: String,
    /// Address, port and protocol: `192.0.2.10:443/tcp`.
    pub frontend: String,
    pub mode: String,
    /// `ClientIP` affinity, as configured.
    pub affinity_seconds: Option<u64>,
    pub ready: usize,
    pub drain: usize,
    pub down: usize,
    pub new_flows_per_second: f64,
    pub packets_per_second: f64,
    pub dropped_per_second: f64,
    pub new_flows: u64,
    pub packets: u64,
    pub bytes: u64,
    pub replies: u64,
    /// Packets that were not simply forwarded, by reason.
    pub reasons: Vec<ReasonCount>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct ReasonCount {
    pub reason: String,
    /// `passed`, `answered` or `dropped`.
    pub kind: String,
    pub packets: u64,
}

/// An element of `GET /v1/backends`.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    pub service: String,
    pub backend: SocketAddr,
    /// Node it runs on, where there are nodes.
    pub node: Option<String>,
    /// That node's zone, as the endpoint has it.
    #[serde(default)]
    pub zone: Option<String>,
    /// How packets get there.
    pub path: Option<BackendPath>,
    pub ordinal: u16,
    pub weight: u32,
    /// How new flows get there.
    pub mode: String,
    pub state: BackendState,
    pub slots: u32,
    /// Part of the service's slots, 0–1.
    pub share: f64,
    pub new_flows_per_second: f64,
    pub packets_per_second: f64,
    pub new_flows: u64,
    pub packets: u64,
    pub since_seconds: u64,
}

/// An element of `GET /v1/flows`.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub frontend: SocketAddr,
    pub backend: SocketAddr,
    /// Address and port the backend sees: own ones in mode `nat`, the client's else.
    pub nat: SocketAddr,
    /// `nat`, `local`, `dsr` for what goes on to another node, or `pass` for what is left to kube-proxy.
    pub mode: String,
    /// `half` until the client has shown that it sees the replies, then `est`, `fin`, `rst`.
    pub state: String,
    pub idle_seconds: u64,
}

/// Flows, and how many there were beyond the limit of the answer.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    pub flows: Vec<Flow>,
    pub more: u64,
}

/// Body of `POST /v1/drain`.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    pub service: String,
    pub backend: SocketAddr,
    /// False: take new flows again.
    pub on: bool,
}

/// Body of `POST /v1/bypass`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bypass {
    pub on: bool,
}

/// Answer of a command: whether it found anything to do.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    pub changed: bool,
}

/// Body of `POST /v1/explain`: either a frame or the ends of a packet.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Question {
    /// Interface the packet arrives on; the first of ours by default.
    pub interface: Option<String>,
    #[serde(flatten)]
    pub packet: Packet,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Packet {
    /// A whole frame in hex.
    Frame(String),
    Ends(Ends),
}

#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Ends {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub protocol: Protocol,
    /// `syn` (the default of TCP) or `ack`.
    pub flags: Option<String>,
}

/// Answer of `POST /v1/explain`.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub steps: Vec<Step>,
    /// `forwarded`, `dropped`, `answered` or `passed`.
    pub outcome: Outcome,
    pub service: Option<String>,
    pub backend: Option<SocketAddr>,
    /// The frame as it would leave, in hex; absent when it is dropped.
    pub frame: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Forwarded,
    Answered,
    Dropped,
    /// Not ours, or left to the kernel's stack.
    Passed,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub step: String,
    pub result: String,
    pub why: String,
}

/// `192.0.2.10:443/tcp`.
pub(crate) fn frontend(frontend: &Frontend) -> String {
    format!("{}/{}", frontend.address, protocol(frontend.protocol))
}

pub(crate) const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// Whether an address stands in a filter such as `192.0.2.10`, `192.0.2.10:443` or `[2001:db8::10]:443`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub address: IpAddr,
    /// None: any port.
    pub port: Option<u16>,
}

impl Endpoint {
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(end) = text.parse::<SocketAddr>() {
            return Some(Self {
                address: end.ip(),
                port: Some(end.port()),
            });
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        Some(Self {
            address: bare.parse().ok()?,
            port: None,
        })
    }

    pub fn holds(&self, end: SocketAddr) -> bool {
        self.address == end.ip() && self.port.is_none_or(|port| port == end.port())
    }
}
