//! `bench packet`: nanoseconds per packet on one core, net of what an empty program costs in the same run.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::bytes::Addr;
use lb_userspace::{attach::Clock, dataplane::Dataplane as _};
use serde_json::json;

use super::{
    assembler::Assembler,
    contents::{self, Kind as Service},
    established,
    frames::{self, Fresh, Kind},
    kernel::{self, XDP_PASS, XDP_TX},
    machine,
};
use crate::{
    director::Director,
    kernel::{Kernel, LOOPBACK},
};

/// Rounds of each case and packets in a round. The fastest round counts: all that disturbs makes rounds slower.
const ROUNDS: u32 = 25;
const PACKETS: u32 = 200_000;

/// Clients' addresses; the last two bytes count.
pub(super) const CLIENT4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0);
pub(super) const MACS: frames::Macs = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

struct Case {
    name: &'static str,
    to: SocketAddr,
    kind: Kind,
    flows: u64,
    /// What the program is to say of each packet.
    action: u32,
    /// Nanoseconds.
    target: Option<f64>,
}

const NOT_OURS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 80);

const fn case(name: &'static str, service: Service, kind: Kind, flows: u64, target: f64) -> Case {
    Case {
        name,
        to: service.vip(),
        kind,
        flows,
        action: XDP_TX,
        target: if target > 0.0 { Some(target) } else { None },
    }
}

/// More flows than fit any table: each packet begins one.
const ENDLESS: u64 = 1 << 31;

/// Flows of which the maps have entries.
const FLOWS: u32 = 1 << 16;

const CASES: [Case; 22] = [
    Case {
        name: "not ours",
        to: NOT_OURS,
        kind: Kind::Ack,
        flows: 1,
        action: XDP_PASS,
        target: Some(20.0),
    },
    case(
        "ipip v4 established, 1 flow",
        Service::Ipip4,
        Kind::Ack,
        1,
        50.0,
    ),
    case(
        "ipip v4 established, 64 k flows",
        Service::Ipip4,
        Kind::Ack,
        1 << 16,
        50.0,
    ),
    case(
        "ipip v4 established, 512 k flows",
        Service::Ipip4,
        Kind::Ack,
        1 << 19,
        50.0,
    ),
    case(
        "ipip v6 established, 1 flow",
        Service::Ipip6,
        Kind::Ack,
        1,
        50.0,
    ),
    case(
        "ipip v6 established, 64 k flows",
        Service::Ipip6,
        Kind::Ack,
        1 << 16,
        50.0,
    ),
    case(
        "ipip v6 established, 512 k flows",
        Service::Ipip6,
        Kind::Ack,
        1 << 19,
        50.0,
    ),
    case("nat hit", Service::Nat, Kind::Ack, 1, 130.0),
    case("nat hit, 64 k flows", Service::Nat, Kind::Ack, 1 << 16, 0.0),
    case(
        "dsr v4 director, 64 k flows",
        Service::Dsr4,
        Kind::Ack,
        1 << 16,
        60.0,
    ),
    case(
        "dsr v6 director, 64 k flows",
        Service::Dsr6,
        Kind::Ack,
        1 << 16,
        70.0,
    ),
    case(
        "syn, dsr v4 director",
        Service::Dsr4,
        Kind::Syn,
        ENDLESS,
        0.0,
    ),
    Case {
        name: "dsr v4 receiver",
        to: Service::Local.vip(),
        kind: Kind::Wrapped,
        flows: 1,
        action: XDP_PASS,
        target: Some(150.0),
    },
    Case {
        name: "local v4, 64 k flows",
        to: Service::Local.vip(),
        kind: Kind::Ack,
        flows: 1 << 16,
        action: XDP_PASS,
        target: None,
    },
    case("nat miss", Service::Nat, Kind::Syn, ENDLESS, 0.0),
    case("syn, ipip", Service::Ipip4, Kind::Syn, ENDLESS, 55.0),
    case("udp, ipip", Service::Ipip4, Kind::Udp, ENDLESS, 50.0),
    case("icmp error", Service::Ipip4, Kind::Error, 1, 250.0),
    case("icmp error, nat", Service::Nat, Kind::Error, 1, 250.0),
    case("first fragment", Service::Ipip4, Kind::First, 1, 150.0),
    case("later fragment", Service::Ipip4, Kind::Later, 1, 120.0),
    case("later fragment, nat", Service::Nat, Kind::Later, 1, 120.0),
];

struct Row {
    case: &'static Case,
    floor: f64,
    net: f64,
}

pub(super) fn run(json: bool) -> Result<()> {
    let machine = machine::describe()?;
    machine::pin(0)?;
    machine::go_first()?;
    let mut kernel = Kernel::load("bench", contents::SIZES)?;
    let clock = Clock::load()?;
    let next_hop = contents::next_hop(MACS[0], MACS[1], LOOPBACK);
    let hz = clock.rate()?;
    let ops = contents::ops(&next_hop, hz);
    kernel.dataplane.apply(&ops)?;
    for (kind, client) in [
        (Service::Nat, CLIENT4.into()),
        (Service::Local, CLIENT4.into()),
    ] {
        let now = clock.now()? as u32;
        established::enter(&kernel, kind, kind.mode(), client, FLOWS, now)?;
    }
    let ends = [contents::PEER, contents::OWN].map(|ip| Addr::from(IpAddr::V4(ip)));
    let director = Director::of(&ops, contents::settings(hz), ends, MACS[1]);
    let info = kernel.xdp()?.info()?;
    let verified = info.verified_instruction_count().unwrap_or(0);
    let translated = info.size_translated().unwrap_or(0) / 8;
    let program = kernel.xdp()?.fd()?.try_clone()?;
    let empty = kernel::load(&Assembler::default().finish(XDP_PASS))?;
    let rows = CASES
        .iter()
        .map(|case| measure(case, &director, program.as_fd(), empty.as_fd()).context(case.name))
        .collect::<Result<Vec<_>>>()?;
    let floor = tenths(rows[0].floor);
    let mut alone = f64::MAX;
    for _ in 0..ROUNDS {
        alone = alone.min(round(empty.as_fd(), &[0; 64], XDP_PASS)?);
    }
    let alone = tenths(alone);
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "case": row.case.name, "ns": tenths(row.net),
                    "verified": verified, "translated": translated,
                })
            })
            .collect();
        let whole = json!({ "machine": machine, "floor_ns": floor, "rows": rows });
        return machine::print(&format!("{whole:#}"));
    }
    let mut table = format!(
        "{machine}\nan empty program: {alone} ns; with a fresh frame each time, the floor: {floor} ns\n\
         program: {verified} instructions verified, {translated} translated\n\n\
         {:34} {:>9} {:>9}\n",
        "case", "ns/packet", "target"
    );
    for row in &rows {
        let target = row
            .case
            .target
            .map_or(String::new(), |ns| format!("≤ {ns}"));
        let (name, ns) = (row.case.name, tenths(row.net));
        writeln!(table, "{name:34} {ns:>9} {target:>9}")?;
    }
    machine::print(&table)
}

fn tenths(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

/// Both programs behind the same trampoline, round by round, so that both see the same machine.
fn measure(
    case: &'static Case,
    director: &Director,
    program: BorrowedFd<'_>,
    empty: BorrowedFd<'_>,
) -> Result<Row> {
    let client = match case.to {
        SocketAddr::V4(_) => IpAddr::V4(CLIENT4),
        SocketAddr::V6(_) => IpAddr::V6(CLIENT6),
    };
    let frame = match case.kind {
        Kind::Wrapped => {
            director.sent(&frames::frame(MACS, client, case.to, Kind::Syn)?)?;
            director.sent(&frames::frame(MACS, client, case.to, Kind::Ack)?)?
        }
        kind => frames::frame(MACS, client, case.to, kind)?,
    };
    let fresh = Fresh::new(frame, case.flows)?;
    let first = match case.kind {
        Kind::Later => Some(frames::frame(MACS, client, case.to, Kind::First)?),
        _ => None,
    };
    let (mut floor, mut whole) = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        floor = floor.min(round(fresh.before(empty)?, &fresh.frame, XDP_PASS)?);
        if let Some(first) = &first {
            kernel::run(program, first, 1)?;
        }
        whole = whole.min(round(fresh.before(program)?, &fresh.frame, case.action)?);
    }
    Ok(Row {
        case,
        floor,
        net: whole - floor,
    })
}

/// Nanoseconds of this thread's processor time per packet.
fn round(program: BorrowedFd<'_>, frame: &[u8], action: u32) -> Result<f64> {
    let before = machine::processor_time();
    let returned = kernel::run(program, frame, PACKETS)?;
    let time = machine::processor_time().saturating_sub(before);
    ensure!(
        returned == action,
        "the program returned {returned}, not {action}"
    );
    Ok(time.as_nanos() as f64 / f64::from(PACKETS))
}
