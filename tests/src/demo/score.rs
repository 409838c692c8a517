//! What the demo found, and what follows from it.

#![expect(clippy::print_stdout, reason = "the demo speaks to a person")]

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{balancer::Balancer, clients::Answers};

/// What the issue of this demo asks for at least.
const WANTED_REQUESTS: usize = 10_000;
/// Packets of the shortest HTTP exchange: SYN, SYN-ACK, request (with the ACK), response (with the FIN), FIN.
const PACKETS_PER_CONNECTION: u64 = 5;
const PACKETS_PER_DATAGRAM: u64 = 2;

#[derive(Debug, Default)]
pub(super) struct Score {
    requests: usize,
    failed: usize,
    packets: u64,
    broken_claims: Vec<String>,
}

impl Score {
    /// Requests over TCP, each with a connection of its own.
    pub(super) fn connections(&mut self, answers: &Answers) {
        self.packets += answers.answered() as u64 * PACKETS_PER_CONNECTION;
        self.note(answers);
    }

    pub(super) fn datagrams(&mut self, answers: &Answers) {
        self.packets += answers.answered() as u64 * PACKETS_PER_DATAGRAM;
        self.note(answers);
    }

    fn note(&mut self, answers: &Answers) {
        self.requests += answers.answered() + answers.failed();
        self.failed += answers.failed();
    }

    /// Prints a claim and whether it holds; one that does not fails the demo.
    pub(super) fn claim(&mut self, holds: bool, claim: &str) {
        println!("  {} {claim}", if holds { "[ok]" } else { "[NOT TRUE]" });
        if !holds {
            self.broken_claims.push(claim.to_owned());
        }
    }

    pub(super) fn packets_needed(&self) -> u64 {
        self.packets
    }

    pub(super) fn verdict(mut self) -> ExitCode {
        if self.requests < WANTED_REQUESTS {
            self.broken_claims
                .push(format!("at least {WANTED_REQUESTS} requests"));
        }
        for claim in &self.broken_claims {
            println!("not true: {claim}");
        }
        println!("demo: {} requests, {} failed", self.requests, self.failed);
        if self.failed == 0 && self.broken_claims.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Packets to all frontends and the replies to them, as the XDP program counted them.
pub(super) fn xdp_packets(balancer: &Balancer) -> Result<u64> {
    let services = balancer.json(&["services"])?;
    let mut packets = 0;
    for row in services.as_array().context("a list of services")? {
        for direction in ["packets", "replies"] {
            let count = row[direction].as_u64();
            packets += count.with_context(|| format!("no {direction} in {row}"))?;
        }
    }
    Ok(packets)
}
