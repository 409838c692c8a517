//! Steps of the pipeline as people read them.

use std::{fmt::Write as _, net::SocketAddr};

use lb_common::{
    abi::{Mode, NO_OWNER, OWNERS, Reason, TAG_PRESENT, owner},
    pipeline::{Step, Verdict},
};

use super::Decision;
use crate::{
    desired::kubernetes::{FrontendRules, Rule},
    net::Facts,
    observe::view::{self, Explanation, Outcome},
    state::{Backend, BackendState, Frontend, Protocol, Service, State},
};

/// `to`: where the packet was to go, if the question said so in words. `sendable`: a redirect's device takes packets from
/// XDP.
pub(super) fn explanation(
    decision: &Decision,
    to: Option<(SocketAddr, Protocol)>,
    sendable: bool,
    state: &State,
    facts: &Facts,
) -> Explanation {
    let names = Names { state, facts };
    let mut steps = names.left_out(to);
    let (mut met, mut backend) = (None, None);
    for (at, step) in decision.steps.iter().enumerate() {
        match *step {
            Step::Frontend { id, .. } => met = names.frontend(id),
            Step::Backend { id, .. } => {
                backend = names.backend(id).map(|backend| backend.address);
            }
            _ => {}
        }
        let rules = met.and_then(|(_, frontend)| frontend.rules);
        let restricted = matches!(decision.steps.get(at + 1), Some(Step::Source { .. }));
        let open = matches!(step, Step::Frontend { .. }) && !restricted;
        let allowed = open.then(|| source("allowed", rules, "no ranges"));
        for row in names.rows(*step, rules).into_iter().chain(allowed) {
            // What was decided in the driver is decided again on the way through tc.
            if !steps.contains(&row) {
                steps.push(row);
            }
        }
    }
    let reason = decision.steps.iter().rev().find_map(|step| match step {
        Step::End(reason) => Some(*reason),
        _ => None,
    });
    let rule = reason.and_then(|reason| names.rule(reason, met, to));
    let (outcome, verdict, why) = names.verdict(decision, reason, rule, sendable);
    steps.push(row("VERDICT", verdict, why));
    let leaves = !matches!(outcome, Outcome::Dropped);
    Explanation {
        steps,
        outcome,
        service: met.map(|(service, _)| service.name.clone()),
        backend,
        frame: leaves.then(|| hex(&decision.frame)),
    }
}

fn row(step: &str, result: impl Into<String>, why: impl Into<String>) -> view::Step {
    view::Step {
        step: step.to_owned(),
        result: result.into(),
        why: why.into(),
    }
}

/// What became of the client: by the frontend's rule, or in plain words where it has none.
fn source(result: &str, rules: Option<FrontendRules>, plain: &str) -> view::Step {
    let rule = rules.map(|rules| rules.clients.to_string());
    row("source", result, rule.unwrap_or_else(|| plain.to_owned()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        if write!(text, "{byte:02x}").is_err() {
            unreachable!("writing to a string");
        }
        text
    })
}

/// Whom ids belong to.
struct Names<'a> {
    state: &'a State,
    facts: &'a Facts,
}

impl Names<'_> {
    fn frontend(&self, id: u32) -> Option<(&Service, &Frontend)> {
        self.state.services.values().find_map(|service| {
            let frontend = service
                .frontends
                .iter()
                .find(|frontend| frontend.id == id)?;
            Some((service.as_ref(), frontend))
        })
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        let mut backends = self
            .state
            .services
            .values()
            .flat_map(|service| &service.backends);
        backends.find(|backend| backend.id == id)
    }

    fn interface(&self, index: u32) -> String {
        match self.facts.links.get(&index) {
            Some(link) => link.name.clone(),
            None => format!("interface {index}"),
        }
    }

    /// Services that ask for a frontend and do not get it.
    fn left_out(&self, to: Option<(SocketAddr, Protocol)>) -> Vec<view::Step> {
        let services = self.state.services.values();
        let left_out = services.flat_map(|service| {
            let of = service.left_out.iter();
            let meant = of.filter(|one| Some((one.address, one.protocol)) == to);
            meant.map(|one| row("left out", &service.name, one.rule.to_string()))
        });
        left_out.collect()
    }

    /// The rule by which a packet ended, where the contract has one.
    fn rule(
        &self,
        reason: Reason,
        met: Option<(&Service, &Frontend)>,
        to: Option<(SocketAddr, Protocol)>,
    ) -> Option<Rule> {
        let rules = met.and_then(|(_, frontend)| frontend.rules);
        match reason {
            Reason::NoBackend | Reason::NoLocalBackend => rules?.unserved,
            Reason::SourceDenied => Some(rules?.clients),
            Reason::UnknownPort => {
                let (to, _) = to?;
                let services = self.state.services.values();
                let mut frontends = services.flat_map(|service| &service.frontends);
                let other = frontends.find(|frontend| frontend.address.ip() == to.ip())?;
                other.rules?.others
            }
            _ => None,
        }
    }

    fn rows(&self, step: Step, rules: Option<FrontendRules>) -> Vec<view::Step> {
        match step {
            Step::Frontend { id, .. } => vec![match (self.frontend(id), rules) {
                (Some((service, _)), Some(rules)) => {
                    row("frontend", &service.name, rules.asked.to_string())
                }
                (Some((service, frontend)), None) => {
                    row("frontend", &service.name, view::frontend(frontend))
                }
                (None, _) => row("frontend", format!("id {id}"), "the agent does not know it"),
            }],
            Step::Source { allowed: true } => vec![source("allowed", rules, "in sourceRanges")],
            Step::Source { allowed: false } => vec![source("denied", rules, "not in sourceRanges")],
            Step::Flow { known: true } => vec![row("flow", "hit", "known flow")],
            Step::Flow { known: false } => vec![row("flow", "miss", "new flow")],
            Step::Slot {
                index,
                log2,
                generation,
                hash,
            } => {
                let why = if log2 == 0 {
                    "one slot needs no hash".to_owned()
                } else {
                    format!("hash {hash:016x}")
                };
                // As the pipeline reads a word that no agent wrote.
                let size = 1u32 << (log2 & 31);
                vec![row("slot", format!("{index}/{size} gen {generation}"), why)]
            }
            Step::Owner { ordinal, chain } => {
                let chain: Vec<_> = (0..OWNERS as u32)
                    .map(|at| match owner(chain, at) {
                        NO_OWNER => "-".to_owned(),
                        ordinal => ordinal.to_string(),
                    })
                    .collect();
                let why = format!("chain {}", chain.join(" "));
                vec![row("owner", format!("ord {ordinal}"), why)]
            }
            Step::Backend { id, mode } => self.backend_rows(id, mode),
            Step::Rewrite {
                source,
                source_port,
                destination,
                destination_port,
            } => {
                let (from, to) = (source.to_ip(), destination.to_ip());
                let (from_port, to_port) = (source_port.to_host(), destination_port.to_host());
                vec![if (from_port, to_port) == (0, 0) {
                    row("rewrite", format!("{from} > {to}"), "outer header")
                } else {
                    let from = SocketAddr::new(from, from_port);
                    let to = SocketAddr::new(to, to_port);
                    row("rewrite", format!("{from} > {to}"), "addresses and ports")
                }]
            }
            Step::NextHop { ifindex, tags, mac } => {
                let name = format!("{}{}", self.interface(ifindex), tags_text(tags));
                vec![match mac {
                    Some(mac) => row(
                        "next hop",
                        format!("{name} {}", mac_text(mac)),
                        "neighbour known",
                    ),
                    None => row("next hop", name, "the kernel resolves the neighbour"),
                }]
            }
            Step::Announced { address, mac } => {
                let [a, b, c, d, e, f, _, _] = mac.to_le_bytes();
                let (address, mac) = (address.to_ip(), mac_text([a, b, c, d, e, f]));
                vec![row(
                    "announced",
                    format!("{address} is at {mac}"),
                    "announce.l2",
                )]
            }
            Step::Follows => vec![row("fragment", "later", "follows its first")],
            Step::About {
                source,
                source_port,
                destination,
                destination_port,
            } => {
                let from = SocketAddr::new(source.to_ip(), source_port.to_host());
                let to = SocketAddr::new(destination.to_ip(), destination_port.to_host());
                vec![row("ICMP", "an error", format!("about {from} > {to}"))]
            }
            Step::Fits { mtu } => vec![row("MTU", mtu.to_string(), "the most that fits")],
            Step::End(Reason::HandedUp) => {
                vec![row("XDP", "handed up", why(Reason::HandedUp))]
            }
            Step::End(_) => vec![],
        }
    }

    fn backend_rows(&self, id: u32, mode: u8) -> Vec<view::Step> {
        let known = self.backend(id);
        let origin = known.and_then(|backend| backend.origin.as_ref());
        let backend = match (known, origin) {
            (Some(backend), Some(origin)) => {
                let node = origin.node.as_ref();
                let on = node.map(|node| format!(" on {node}")).unwrap_or_default();
                let result = format!("{}{on}", backend.address);
                row("backend", result, origin.chosen.to_string())
            }
            (Some(backend), None) => row(
                "backend",
                backend.address.to_string(),
                match backend.state {
                    BackendState::Ready => "ready",
                    BackendState::Drain => "drains; this flow stays",
                    BackendState::Down => "down; this flow stays",
                },
            ),
            (None, _) => row("backend", format!("id {id}"), "the agent does not know it"),
        };
        let (mode, why) = match mode {
            mode if mode == Mode::Nat as u8 => (Mode::Nat.name(), "replies come back here"),
            mode if mode == Mode::Ipip as u8 => (Mode::Ipip.name(), "replies go direct"),
            mode if mode == Mode::L2 as u8 => (Mode::L2.name(), "replies go direct"),
            mode if mode == Mode::Local as u8 => {
                (Mode::Local.name(), "replies get the VIP on their way out")
            }
            mode if mode == Mode::Dsr as u8 => (
                Mode::Dsr.name(),
                "its node delivers, and replies from there",
            ),
            mode if mode == Mode::Pass as u8 => (Mode::Pass.name(), "kube-proxy serves it"),
            _ => ("?", "not a mode of this version"),
        };
        let placed = origin.map(|origin| format!("{}: ", origin.placed));
        let why = format!("{}{why}", placed.unwrap_or_default());
        vec![backend, row("mode", mode, why)]
    }

    fn verdict(
        &self,
        decision: &Decision,
        reason: Option<Reason>,
        rule: Option<Rule>,
        sendable: bool,
    ) -> (Outcome, String, String) {
        let unchanged = "nothing changed".to_owned();
        let because = |reason: Reason| match rule {
            Some(rule) => format!("{}: {rule}", reason.name()),
            None => format!("{}: {}", reason.name(), why(reason)),
        };
        let ingress = decision.ingress;
        match decision.verdict {
            Verdict::NotOurs if self.state.bypass => {
                (Outcome::Passed, "PASS".into(), "bypass is on".into())
            }
            Verdict::NotOurs => (
                Outcome::Passed,
                "PASS".into(),
                "not ours: no VIP, no reply to a flow".into(),
            ),
            Verdict::Pass(reason) => (Outcome::Passed, "PASS".into(), because(reason)),
            Verdict::Drop(reason) => (Outcome::Dropped, "DROP".into(), because(reason)),
            Verdict::Transmit => match reason.filter(|reason| reason.kind() == "answered") {
                Some(reason) => (Outcome::Answered, "ANSWER".into(), because(reason)),
                None => (
                    Outcome::Forwarded,
                    format!("TX {}", self.interface(ingress)),
                    unchanged,
                ),
            },
            Verdict::Redirect { ifindex } if !sendable => (
                Outcome::Dropped,
                "DROP".into(),
                format!("XDP may not send on {}", self.interface(ifindex)),
            ),
            Verdict::Redirect { ifindex } => {
                let verdict = format!("REDIRECT {}", self.interface(ifindex));
                (Outcome::Forwarded, verdict, unchanged)
            }
            Verdict::Rewritten => (
                Outcome::Forwarded,
                "LOCAL".into(),
                "the stack delivers it on this node".into(),
            ),
            Verdict::Neighbour { ifindex } => {
                let verdict = format!("REDIRECT {} by tc", self.interface(ifindex));
                (Outcome::Forwarded, verdict, unchanged)
            }
        }
    }
}

/// Of a [`lb_common::abi::Segment`]; the outer tag first.
fn tags_text(tags: u32) -> String {
    let numbers = [tags, tags >> 16];
    let numbers = numbers.into_iter().filter(|tag| tag & TAG_PRESENT != 0);
    let numbers: Vec<_> = numbers.map(|tag| (tag & 0xfff).to_string()).collect();
    if numbers.is_empty() {
        return String::new();
    }
    format!(" vlan {}", numbers.join("."))
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What a reason means, for people.
const fn why(reason: Reason) -> &'static str {
    match reason {
        Reason::Icmp => "neighbour discovery: the kernel's",
        Reason::Protocol => "neither TCP nor UDP",
        Reason::Echo => "an echo request to a VIP",
        Reason::TooBig => "does not fit the way to the backend: the client is told what does",
        Reason::TunnelProbe => "another node asks whether packets come through to here",
        Reason::DoesNotFit => {
            "does not fit the way to the backend, and the client cannot send less: raise the MTU behind"
        }
        Reason::Pass => "kube-proxy serves it",
        Reason::NoFlow => "no flow has this tuple: what began without us goes on without us",
        Reason::HandedUp => "neighbour unknown, or XDP cannot send there; the tc program goes on",
        Reason::TooDeep => "options or extension headers beyond what is read",
        Reason::ReplyMissed => "from a backend of this node, and of no flow",
        Reason::UnknownPort => "the VIP has no frontend on this port",
        Reason::NoBackend => "the service has no usable backend",
        Reason::Neighbour => "a neighbour asks for an announced VIP",
        Reason::Malformed => "lengths contradict each other",
        Reason::SourceDenied => "the client is in none of the service's sourceRanges",
        Reason::TtlExpired => "TTL or hop limit is used up",
        Reason::PortsExhausted => "no nat port is free: widen nat.ports or add nat.addresses",
        Reason::FlowTableFull => "the flow table is full: raise limits.flows",
        Reason::NoRoute => "no route to the backend",
        Reason::RejectLimited => "more answers than the budget allows",
        Reason::NoHeadroom => "the driver leaves no room for another header",
        Reason::Inconsistent => "map contents contradict each other: restart the agent",
        Reason::NotAnswered => "nothing is owed to this packet",
        Reason::FragmentUnknown => "its first fragment did not come before it, or long ago",
        Reason::FragmentOverlap => "claims bytes of its first fragment",
        Reason::FragmentTiny => "a first fragment without the whole transport header",
        Reason::FragmentLimited => "more first fragments than the budget allows",
        Reason::IcmpMalformed => "an ICMP error that embeds no packet of the VIP",
        Reason::IcmpUnmatched => "an ICMP error about a packet of no frontend or flow",
        Reason::IcmpMtu => "tells of an MTU below the minimum: forged",
        Reason::IcmpType => "ICMP that is neither an echo request nor an error",
        Reason::TupleTaken => {
            "the client's port is taken at the backend, by its connection to another frontend"
        }
        Reason::NoLocalBackend => {
            "traffic policy Local, and no backend on this node: another node serves a retry"
        }
        Reason::TunnelMalformed => "to the end of the tunnels, and no packet of a tunnel of ours",
        Reason::TunnelTag => {
            "its tag is wrong, or made with a key that counts no more: do all nodes have the same keys?"
        }
        Reason::TunnelTarget => {
            "out of a tunnel, for a backend that this node does not have behind that VIP"
        }
    }
}
