//! `millrace doctor`: what it finds on real interfaces, and that its changes have a way back.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    balancer::Balancer,
    is_root,
    netns::Netns,
    pass::PassProgram,
    stage::{self, Way},
    topology::{Shape, Topology},
};
use lb_userspace::{
    attach::{self, Mend},
    doctor::{Line, State},
    net::{
        drivers,
        ethtool::{self, Offload},
    },
};

/// What `millrace doctor ARGUMENTS` says, and how it ends.
fn doctor(balancer: &Balancer, arguments: &[&str]) -> Result<(Vec<Line>, i32)> {
    let output = balancer.output(&[&["doctor", "-o", "json"], arguments].concat())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = serde_json::from_slice(&output.stdout).with_context(|| said.into_owned())?;
    Ok((lines, output.status.code().context("killed")?))
}

pub(super) fn line<'a>(lines: &'a [Line], check: &str) -> Result<&'a Line> {
    let found = lines.iter().find(|line| line.check == check);
    found.with_context(|| format!("no {check} in {lines:#?}"))
}

fn reserved(host: &Netns) -> Result<String> {
    let mut sysctl = Command::new("sysctl");
    host.run(sysctl.args(["-n", "net.ipv4.ip_local_reserved_ports"]))
}

#[test]
fn doctor_tells_a_fit_machine_from_an_unfit_one() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let host = &topology.balancer.netns;
    let mut balancer = Balancer::prepare(host)?;
    let configuration = stage::configuration(Way::Nat, Shape::OneArm, &topology.backends);
    balancer.write(&configuration.to_string())?;
    let file = balancer.file().display().to_string();
    let judged = ["--config", &*file];

    let (lines, code) = doctor(&balancer, &judged)?;
    ensure!(code == 0, "{lines:#?}");
    ensure!(
        line(&lines, "driver")?
            .found
            .starts_with("veth, native XDP since 4.19")
    );
    ensure!(line(&lines, "mtu")?.found == "1500 of at most 3506");
    ensure!(line(&lines, "nat ports")?.state == State::Ok);
    let shown = balancer.cli(&["doctor", "--config", &file])?;
    println!("{shown}");
    ensure!(shown.ends_with("\nfit\n"), "{shown}");

    // Ours is no stranger, and its agent gives signs of life.
    balancer.run()?;
    let (lines, code) = doctor(&balancer, &judged)?;
    ensure!(code == 0, "{lines:#?}");
    ensure!(line(&lines, "xdp")?.found == "ours, native");
    ensure!(line(&lines, "heartbeat")?.found.ends_with(" s ago"));
    balancer.stop()?;
    balancer.cli(&["detach"])?;

    // A stranger, and an interface that is not there.
    let stranger = PassProgram::attach(host, "eth0")?;
    let (lines, code) = doctor(&balancer, &judged)?;
    let xdp = line(&lines, "xdp")?;
    ensure!(code == 13 && xdp.state == State::Unfit, "{xdp:?}");
    ensure!(xdp.fix.as_deref() == Some("ip link set dev eth0 xdp off"));
    drop(stranger);
    let (lines, code) = doctor(&balancer, &["--interface", "eth9"])?;
    ensure!(code == 13 && line(&lines, "interface")?.state == State::Unfit);

    // Strict filters limit what passes.
    host.sysctl("net.ipv4.conf.eth0.rp_filter", "1")?;
    let (lines, code) = doctor(&balancer, &judged)?;
    ensure!(code == 12 && line(&lines, "rp_filter")?.state == State::Limit);
    Ok(())
}

#[test]
fn the_driver_table_is_right_about_veth() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let most = drivers::known("veth").and_then(|veth| veth.max_mtu);
    let most = most.context("a limit")?;
    for (mtu, fits) in [(most, true), (most + 1, false)] {
        topology.router.ip([&*format!("link set lb mtu {mtu}")])?;
        let attached = PassProgram::attach(&topology.balancer.netns, "eth0");
        ensure!(attached.is_ok() == fits, "{mtu}: {attached:?}");
    }
    Ok(())
}

#[test]
fn nat_beside_a_masquerading_kube_proxy_is_refused() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let host = &topology.balancer.netns;
    let balancer = Balancer::prepare(host)?;
    let configuration = stage::configuration(Way::Nat, Shape::OneArm, &topology.backends);
    balancer.write(&configuration.to_string())?;
    // As kube-proxy's nftables mode writes it.
    for rules in [
        "add table ip kube-proxy",
        "add chain ip kube-proxy masquerading",
        "add rule ip kube-proxy masquerading masquerade fully-random",
    ] {
        host.run(Command::new("nft").args(rules.split(' ')))?;
    }
    let (code, said) = balancer.refusal()?;
    ensure!(code == Some(2) && said.contains("nat.addresses"), "{said}");
    ensure!(
        said.contains("kube-proxy") && said.contains("10.0.0.2"),
        "{said}"
    );
    let file = balancer.file().display().to_string();
    let check = balancer.output(&["check", &file])?;
    ensure!(check.status.code() == Some(2), "{check:?}");
    let (lines, code) = doctor(&balancer, &["--config", &file])?;
    let masquerade = line(&lines, "masquerade")?;
    ensure!(
        code == 13 && masquerade.state == State::Unfit,
        "{masquerade:?}"
    );
    Ok(())
}

#[test]
fn what_doctor_fixes_it_writes_down_and_detach_undoes() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let host = &topology.balancer.netns;
    host.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    host.sysctl("net.ipv4.ip_local_reserved_ports", "8080")?;
    let balancer = Balancer::prepare(host)?;
    let configuration = stage::configuration(Way::Nat, Shape::OneArm, &topology.backends);
    balancer.write(&configuration.to_string())?;
    let file = balancer.file().display().to_string();
    let (lines, code) = doctor(&balancer, &["--config", &file])?;
    let ports = line(&lines, "nat ports")?;
    ensure!(code == 13 && ports.state == State::Unfit, "{ports:?}");
    ensure!(reserved(host)?.trim() == "8080", "changed without --fix");

    for undo in [&["doctor", "--undo"][..], &["detach"]] {
        let (lines, code) = doctor(&balancer, &["--config", &file, "--fix"])?;
        ensure!(code == 0, "{lines:#?}");
        ensure!(reserved(host)?.trim() == "8080,61000-65535");
        let said = balancer.cli(undo)?;
        ensure!(
            said.contains("undone: sysctl -w net.ipv4.ip_local_reserved_ports=8080\n"),
            "{said}"
        );
        ensure!(reserved(host)?.trim() == "8080");
    }
    ensure!(!balancer.run_folder().exists(), "the run folder is left");

    // What someone else has changed since is theirs.
    doctor(&balancer, &["--config", &file, "--fix"])?;
    host.sysctl("net.ipv4.ip_local_reserved_ports", "9090")?;
    let said = balancer.cli(&["detach"])?;
    ensure!(said.contains("changed since by someone else"), "{said}");
    ensure!(reserved(host)?.trim() == "9090");
    Ok(())
}

#[test]
fn an_offload_is_switched_and_switched_back() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let host = &topology.balancer.netns;
    let balancer = Balancer::prepare(host)?;
    host.run(Command::new("ethtool").args(["-K", "eth0", "rxvlan", "on"]))?;
    let shown = || -> Result<bool> {
        let shown = host.run(Command::new("ethtool").args(["-k", "eth0"]))?;
        Ok(shown.contains("rx-vlan-offload: on"))
    };
    ensure!(shown()?);
    let (pins, run) = (balancer.pins(), balancer.run_folder());
    host.enter(|| -> Result<()> {
        let stands = ethtool::offload("eth0", Offload::RxVlan)?;
        ensure!(stands.on && stands.free, "{stands:?}");
        let lro = ethtool::offload("eth0", Offload::Lro)?;
        ensure!(!lro.on && !lro.free, "{lro:?}");
        let mend = Mend::Offload {
            interface: "eth0".into(),
            offload: Offload::RxVlan,
            on: false,
        };
        ensure!(attach::mend(pins, &run, &mend)?);
        ensure!(!attach::mend(pins, &run, &mend)?, "twice");
        Ok(())
    })?;
    ensure!(!shown()?);
    let said = balancer.cli(&["doctor", "--undo", "--interface", "eth7"])?;
    ensure!(said == "nothing to undo\n" && !shown()?, "{said}");
    let said = balancer.cli(&["doctor", "--undo"])?;
    ensure!(said == "undone: ethtool -K eth0 rxvlan on\n", "{said}");
    ensure!(shown()?);
    Ok(())
}
