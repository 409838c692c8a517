//! What must not break a connection: a rolling replacement of backends, and the death of the agent. And what an agent
//! refuses to start beside.

#![expect(
    clippy::print_stdout,
    reason = "the broken connections of each mode are a result"
)]

#[path = "restart/datagrams.rs"]
mod datagrams;

use std::{
    collections::BTreeMap,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use lb_tests::{
    balancer::{Balancer, Configuration, PATIENCE},
    clients::{self, Held},
    is_root,
    netns::{Netns, until},
    pass::PassProgram,
    servers::{ECHO, HTTP},
    stage::{self, Stage, Way},
    topology::{Family, Shape, Topology},
};

/// Half of them over IPv4, half over IPv6.
const CONNECTIONS: usize = 10_000;
/// Backends in the configuration at any time.
const MEMBERS: usize = 8;
/// How many of them are replaced, one after the other.
const REPLACED: usize = 4;

#[test]
fn a_rolling_replacement_breaks_no_nat_connection() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let Replacement { broken, .. } = roll(Way::Nat)?;
    println!("nat: {} of {CONNECTIONS} connections broken", sum(&broken));
    assert_eq!(broken, [].into());
    Ok(())
}

#[test]
fn a_rolling_replacement_moves_only_the_replaced_backends_connections_in_l2() -> Result<()> {
    stateless(Way::L2)
}

#[test]
fn a_rolling_replacement_moves_only_the_replaced_backends_connections_in_ipip() -> Result<()> {
    stateless(Way::IpipOver(Family::V4))
}

/// Without flow state a connection breaks when its slot gets another owner, and only then.
fn stateless(way: Way) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let Replacement { before, broken } = roll(way)?;
    let moved: usize = (1..=REPLACED)
        .map(|n| before.get(&format!("b{n}")).unwrap_or(&0))
        .sum();
    println!(
        "{way:?}: {} of {CONNECTIONS} connections broken; the replaced backends held {moved}",
        sum(&broken)
    );
    ensure!(
        sum(&broken) <= moved,
        "more than moved: {broken:?} of {before:?}"
    );
    Ok(())
}

struct Replacement {
    before: BTreeMap<String, usize>,
    broken: BTreeMap<String, usize>,
}

/// Replaces backends one after the other under open connections. The old ones go on running: whatever breaks, the
/// balancer broke.
fn roll(way: Way) -> Result<Replacement> {
    let mut stage = Stage::set_with(
        way,
        Shape::OneArm,
        MEMBERS + REPLACED,
        |mut configuration| {
            configuration.nat_ports = Some("20000-65535".into());
            members(&mut configuration, 0);
            configuration
        },
    )?;
    let mut held = hold(&stage)?;
    let mut before = BTreeMap::new();
    for connections in &held {
        for (name, count) in connections.by_backend() {
            *before.entry(name.to_owned()).or_default() += count;
        }
    }
    let all = stage::services(way, &stage.topology.backends);
    for first in 1..=REPLACED {
        stage.configuration.services.clone_from(&all);
        members(&mut stage.configuration, first);
        stage.balancer.configure(&stage.configuration)?;
    }
    let mut broken = BTreeMap::new();
    for connections in &mut held {
        for (name, count) in connections.round_trip() {
            *broken.entry(name).or_default() += count;
        }
    }
    Ok(Replacement { before, broken })
}

/// Keeps the backends `first..first + MEMBERS` of every service.
fn members(configuration: &mut Configuration, first: usize) {
    for service in &mut configuration.services {
        service.backends = service.backends[first..first + MEMBERS].to_vec();
    }
}

/// A13.4
#[test]
fn ten_deaths_of_the_agent_break_no_connection() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = Stage::set_with(Way::Nat, Shape::OneArm, 4, |mut configuration| {
        configuration.nat_ports = Some("20000-65535".into());
        configuration
    })?;
    let mut held = hold(&stage)?;
    let going = AtomicBool::new(true);
    let client = stage.client().clone();
    let vip = stage.vip(Family::V4, HTTP);
    let traffic = thread::scope(|scope| {
        let clients =
            scope.spawn(|| clients::http_while(&client, vip, 2, || going.load(Ordering::Relaxed)));
        let outcome = die_ten_times(&mut stage, &mut held);
        going.store(false, Ordering::Relaxed);
        outcome.map(|()| clients.join().expect("clients"))
    })?;
    println!(
        "{} requests while the agent died ten times",
        traffic.answered()
    );
    assert!(
        traffic.answered() > 0 && traffic.failures.is_empty(),
        "{traffic:?}"
    );
    Ok(())
}

fn die_ten_times(stage: &mut Stage, held: &mut [Held]) -> Result<()> {
    for death in 1..=10 {
        stage.balancer.kill()?;
        for family in Family::BOTH {
            let orphaned = clients::http(stage.client(), stage.vip(family, HTTP), 200, 2);
            ensure!(
                orphaned.failures.is_empty(),
                "while dead, {death}: {orphaned:?}"
            );
        }
        stage.balancer.run()?;
        stage.balancer.wait_for(&stage.configuration)?;
        for connections in &mut *held {
            let broken = connections.round_trip();
            ensure!(broken.is_empty(), "after death {death}: {broken:?}");
        }
    }
    Ok(())
}

fn hold(stage: &Stage) -> Result<Vec<Held>> {
    Family::BOTH
        .into_iter()
        .map(|family| Held::open(stage.client(), stage.vip(family, ECHO), CONNECTIONS / 2))
        .collect()
}

#[test]
fn a_stopped_agent_leaves_the_programs_forwarding() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = Stage::set(Way::Nat, Shape::OneArm)?;
    stage.balancer.stop()?;
    for family in Family::BOTH {
        let answers = clients::http(stage.client(), stage.vip(family, HTTP), 200, 2);
        assert!(answers.failures.is_empty(), "{family:?}: {answers:?}");
    }
    Ok(())
}

#[test]
fn detach_leaves_nothing_behind() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = Stage::set(Way::Nat, Shape::OneArm)?;
    let host = stage.topology.balancer.netns.clone();
    assert!(xdp_program(&host)?.is_some(), "nothing attached");
    stage.balancer.stop()?;
    stage.balancer.cli(&["detach"])?;
    assert_eq!(xdp_program(&host)?, None);
    let filters =
        host.run(Command::new("tc").args(["filter", "show", "dev", "eth0", "ingress"]))?;
    assert_eq!(filters, "");
    assert!(!stage.balancer.has_pins(), "pins are left");
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_interface_is_refused() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set(Way::Nat, Shape::OneArm)?;
    let host = &stage.topology.balancer.netns;
    let attached = xdp_program(host)?;
    let (code, said) = stage.balancer.refusal()?;
    assert_eq!(code, Some(9), "with the same pin folder: {said}");
    let second = Balancer::prepare(host)?;
    second.write(&stage.configuration.to_string())?;
    let (code, said) = second.refusal()?;
    assert_eq!(code, Some(9), "{said}");
    assert!(said.contains("eth0"), "{said}");
    assert_eq!(xdp_program(host)?, attached, "replaced");
    drop(second);
    let answers = clients::http(stage.client(), stage.vip(Family::V4, HTTP), 200, 2);
    assert!(answers.failures.is_empty(), "{answers:?}");
    Ok(())
}

#[test]
fn a_foreign_xdp_program_is_named_and_not_replaced() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let host = &topology.balancer.netns;
    let _stranger = PassProgram::attach(host, "eth0")?;
    let attached = xdp_program(host)?.expect("the stranger");
    let balancer = Balancer::prepare(host)?;
    let configuration = stage::configuration(Way::Nat, Shape::OneArm, &topology.backends);
    balancer.write(&configuration.to_string())?;
    let (code, said) = balancer.refusal()?;
    assert_eq!(code, Some(8), "{said}");
    assert!(
        said.contains("eth0") && said.contains(&attached),
        "not named: {said}"
    );
    drop(balancer);
    assert_eq!(xdp_program(host)?, Some(attached));
    Ok(())
}

#[test]
fn a_missing_interface_is_named() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let netns = Netns::create("empty")?;
    let balancer = Balancer::prepare(&netns)?;
    let configuration = Configuration {
        interfaces: vec!["eth9".into()],
        nat_ports: None,
        announce: false,
        services: Vec::new(),
    };
    balancer.write(&configuration.to_string())?;
    let (code, said) = balancer.refusal()?;
    assert_eq!(code, Some(7), "{said}");
    assert!(said.contains("eth9"), "{said}");
    Ok(())
}

#[test]
fn an_interface_that_vanishes_is_named_and_taken_up_when_it_returns() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = Stage::set(Way::Nat, Shape::OneArm)?;
    let shown = |stage: &Stage, what: &str| {
        until(PATIENCE, || {
            let interfaces = stage.balancer.json(&["status"])?["interfaces"].to_string();
            ensure!(
                interfaces.contains("eth0") && interfaces.contains(what),
                "{interfaces}"
            );
            Ok(())
        })
    };
    stage.topology.unplug_balancer()?;
    shown(&stage, "missing")?;
    stage.topology.plug_balancer()?;
    shown(&stage, "native")?;
    stage.balancer.wait_for(&stage.configuration)?;
    for family in Family::BOTH {
        let answers = clients::http(stage.client(), stage.vip(family, HTTP), 200, 2);
        assert!(answers.failures.is_empty(), "{family:?}: {answers:?}");
    }
    Ok(())
}

/// The id of the XDP program on `eth0`.
fn xdp_program(netns: &Netns) -> Result<Option<String>> {
    let shown = netns.run(Command::new("ip").args(["link", "show", "dev", "eth0"]))?;
    let id = shown.split("prog/xdp id ").nth(1);
    Ok(id
        .and_then(|id| id.split_whitespace().next())
        .map(str::to_owned))
}

fn sum(counts: &BTreeMap<String, usize>) -> usize {
    counts.values().sum()
}
