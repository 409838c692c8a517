//! The demo: a small network, real programs, the balancer between them, and a person who watches for the first time.
//!
//! Each part prints what it is about, does it, prints what came of it, and hands what it found to the [`Score`], from
//! which the last line and the exit code come.

#![expect(clippy::print_stdout, reason = "the demo speaks to a person")]

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, ensure};

use crate::{
    balancer::Configuration,
    clients::Answers,
    servers::{DNS, ECHO, HTTP},
    stage::{Stage, Way, tracked_connections},
    topology::{Family, Shape, VIP4, VIP6},
};

mod changes;
mod score;
mod traffic;

use score::Score;

const BACKENDS: usize = 4;

const PICTURE: &str = "
     client c1 ── 198.51.100.7, 2001:db8:a::7 ─┐                  ┌─ b1  10.0.0.11, fd00::11
                                            router ─── switch ────┼─ b2  10.0.0.12, fd00::12
     client c2 ── 203.0.113.7,  2001:db8:b::7 ─┘         │        ├─ b3  10.0.0.13, fd00::13
                                                         │        └─ b4  10.0.0.14, fd00::14
                                             balancer lb, 10.0.0.2, fd00::2
                               takes 192.0.2.10 and 2001:db8::10, the virtual addresses (VIPs)
";

/// Runs all of it; success is every request answered and every claim proven.
pub fn run() -> ExitCode {
    let mut score = Score::default();
    if let Err(error) = play(&mut score) {
        println!("\nThe demo could not go on: {error:?}");
        return ExitCode::FAILURE;
    }
    score.verdict()
}

fn play(score: &mut Score) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "it needs root: namespaces and BPF programs"
    );
    let begin = Instant::now();
    println!(
        "Millrace demo: a layer-4 load balancer inside the network driver (XDP), between real programs."
    );
    println!(
        "All of it happens in network namespaces made for it; the machine's own network is left alone."
    );

    part("The network");
    println!("Seven machines, each a namespace with its own network stack:\n{PICTURE}");
    println!("On each backend: nginx (HTTP), dnsmasq (DNS) and an echo server (TCP and UDP).");
    let mut stage = Stage::set_with(Way::Nat, Shape::OneArm, BACKENDS, shown_services)?;
    println!(
        "Everything runs after {:.1} s.",
        begin.elapsed().as_secs_f32()
    );

    part("The configuration");
    println!(
        "`millrace run --config balancer.yaml` runs on lb. One of the six services in the file:\n"
    );
    indented(
        &Configuration {
            services: vec![stage.configuration.services[0].clone()],
            ..stage.configuration.clone()
        }
        .to_string(),
    );
    println!("\nWhat lb says of itself (`millrace status`, `millrace services`):\n");
    indented(&stage.balancer.cli(&["status"])?);
    println!();
    indented(&stage.balancer.cli(&["services"])?);

    traffic::http(&stage, score)?;
    traffic::dns(&stage, score);
    traffic::datagrams(&stage, score);
    explain(&stage)?;
    changes::drain(&stage, score)?;
    changes::kill(&mut stage, score)?;
    proof(&stage, score)?;
    println!(
        "\nThat took {:.0} s. The namespaces, programs and maps are removed now.",
        begin.elapsed().as_secs_f32()
    );
    Ok(())
}

/// HTTP, echo and DNS on both families, all with health checks, with more ports for `nat` than thousands of
/// connections within seconds can use up.
fn shown_services(mut configuration: Configuration) -> Configuration {
    configuration.nat_ports = Some("20000-65535".into());
    configuration
        .services
        .retain(|service| !service.name.starts_with("iperf"));
    for service in &mut configuration.services {
        service.health = true;
    }
    configuration
}

fn explain(stage: &Stage) -> Result<()> {
    part("One packet explained");
    println!(
        "The same code that runs in the kernel, run on a snapshot of its tables: what would happen to this one?\n"
    );
    let to = format!("{}/tcp", stage.vip(Family::V4, HTTP));
    println!("  $ millrace explain --from 198.51.100.7:50312 --to {to}");
    indented(
        &stage
            .balancer
            .cli(&["explain", "--from", "198.51.100.7:50312", "--to", &to])?,
    );
    Ok(())
}

fn proof(stage: &Stage, score: &mut Score) -> Result<()> {
    part("Who did the work");
    let packets = score::xdp_packets(&stage.balancer)?;
    let needed = score.packets_needed();
    println!(
        "The XDP program counted {packets} packets; the requests above need at least {needed}."
    );
    score.claim(
        packets >= needed,
        "the XDP program handled every packet of every request",
    );

    let tracked = tracked_connections(&stage.topology.balancer.netns)?;
    let vips = tracked
        .iter()
        .filter(|line| {
            [VIP4.to_string(), VIP6.to_string()]
                .iter()
                .any(|vip| line.contains(&format!("={vip} ")))
        })
        .count();
    println!(
        "The kernel's own connection tracking on lb knows {} connections (health checks), {vips} of them to a VIP.",
        tracked.len()
    );
    score.claim(
        !tracked.is_empty() && vips == 0,
        "no packet for a VIP went through lb's own network stack",
    );
    Ok(())
}

/// A headline.
fn part(title: &str) {
    println!("\n== {title} {}\n", "=".repeat(92 - title.len()));
}

fn indented(text: &str) {
    for line in text.lines() {
        println!("  {line}");
    }
}

/// Who answered, as a table.
fn answers_table(answers: &Answers) {
    println!("  {:<10}{:>9}{:>9}", "BACKEND", "ANSWERS", "SHARE");
    for (name, count) in &answers.by_backend {
        let share = *count as f64 * 100.0 / answers.answered() as f64;
        println!(
            "  {name:<10}{count:>9}{share:>8.1}%  {}",
            "#".repeat(share.round() as usize)
        );
    }
    for (what, count) in &answers.failures {
        println!("  FAILED    {count:>9}  {what}");
    }
}
