//! Real clients, real servers and the balancer between them, in network namespaces: every mode, both families.

#![expect(
    clippy::print_stdout,
    reason = "a measured throughput is worth a line of the test's output"
)]

use std::{fs, io::ErrorKind, net::SocketAddr, process::Command};

use anyhow::{Result, ensure};
use lb_tests::{
    balancer::{Balancer, Configuration},
    clients::{self, Answers, Held},
    is_root,
    netns::until,
    servers::{self, DNS, ECHO, HTTP, IPERF},
    stage::{self, Stage, Way, service_name, tracked_connections},
    topology::{Family, Shape, Topology, VIP4},
};

/// Each of these tests once per mode, and for `ipip` once per family of the outer header.
macro_rules! in_every_mode {
    ($($test:ident),* $(,)?) => {
        in_every_mode!(@way nat, Way::Nat, $($test),*);
        in_every_mode!(@way ipip_over_ipv4, Way::IpipOver(Family::V4), $($test),*);
        in_every_mode!(@way ipip_over_ipv6, Way::IpipOver(Family::V6), $($test),*);
        in_every_mode!(@way l2, Way::L2, $($test),*);
    };
    (@way $name:ident, $way:expr, $($test:ident),*) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $test() -> Result<()> {
                    if is_root() { super::$test($way) } else { Ok(()) }
                }
            )*
        }
    };
}

in_every_mode!(
    every_backend_answers_http_in_its_share,
    a_large_file_arrives_whole,
    iperf3_runs_in_both_directions,
    every_backend_answers_datagrams,
    an_unknown_port_of_a_vip_is_refused_at_once,
    a_killed_backend_leaves_and_comes_back,
    a_drained_backend_gets_no_new_connection,
);

fn every_backend_answers_http_in_its_share(way: Way) -> Result<()> {
    let stage = Stage::set(way, Shape::OneArm)?;
    for family in Family::BOTH {
        let vip = stage.vip(family, HTTP);
        // What curl sees is what a user sees: the client's own address, but for nat.
        let answer = clients::curl(stage.client(), &[&format!("http://{vip}/")])?;
        let seen = match way {
            Way::Nat => stage.topology.balancer.address(family),
            Way::IpipOver(_) | Way::L2 => stage.topology.clients[0].address(family),
        };
        assert_eq!(
            answer.split_whitespace().last(),
            Some(seen.to_string().as_str())
        );

        let answers = clients::http(stage.client(), vip, 4_000, 4);
        assert_shares(&answers, 4, 4_000);
    }
    no_vip_is_tracked(&stage)
}

fn a_large_file_arrives_whole(way: Way) -> Result<()> {
    let stage = Stage::set(way, Shape::OneArm)?;
    let sent = servers::write_big_file(&stage.folder, servers::BIG_FILE_BYTES)?;
    let received = stage.folder.file("received");
    for family in Family::BOTH {
        let url = format!("http://{}/big", stage.vip(family, HTTP));
        let path = received.display().to_string();
        clients::curl(stage.client(), &[&url, "-o", &path])?;
        ensure!(
            fs::read(&sent)? == fs::read(&received)?,
            "{url}: another content"
        );
    }
    no_vip_is_tracked(&stage)
}

fn iperf3_runs_in_both_directions(way: Way) -> Result<()> {
    let stage = Stage::set(way, Shape::OneArm)?;
    for family in Family::BOTH {
        let vip = stage.vip(family, IPERF);
        let up = clients::iperf3(stage.client(), vip, &[])?;
        // The server needs a moment to be ready for the next test.
        let down = until(clients::PATIENCE, || {
            clients::iperf3(stage.client(), vip, &["-R"])
        })?;
        println!(
            "{way:?} {family:?}: {:.2} Gbit/s up, {:.2} down",
            up / 1e9,
            down / 1e9
        );
    }
    no_vip_is_tracked(&stage)
}

fn every_backend_answers_datagrams(way: Way) -> Result<()> {
    let stage = Stage::set(way, Shape::OneArm)?;
    for family in Family::BOTH {
        let mut names = Answers::default();
        for _ in 0..60 {
            names.note(clients::dig(stage.client(), stage.vip(family, DNS)));
        }
        assert!(names.failures.is_empty(), "{family:?}: {names:?}");
        assert_eq!(names.by_backend.len(), 4, "{family:?}: {names:?}");

        let answers = clients::udp(stage.client(), stage.vip(family, ECHO), 8_000);
        assert_shares(&answers, 4, 8_000);
    }
    no_vip_is_tracked(&stage)
}

fn an_unknown_port_of_a_vip_is_refused_at_once(way: Way) -> Result<()> {
    let stage = Stage::set(way, Shape::OneArm)?;
    for family in Family::BOTH {
        let nowhere = stage.vip(family, 4444);
        let refused = Some(ErrorKind::ConnectionRefused);
        assert_eq!(
            clients::tcp_refusal(stage.client(), nowhere),
            refused,
            "tcp {family:?}"
        );
        assert_eq!(
            clients::udp_refusal(stage.client(), nowhere),
            refused,
            "udp {family:?}"
        );
    }
    no_vip_is_tracked(&stage)
}

fn a_killed_backend_leaves_and_comes_back(way: Way) -> Result<()> {
    let mut stage = Stage::set(way, Shape::OneArm)?;
    stage.servers[1].nginx.kill()?;
    for family in Family::BOTH {
        let gone = stage.target(family, 1, HTTP);
        stage
            .balancer
            .wait_for_state(&service_name(family, HTTP), gone, "down")?;
        let answers = clients::http(stage.client(), stage.vip(family, HTTP), 1_000, 4);
        assert!(
            answers.failures.is_empty() && answers.by_backend.len() == 3,
            "{answers:?}"
        );
        assert!(!answers.by_backend.contains_key("b2"), "{answers:?}");
    }
    stage.servers[1].nginx = servers::nginx(&stage.topology.backends[1], &stage.folder)?;
    for family in Family::BOTH {
        let back = stage.target(family, 1, HTTP);
        stage
            .balancer
            .wait_for_state(&service_name(family, HTTP), back, "ready")?;
        let answers = clients::http(stage.client(), stage.vip(family, HTTP), 4_000, 4);
        assert_shares(&answers, 4, 4_000);
    }
    Ok(())
}

fn a_drained_backend_gets_no_new_connection(way: Way) -> Result<()> {
    let stage = Stage::set(way, Shape::OneArm)?;
    for family in Family::BOTH {
        let service = service_name(family, ECHO);
        let vip = stage.vip(family, ECHO);
        let mut held = Held::open(stage.client(), vip, 400)?;
        let drained = stage.target(family, 2, ECHO);
        stage
            .balancer
            .cli(&["drain", &service, &drained.to_string()])?;
        stage.balancer.wait_for_state(&service, drained, "drain")?;

        let new = Held::open(stage.client(), vip, 400)?;
        assert!(
            !new.by_backend().contains_key("b3"),
            "{:?}",
            new.by_backend()
        );
        if way == Way::Nat {
            assert_eq!(
                held.round_trip(),
                [].into(),
                "connections from before the drain"
            );
        }

        stage
            .balancer
            .cli(&["undrain", &service, &drained.to_string()])?;
        stage.balancer.wait_for_state(&service, drained, "ready")?;
        let again = Held::open(stage.client(), vip, 400)?;
        assert!(
            again.by_backend().contains_key("b3"),
            "{:?}",
            again.by_backend()
        );
    }
    Ok(())
}

#[test]
fn replies_by_another_interface_find_their_way() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    for way in [Way::Nat, Way::L2, Way::IpipOver(Family::V4)] {
        let stage = Stage::set(way, Shape::TwoArms)?;
        for family in Family::BOTH {
            let answers = clients::http(stage.client(), stage.vip(family, HTTP), 4_000, 4);
            assert_shares(&answers, 4, 4_000);
            let answers = clients::udp(stage.client(), stage.vip(family, ECHO), 500);
            assert!(
                answers.failures.is_empty(),
                "{way:?} {family:?}: {answers:?}"
            );
        }
        no_vip_is_tracked(&stage)?;
    }
    Ok(())
}

#[test]
fn only_clients_within_the_source_ranges_are_served() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set_with(Way::Nat, Shape::OneArm, 2, |mut configuration| {
        for service in &mut configuration.services {
            service.source_ranges = vec!["198.51.100.0/24".into(), "2001:db8:a::/64".into()];
        }
        configuration
    })?;
    let [inside, outside] = &*stage.topology.clients else {
        unreachable!("two clients")
    };
    for family in Family::BOTH {
        let vip = stage.vip(family, HTTP);
        assert!(clients::http(&inside.netns, vip, 50, 1).failures.is_empty());
        let url = format!("http://{vip}/");
        let refused = clients::curl(&outside.netns, &["--connect-timeout", "1", &url]);
        assert!(
            refused.is_err(),
            "{family:?}: a stranger was served: {refused:?}"
        );
    }
    Ok(())
}

#[test]
fn a_client_with_affinity_stays_with_its_backend() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set_with(Way::Nat, Shape::OneArm, 4, |mut configuration| {
        for service in &mut configuration.services {
            service.affinity = true;
        }
        configuration
    })?;
    for family in Family::BOTH {
        for client in &stage.topology.clients {
            let answers = clients::http(&client.netns, stage.vip(family, HTTP), 200, 2);
            assert!(
                answers.failures.is_empty() && answers.by_backend.len() == 1,
                "{answers:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn what_is_not_ours_reaches_the_host() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set(Way::Nat, Shape::OneArm)?;
    let host = &stage.topology.balancer;
    let _echo = servers::echo(host)?;
    for family in Family::BOTH {
        let own = host.at(family, ECHO);
        let ping = ["-c", "3", "-i", "0.01", "-W", "5", &own.ip().to_string()];
        stage.client().run(Command::new("ping").args(ping))?;
        assert_eq!(Held::open(stage.client(), own, 20)?.round_trip(), [].into());
        assert!(clients::udp(stage.client(), own, 20).failures.is_empty());
    }
    Ok(())
}

#[test]
fn forgotten_neighbours_cost_no_packet() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    for way in [Way::Nat, Way::L2, Way::IpipOver(Family::V6)] {
        let stage = Stage::set_with(way, Shape::OneArm, 4, |mut configuration| {
            // Few connections over many ports: a backend that still remembers a port would cost a retransmission, too.
            configuration.nat_ports = Some("20000-65535".into());
            configuration
        })?;
        let host = &stage.topology.balancer.netns;
        for family in Family::BOTH {
            for _ in 0..3 {
                host.ip(["neigh flush all"])?;
                let answers = clients::http(stage.client(), stage.vip(family, HTTP), 30, 2);
                assert!(
                    answers.failures.is_empty(),
                    "{way:?} {family:?}: {answers:?}"
                );
            }
        }
        assert_eq!(clients::retransmissions(stage.client())?, 0, "{way:?}");
    }
    Ok(())
}

#[test]
fn bypass_lets_everything_pass_until_it_is_off_again() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set(Way::Nat, Shape::OneArm)?;
    let url = format!("http://{}/", stage.vip(Family::V4, HTTP));
    // The host's own stack has neither the address nor a route for it.
    stage.balancer.cli(&["bypass", "on"])?;
    assert!(clients::curl(stage.client(), &["--connect-timeout", "1", &url]).is_err());
    stage.balancer.cli(&["bypass", "off"])?;
    let answers = clients::http(stage.client(), stage.vip(Family::V4, HTTP), 200, 2);
    assert!(answers.failures.is_empty(), "{answers:?}");
    Ok(())
}

#[test]
fn metrics_count_what_was_forwarded() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set(Way::L2, Shape::OneArm)?;
    let requests = 500;
    clients::http(stage.client(), stage.vip(Family::V4, HTTP), requests, 2);
    let host = &stage.topology.balancer.netns;
    let metrics = clients::curl(host, &["http://127.0.0.1:9470/metrics"])?;
    let new_flows = metrics
        .lines()
        .filter(|line| line.starts_with("millrace_frontend_new_flows_total{"))
        .find(|line| line.contains("\"80\"") && line.to_lowercase().contains("4\""))
        .unwrap_or_else(|| panic!("{metrics}"));
    assert!(new_flows.ends_with(&format!(" {requests}")), "{new_flows}");
    Ok(())
}

#[test]
fn a_bad_configuration_is_refused_at_the_start() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let balancer = Balancer::prepare(&topology.balancer.netns)?;
    let configuration = stage::configuration(Way::Nat, Shape::OneArm, &topology.backends);
    for (text, line, field) in bad_configurations(&configuration) {
        balancer.write(&text)?;
        let (code, said) = balancer.refusal()?;
        assert_eq!(code, Some(2), "{said}");
        names_the_place(&said, line, &field);

        let check = balancer.output(&["check", &balancer.file().display().to_string()])?;
        // What only the host knows, such as its addresses, is for the agent to judge.
        if !said.contains("10.0.0.2") {
            assert_eq!(check.status.code(), Some(2), "{check:?}");
            names_the_place(&String::from_utf8(check.stderr)?, line, &field);
        }
    }
    Ok(())
}

#[test]
fn a_bad_change_is_refused_and_the_old_configuration_stays() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set(Way::Nat, Shape::OneArm)?;
    let vip = stage.vip(Family::V4, HTTP);
    for (text, line, field) in bad_configurations(&stage.configuration) {
        let before = stage.balancer.log().len();
        stage.balancer.write(&text)?;
        let said = until(clients::PATIENCE, || {
            let said = stage.balancer.log()[before..].to_owned();
            ensure!(said.contains(&field), "{field} is not in: {said}");
            Ok(said)
        })?;
        names_the_place(&said, line, &field);
        let answers = clients::http(stage.client(), vip, 500, 2);
        assert!(answers.failures.is_empty(), "{answers:?}");
    }
    stage.balancer.configure(&stage.configuration)
}

/// Wrong files, the line of the mistake, and a word of the message that must be there.
fn bad_configurations(good: &Configuration) -> Vec<(String, usize, String)> {
    let text = good.to_string();
    let change = |from: &str, to: &str, field: &str| {
        let bad = text.replacen(from, to, 1);
        let line = 1 + bad
            .lines()
            .position(|line| line.contains(to))
            .expect("the change");
        (bad, line, field.to_owned())
    };
    vec![
        change("mode: nat", "mode: natt", "mode"),
        change("  mode: nat", "  colour: red", "colour"),
        change(
            "192.0.2.10:80/tcp",
            "192.0.2.10:80000/tcp",
            "192.0.2.10:80000",
        ),
        // The balancer's own address would cut it off.
        change("192.0.2.10:80/tcp", "10.0.0.2:80/tcp", "10.0.0.2"),
        change("10.0.0.11:8080", &format!("{VIP4}:8080"), "192.0.2.10"),
        change(
            "{address: \"10.0.0.11:8080\"}",
            "{address: \"10.0.0.11:8080\", weight: 100000}",
            "weight",
        ),
    ]
}

fn names_the_place(said: &str, line: usize, field: &str) {
    let place = format!("balancer.yaml:{line}:");
    assert!(
        said.contains(&place) && said.contains(field),
        "neither {place} nor {field}: {said}"
    );
}

/// A table is up to 5 % off; the rest is 3.6 standard deviations of 4,000 requests that go anywhere, 5.2 of 8,000.
fn assert_shares(answers: &Answers, backends: usize, requests: usize) {
    assert_eq!(
        (answers.answered(), answers.failed()),
        (requests, 0),
        "{answers:?}"
    );
    let worst = answers.worst_share(backends);
    assert!(
        worst < 0.15,
        "{:.0} % off an even share: {answers:?}",
        worst * 100.0
    );
}

/// The proof that packets for VIPs never reach the balancer's own stack.
fn no_vip_is_tracked(stage: &Stage) -> Result<()> {
    let host = &stage.topology.balancer;
    let tracked = tracked_connections(&host.netns)?;
    // The health checks are the host's own connections: tracking does work.
    let backend = stage.target(Family::V4, 0, HTTP);
    assert!(names(&tracked, backend), "nothing is tracked: {tracked:?}");
    let vips: Vec<_> = tracked
        .iter()
        .filter(|line| {
            Family::BOTH
                .iter()
                .any(|family| line.contains(&format!("={} ", family.vip())))
        })
        .collect();
    ensure!(vips.is_empty(), "tracked: {vips:?}");
    Ok(())
}

fn names(tracked: &[String], target: SocketAddr) -> bool {
    tracked.iter().any(|line| {
        line.contains(&format!("dst={} ", target.ip()))
            && line.contains(&format!("dport={} ", target.port()))
    })
}
