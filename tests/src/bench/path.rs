//! `bench path`: packets per second and new flows per second through the same interfaces, for us and for an nftables map
//! in the shape that kube-proxy writes, in one run.
//!
//! generator → veth → balancer → veth → sink, and for backends of another node generator → veth → director → veth →
//! receiver → veth → sink, all on one core: with two nodes it is the cost of the whole way that is compared, not what one
//! of them could carry. Frames are injected as XDP live frames, so they arrive as a NIC's driver would deliver them, and are
//! counted and dropped by a program on the last interface. Seconds are those of the processor, so that others on the same
//! machine change little.

mod nftables;
mod stage;

use std::{fmt::Write as _, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use self::stage::{Generator, Stage};
use super::{
    contents::{self, Kind as Service},
    frames::Kind,
    machine,
};

/// Rounds of each case, taken in turns; the fastest counts.
const ROUNDS: u32 = 15;
/// Packets in a round of established flows.
const PACKETS: u32 = 200_000;
/// New flows in a round: as many as fit the kernel's connection tracking without it being full.
const NEW_FLOWS: u32 = 100_000;
/// Established flows.
const FLOWS: u32 = 8192;
/// More flows than are ever sent.
const ENDLESS: u64 = 1 << 31;

/// Who balances.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Millrace,
    /// On the first node, which gives packets a backend's address and its own; a second one has routes only.
    Nftables,
    /// Nobody: packets are to a backend's own address. With one node it is what a receiver's stack takes by itself.
    Routes,
}
use Way::{Millrace, Nftables, Routes};

struct Case {
    name: &'static str,
    way: Way,
    service: Service,
    new: bool,
    /// Times what nftables does.
    target: Option<f64>,
}

const fn case(name: &'static str, way: Way, service: Service, new: bool, target: f64) -> Case {
    Case {
        name,
        way,
        service,
        new,
        target: if target > 0.0 { Some(target) } else { None },
    }
}

impl Case {
    /// Whether the backends are another node's.
    fn has_two_nodes(&self) -> bool {
        self.service == Service::Local
    }

    fn destination(&self) -> SocketAddr {
        match self.way {
            Routes => SocketAddr::new(self.service.backend(0), contents::PORT),
            Millrace | Nftables => self.service.vip(),
        }
    }

    /// Whether `self` is what nftables does with the packets of `other`.
    fn is_base_of(&self, other: &Self) -> bool {
        let [own, others] = [self, other].map(|case| (case.new, case.has_two_nodes()));
        self.way == Nftables && own == others
    }
}

const CASES: [Case; 14] = [
    case("nftables established", Nftables, Service::Nat, false, 0.0),
    case("routes established", Routes, Service::Nat, false, 0.0),
    case("ipip established", Millrace, Service::Ipip4, false, 5.0),
    case("l2 established", Millrace, Service::L2, false, 5.0),
    case("nat established", Millrace, Service::Nat, false, 3.5),
    case(
        "dsr director established",
        Millrace,
        Service::Dsr4,
        false,
        0.0,
    ),
    case("nftables new flows", Nftables, Service::Nat, true, 0.0),
    case("ipip new flows", Millrace, Service::Ipip4, true, 8.0),
    case("nat new flows", Millrace, Service::Nat, true, 2.0),
    case("dsr director new flows", Millrace, Service::Dsr4, true, 0.0),
    case(
        "nftables two nodes established",
        Nftables,
        Service::Local,
        false,
        0.0,
    ),
    case("dsr established", Millrace, Service::Local, false, 4.0),
    case(
        "nftables two nodes new flows",
        Nftables,
        Service::Local,
        true,
        0.0,
    ),
    case("dsr new flows", Millrace, Service::Local, true, 0.0),
];

pub(super) fn run(json: bool) -> Result<()> {
    let machine = machine::describe()?;
    let rates = measure()?;
    let ratio = |case: &Case, rate: f64| {
        let mut bases = CASES.iter().zip(&rates);
        let base = bases.find(|(base, _)| base.is_base_of(case));
        base.map(|(_, base)| rate / base)
            .context("a case beside none of nftables")
    };
    let rows = CASES.iter().zip(rates);
    if json {
        let rows = rows
            .map(|(case, rate)| {
                let ratio = (ratio(case, rate)? * 100.0).round() / 100.0;
                Ok(json!({
                    "case": case.name, "per_second": rate.round(),
                    "ratio": ratio, "target": case.target,
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        let whole = json!({ "machine": machine, "rows": rows });
        return machine::print(&format!("{whole:#}"));
    }
    let mut table = format!(
        "{machine}\n\n{:32} {:>12} {:>12} {:>8}\n",
        "case", "per second", "× nftables", "target"
    );
    for (case, rate) in rows {
        let target = case
            .target
            .map_or(String::new(), |times| format!("≥ {times}"));
        let ratio = ratio(case, rate)?;
        writeln!(
            table,
            "{:32} {rate:>12.0} {ratio:>12.1} {target:>8}",
            case.name
        )?;
    }
    machine::print(&table)
}

/// Per second, by case.
fn measure() -> Result<[f64; CASES.len()]> {
    let stages = [
        Stage::set(&[contents::OWN], FLOWS)?,
        Stage::set(&[contents::PEER, contents::OWN], FLOWS)?,
    ];
    let cases = CASES
        .iter()
        .map(|case| {
            let stage = &stages[usize::from(case.has_two_nodes())];
            let (kind, flows) = if case.new {
                (Kind::Syn, ENDLESS)
            } else {
                (Kind::Ack, u64::from(FLOWS))
            };
            let generator = stage.generator(case.destination(), kind, flows)?;
            Ok((case, stage, generator))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut best = [0.0_f64; CASES.len()];
    for _ in 0..ROUNDS {
        for (best, (case, stage, generator)) in best.iter_mut().zip(&cases) {
            let rate = match case.way {
                Millrace => with_millrace(case, stage, generator),
                Nftables => with_nftables(case, stage, generator),
                Routes => round(case, stage, generator),
            };
            *best = best.max(rate.context(case.name)?);
        }
    }
    Ok(best)
}

fn with_millrace(case: &Case, stage: &Stage, generator: &Generator) -> Result<f64> {
    let serving = stage.serve()?;
    let rate = round(case, stage, generator);
    drop(serving);
    rate
}

fn with_nftables(case: &Case, stage: &Stage, generator: &Generator) -> Result<f64> {
    nftables::balance(stage.first(), case.service)?;
    if !case.new {
        // Connection tracking takes an established flow up at its first packet.
        stage.send(generator, FLOWS)?;
    }
    let rate = round(case, stage, generator);
    nftables::stop(stage.first())?;
    rate
}

/// Frames that the sink counted, per second of the processor.
fn round(case: &Case, stage: &Stage, generator: &Generator) -> Result<f64> {
    let packets = if case.new { NEW_FLOWS } else { PACKETS };
    let (counted, time) = stage.send(generator, packets)?;
    ensure!(
        counted * 100 >= u64::from(packets) * 95,
        "of {packets} packets {counted} came through"
    );
    Ok(counted as f64 / time.as_secs_f64())
}
