//! HTTP, DNS and plain datagrams through the balancer: who answers, and how fast.

#![expect(clippy::print_stdout, reason = "the demo speaks to a person")]

use std::{net::SocketAddr, time::Instant};

use anyhow::Result;

use super::{BACKENDS, DNS, ECHO, Family, HTTP, Score, Stage};
use super::{answers_table, part, score::xdp_packets};
use crate::{
    clients::{self, Answers},
    stage::service_name,
};

/// Connections per family: the scatter of their shares is then about 2 %.
const CONNECTIONS: usize = 8_000;
const DATAGRAMS: usize = 1_000;
const DIGS: usize = 12;
/// How far a backend's share of the connections may be from its share of the table.
const TOLERANCE: f64 = 0.10;

pub(super) fn http(stage: &Stage, score: &mut Score) -> Result<()> {
    part("HTTP: nginx behind the VIP");
    println!(
        "curl from client c1. The answer is the backend's name, and who it saw as its client:\n"
    );
    let mut curls = Answers::default();
    for family in Family::BOTH {
        for _ in 0..4 {
            let url = format!("http://{}/", stage.vip(family, HTTP));
            let answer = clients::curl(stage.client(), &[&url]);
            let shown = answer
                .as_ref()
                .map_or_else(ToString::to_string, |text| text.trim().to_owned());
            println!("  $ curl {url:<26} {shown}");
            curls.note(answer.map(|text| text.split_whitespace().next().unwrap_or("?").to_owned()));
        }
    }
    score.connections(&curls);
    for family in Family::BOTH {
        let vip = stage.vip(family, HTTP);
        println!("\n{CONNECTIONS} requests to {vip}, each over a TCP connection of its own:\n");
        let before = xdp_packets(&stage.balancer)?;
        let begin = Instant::now();
        let answers = clients::http(stage.client(), vip, CONNECTIONS, 4);
        let seconds = begin.elapsed().as_secs_f64();
        let packets = xdp_packets(&stage.balancer)? - before;
        answers_table(&answers);
        println!(
            "\n  {:.0} connections/s; XDP counter: {packets} packets, {:.0} a second",
            answers.answered() as f64 / seconds,
            packets as f64 / seconds
        );
        score.connections(&answers);
        let worst = distance_from_table(stage, family, &answers)?;
        let claim = format!(
            "every backend is within 10 % of its share of the table (worst: {:.1} %)",
            worst * 100.0
        );
        score.claim(worst <= TOLERANCE, &claim);
    }
    Ok(())
}

/// The largest distance of a backend's answers from its part of the slot table, as a fraction of that part.
fn distance_from_table(stage: &Stage, family: Family, answers: &Answers) -> Result<f64> {
    let rows = stage.balancer.backends(&service_name(family, HTTP))?;
    let slots: u64 = rows.iter().map(|row| row.slots).sum();
    let mut worst = if rows.len() == BACKENDS {
        0.0
    } else {
        f64::INFINITY
    };
    for row in rows {
        let host = stage
            .topology
            .backends
            .iter()
            .find(|host| host.address(family) == row.address.ip());
        let answered = host
            .and_then(|host| answers.by_backend.get(&host.name))
            .copied()
            .unwrap_or(0);
        let expected = answers.answered() as f64 * row.slots as f64 / slots as f64;
        worst = f64::max(worst, (answered as f64 - expected).abs() / expected);
    }
    Ok(worst)
}

pub(super) fn dns(stage: &Stage, score: &mut Score) {
    part("DNS over UDP: dnsmasq behind the VIP");
    println!("dig from client c1, each question from a new port:\n");
    for family in Family::BOTH {
        let vip = stage.vip(family, DNS);
        let mut answers = Answers::default();
        for _ in 0..DIGS {
            answers.note(clients::dig(stage.client(), vip));
        }
        println!("  $ dig @{} who.test TXT      ({DIGS} times)", vip.ip());
        answers_table(&answers);
        println!();
        score.datagrams(&answers);
    }
}

pub(super) fn datagrams(stage: &Stage, score: &mut Score) {
    part("Datagrams: an echo server behind the VIP");
    for family in Family::BOTH {
        let vip: SocketAddr = stage.vip(family, ECHO);
        println!("{DATAGRAMS} datagrams to {vip}, each from a port of its own, from client c2:\n");
        let answers = clients::udp(&stage.topology.clients[1].netns, vip, DATAGRAMS);
        answers_table(&answers);
        println!();
        score.datagrams(&answers);
    }
}
