//! The safety promises, a test each, named after it: what a balancer on the interface that one is logged in by must never
//! do. Those that need a cluster are elsewhere.

#[path = "safety/doctor.rs"]
mod doctor;
#[path = "safety/host.rs"]
mod host;
#[path = "safety/switch.rs"]
mod switch;
#[path = "safety/tunnels.rs"]
mod tunnels;

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    clients,
    netns::{Netns, until},
    servers::HTTP,
    stage::{Stage, Way},
    topology::{Family, Shape},
};

/// One backend, everything served in `nat`; `head` is put before the configuration.
fn stage(head: &str) -> Result<Stage> {
    let mut stage = Stage::set_with(Way::Nat, Shape::OneArm, 1, |configuration| configuration)?;
    if !head.is_empty() {
        stage.balancer.stop()?;
        write(&stage, head)?;
        stage.balancer.run()?;
        stage.balancer.wait_for(&stage.configuration)?;
    }
    Ok(stage)
}

/// The stage's configuration with more in front of it.
fn write(stage: &Stage, head: &str) -> Result<()> {
    stage
        .balancer
        .write(&format!("{head}{}", stage.configuration))
}

/// The VIPs answer.
fn serves(stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        let answers = clients::http(stage.client(), stage.vip(family, HTTP), 20, 2);
        ensure!(answers.failures.is_empty(), "{family:?}: {answers:?}");
    }
    Ok(())
}

/// Everything passes: the stack has neither the VIPs nor a route for them.
fn passes(stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        let url = format!("http://{}/", stage.vip(family, HTTP));
        let answer = clients::curl(stage.client(), &["--connect-timeout", "1", &url]);
        ensure!(answer.is_err(), "{url} answers: {answer:?}");
    }
    Ok(())
}

/// `millrace status -o json`, with an agent or without.
fn status(stage: &Stage) -> Result<serde_json::Value> {
    let output = stage.balancer.output(&["status", "-o", "json"])?;
    let text = String::from_utf8(output.stdout)?;
    serde_json::from_str(&text)
        .with_context(|| format!("{text} {}", String::from_utf8_lossy(&output.stderr)))
}

/// Waits until everything passes for a reason.
fn wait_for_bypass(stage: &Stage, reason: &str) -> Result<()> {
    until(clients::PATIENCE * 3, || {
        let status = status(stage)?;
        ensure!(status["bypassReason"] == reason, "{status}");
        Ok(())
    })
    .with_context(|| stage.balancer.log())
}

/// Everything about a host that we might change: what is attached to its interfaces, their offloads, its settings.
fn picture(host: &Netns) -> Result<Vec<String>> {
    let mut picture = Vec::new();
    for command in [
        "bpftool net",
        "tc qdisc show",
        "tc filter show dev eth0 ingress",
        "ip -d link",
        "ip -br address",
        "ip maddress",
        "ip route show table all",
        "ip -6 route show table all",
        "nft list ruleset",
        "ethtool -k eth0",
    ] {
        let mut words = command.split(' ');
        let program = words.next().context("a program")?;
        let shown = host.run(Command::new(program).args(words))?;
        picture.extend(shown.lines().map(|line| format!("{command}: {line}")));
    }
    picture.extend(host.enter(|| settings("/proc/sys/net")));
    Ok(picture)
}

/// Every setting below a folder, but for what the kernel itself counts there.
fn settings(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let path = entry.path().display().to_string();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(settings(&path));
        } else if !path.ends_with("_count")
            && let Ok(value) = fs::read_to_string(&path)
        {
            found.push(format!("{path} = {}", value.trim()));
        }
    }
    found.sort();
    found
}

/// What one picture has and the other has not.
fn difference<'a>(one: &'a [String], other: &'a [String]) -> Vec<&'a String> {
    let missing = |from: &'a [String], to: &'a [String]| {
        from.iter()
            .filter(|line| !to.contains(line))
            .collect::<Vec<_>>()
    };
    [missing(one, other), missing(other, one)].concat()
}
