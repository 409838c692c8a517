//! The host's own addresses, its interfaces and settings, and the programs of others on it.

use std::{io::ErrorKind, net::SocketAddr, process::Command};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    balancer::{Balancer, PATIENCE, Service},
    clients, is_root,
    login::Login,
    netns::until,
    pass::PassProgram,
    servers::{HTTP, HTTP_BEHIND, SSH},
    stage::{self, Stage, Way, service_name},
    topology::{Family, Shape, Topology, VIP4},
};

use super::{difference, passes, picture, serves, stage, status};

/// Waits until the agent has refused what was written last.
fn refused(stage: &Stage, before: usize, field: &str) -> Result<()> {
    until(clients::PATIENCE, || {
        let said = stage.balancer.log()[before..].to_owned();
        ensure!(said.contains(field), "{field} is not in: {said}");
        Ok(())
    })
}

#[test]
fn never_take_the_host_away() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = stage("")?;
    let mut login = Login::open(&stage.topology)?;
    let host = &stage.topology.balancer;
    let ((), rounds) = login.during(|| {
        // An address of the host is no VIP.
        for family in Family::BOTH {
            for port in [SSH, 443] {
                let mut configuration = stage.configuration.clone();
                let own = host.at(family, port);
                let name = service_name(family, HTTP);
                let named = |service: &&mut Service| service.name == name;
                let mut services = configuration.services.iter_mut();
                let service = services.find(named).context("a service")?;
                service.frontends = vec![format!("{own}/tcp")];
                let before = stage.balancer.log().len();
                stage.balancer.write(&configuration.to_string())?;
                refused(
                    &stage,
                    before,
                    &format!("{} is an address of this host", own.ip()),
                )?;
            }
        }
        // Ranges that catch everyone change nothing for the host.
        let mut configuration = stage.configuration.clone();
        for service in &mut configuration.services {
            service.source_ranges = vec!["0.0.0.0/0".into(), "::/0".into()];
        }
        stage.balancer.configure(&configuration)?;
        serves(&stage)?;
        // Nor does a service that nobody may use, or one without backends.
        for service in &mut configuration.services {
            service.source_ranges = vec!["203.0.113.77/32".into()];
        }
        stage.balancer.configure(&configuration)?;
        until(PATIENCE, || passes(&stage))?;
        for service in &mut configuration.services {
            service.source_ranges.clear();
            service.backends.clear();
        }
        stage.balancer.configure(&configuration)
    })?;
    println!("{rounds} rounds of sessions");
    login.check()
}

#[test]
fn of_an_allowed_host_address_only_the_listed_port_is_taken() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = stage("")?;
    let mut login = Login::open(&stage.topology)?;
    let host = &stage.topology.balancer;
    let allowing = |configuration: &lb_tests::balancer::Configuration| {
        format!("allowNodeAddresses: true\n{configuration}")
    };
    let mut configuration = stage.configuration.clone();
    for family in Family::BOTH {
        let own = host.at(family, 8000);
        configuration.services.push(Service::new(
            &format!("own-{}", if own.is_ipv4() { 4 } else { 6 }),
            lb_tests::balancer::Mode::Nat,
            &[format!("{own}/tcp")],
            &[stage.topology.backends[0].at(family, HTTP_BEHIND)],
        ));
    }
    let ((), _) = login.during(|| {
        stage.balancer.write(&allowing(&configuration))?;
        stage.balancer.wait_for(&configuration)?;
        for family in Family::BOTH {
            let answers = clients::http(stage.client(), host.at(family, 8000), 20, 2);
            ensure!(answers.failures.is_empty(), "{family:?}: {answers:?}");
            // The host's own stack refuses its other ports.
            let refused = Some(ErrorKind::ConnectionRefused);
            let nowhere = host.at(family, 4444);
            ensure!(clients::tcp_refusal(stage.client(), nowhere) == refused);
            ensure!(clients::udp_refusal(stage.client(), nowhere) == refused);
        }
        let explained = stage.balancer.output(&[
            "explain",
            "--from",
            "198.51.100.7:50000",
            "--to",
            &format!("{}/tcp", host.at(Family::V4, 4444)),
        ])?;
        ensure!(explained.status.code() == Some(3), "{explained:?}");
        // Some ports are the host's even then.
        for port in [SSH, 179, 2379, 2380, 6443, 10_250] {
            let mut configuration = configuration.clone();
            configuration.services[0].frontends =
                vec![format!("{}/tcp", host.at(Family::V4, port))];
            let before = stage.balancer.log().len();
            stage.balancer.write(&allowing(&configuration))?;
            refused(
                &stage,
                before,
                &format!("port {port} of an address of this host"),
            )?;
        }
        Ok(())
    })?;
    serves(&stage)
}

#[test]
fn an_address_that_becomes_the_hosts_own_is_left_to_it() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = stage("")?;
    let host = &stage.topology.balancer.netns;
    let ssh = SocketAddr::new(VIP4.into(), SSH);
    // The VIP's unknown port is refused by us.
    let refused = Some(ErrorKind::ConnectionRefused);
    ensure!(clients::tcp_refusal(stage.client(), ssh) == refused);
    host.ip([&*format!("address add {VIP4}/32 dev lo")])?;
    let listener = host.enter(|| std::net::TcpListener::bind(ssh))?;
    until(PATIENCE, || {
        let refusal = clients::tcp_refusal(stage.client(), ssh);
        ensure!(refusal.is_none(), "{refusal:?}");
        Ok(())
    })
    .with_context(|| stage.balancer.log())?;
    let log = stage.balancer.log();
    ensure!(log.contains("left to the host"), "{log}");
    drop(listener);
    host.ip([&*format!("address del {VIP4}/32 dev lo")])?;
    until(PATIENCE, || serves(&stage))
}

#[test]
fn foreign_programs_are_never_replaced_or_deleted() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("")?;
    let mut login = Login::open(&stage.topology)?;
    let host = stage.topology.balancer.netns.clone();
    stage.balancer.stop()?;
    stage.balancer.cli(&["detach"])?;
    // A filter of someone else, in a clsact of theirs: it stays, and gets what we do not take.
    let tc = |arguments: &str| host.run(Command::new("tc").args(arguments.split(' ')));
    tc("qdisc add dev eth0 clsact")?;
    host.run(
        Command::new("tc")
            .args("filter add dev eth0 ingress prio 1 bpf bytecode".split(' '))
            .arg("1,6 0 0 0,"),
    )?;
    let before = tc("filter show dev eth0 ingress")?;
    stage.balancer.run()?;
    serves(&stage)?;
    login.check()?;
    stage.balancer.stop()?;
    stage.balancer.cli(&["detach"])?;
    ensure!(tc("filter show dev eth0 ingress")? == before);
    tc("qdisc del dev eth0 clsact")?;

    let _stranger = PassProgram::attach(&host, "eth0")?;
    let attached = host.run(Command::new("bpftool").arg("net"))?;
    let (code, said) = stage.balancer.refusal()?;
    ensure!(code == Some(8) && said.contains("eth0"), "{code:?}: {said}");
    ensure!(host.run(Command::new("bpftool").arg("net"))? == attached);
    login.check()
}

#[test]
fn an_unfit_nic_is_no_crash_loop() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let mut login = Login::open(&topology)?;
    // What veth says to it: the other end may send frames that are too large for XDP.
    topology.router.ip(["link set lb mtu 9000"])?;
    let mut balancer = Balancer::prepare(&topology.balancer.netns)?;
    let configuration = stage::configuration(Way::Nat, Shape::OneArm, &topology.backends);
    balancer.write(&configuration.to_string())?;
    balancer.run()?;
    let eth0 = |balancer: &Balancer| -> Result<serde_json::Value> {
        Ok(balancer.json(&["status"])?["interfaces"][0]["attached"].clone())
    };
    let attached = eth0(&balancer)?;
    ensure!(attached["state"] == "refused", "{attached}");
    let why = attached["why"].as_str().context("a reason")?;
    ensure!(why.contains("eth0") && why.contains("MTU"), "{why}");
    let log = balancer.log();
    ensure!(log.contains("stands aside"), "{log}");
    login.check()?;
    // Mended, it is taken up without a start.
    topology.router.ip(["link set lb mtu 1500"])?;
    until(PATIENCE * 4, || {
        let attached = eth0(&balancer)?;
        ensure!(attached["state"] == "native", "{attached}");
        Ok(())
    })?;
    login.check()
}

#[test]
fn no_sysctl_and_no_offload_is_changed() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let host = &topology.balancer.netns;
    let before = picture(host)?;
    let mut balancer = Balancer::prepare(host)?;
    let native = stage::configuration(Way::Nat, Shape::OneArm, &topology.backends);
    let generic = format!("xdp: {{mode: generic}}\n{native}");
    for text in [native.to_string(), generic] {
        balancer.write(&text)?;
        balancer.run()?;
        let now = picture(host)?;
        let changed = difference(&before, &now);
        let ours = |line: &&&String| {
            ["bpftool net", "tc ", "ip -d link"]
                .iter()
                .any(|of| line.starts_with(of))
        };
        let others: Vec<_> = changed.iter().filter(|line| !ours(line)).collect();
        ensure!(others.is_empty(), "{others:#?}");
        ensure!(changed.len() > others.len(), "nothing is attached");
        balancer.stop()?;
    }
    Ok(())
}

#[test]
fn uninstalling_leaves_the_host_as_it_was() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let host = &topology.balancer.netns;
    let mut login = Login::open(&topology)?;
    let before = picture(host)?;
    let mut balancer = Balancer::prepare(host)?;
    let mut configuration = stage::configuration(Way::Nat, Shape::OneArm, &topology.backends);
    // Announcing joins multicast groups.
    configuration.announce = true;
    login.during(|| {
        for _ in 0..3 {
            balancer.write(&configuration.to_string())?;
            balancer.run()?;
            balancer.stop()?;
            // While an agent runs it would put everything back.
            balancer.run()?;
            let refused = balancer.output(&["detach"])?;
            ensure!(refused.status.code() == Some(9), "{refused:?}");
            until(PATIENCE, || {
                let groups =
                    host.run(Command::new("ip").args(["maddress", "show", "dev", "eth0"]))?;
                ensure!(groups.contains("33:33:ff:00:00:10"), "{groups}");
                Ok(())
            })?;
            balancer.kill()?;
            balancer.cli(&["detach"])?;
        }
        Ok(())
    })?;
    let after = picture(host)?;
    let changed = difference(&before, &after);
    ensure!(changed.is_empty(), "{changed:#?}");
    ensure!(!balancer.has_pins(), "pins are left");
    ensure!(!balancer.run_folder().exists(), "the run folder is left");
    Ok(())
}

#[test]
fn detaching_one_interface_leaves_the_others() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = Stage::set_with(Way::Nat, Shape::TwoArms, 1, |configuration| configuration)?;
    stage.balancer.stop()?;
    let said = stage.balancer.cli(&["detach", "--interface", "eth1"])?;
    ensure!(
        said.contains("detached from eth1; other interfaces are still served"),
        "{said}"
    );
    let net = stage
        .topology
        .balancer
        .netns
        .run(Command::new("bpftool").arg("net"))?;
    ensure!(net.contains("eth0") && !net.contains("eth1"), "{net}");
    ensure!(stage.balancer.has_pins());
    stage.balancer.run()?;
    serves(&stage)
}

#[test]
fn who_is_logged_in_survives_every_death_change_and_upgrade() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("")?;
    let mut login = Login::open(&stage.topology)?;
    let ((), rounds) = login.during(|| {
        for death in 0..5 {
            stage.balancer.kill()?;
            // Each start is an upgrade as the maps see it: other sizes make others.
            let text = format!(
                "limits: {{flows: {}}}\n{}",
                8192 << (death % 2),
                stage.configuration
            );
            stage.balancer.write(&text)?;
            stage.balancer.run()?;
            stage.balancer.cli(&["bypass", "on"])?;
            stage.balancer.cli(&["bypass", "off"])?;
        }
        stage.balancer.stop()?;
        stage.balancer.cli(&["detach"])?;
        passes(&stage)?;
        stage.balancer.run()?;
        serves(&stage)
    })?;
    println!("{rounds} rounds of sessions");
    let status = status(&stage)?;
    ensure!(status["bypass"] == false, "{status}");
    Ok(())
}

#[test]
fn the_packet_log_tells_of_packets_and_of_nothing_else() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = stage("")?;
    stage.balancer.stop()?;
    let before = stage.balancer.log();
    ensure!(!before.contains("sent back"), "{before}");
    stage.balancer.run_with(&["--packet-log", "debug"])?;
    serves(&stage)?;
    until(PATIENCE, || {
        let log = stage.balancer.log()[before.len()..].to_owned();
        ensure!(log.contains("sent back"), "{log}");
        Ok(())
    })
}
