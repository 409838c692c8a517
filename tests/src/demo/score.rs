//! What the demo found, and what follows from it.

#![expect(clippy::print_stdout, reason = "the demo speaks to a person")]

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{balancer::Balancer, clients::Answers};

/// What the issue of this demo asks for at least.
const WANTED_REQUESTS: usize = 10_000;
/// Packets of the client in the shortest HTTP exchange: SYN, request (with the ACK), FIN. Replies come on top.
const CLIENT_PACKETS_PER_CONNECTION: u64 = 3;

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
        self.packets += answers.answered() as u64 * CLIENT_PACKETS_PER_CONNECTION;
        self.note(answers);
    }

    pub(super) fn datagrams(&mut self, answers: &Answers) {
        self.packets += answers.answered() as u64;
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

/// Packets to all frontends, as the XDP program counted them.
pub(super) fn xdp_packets(balancer: &Balancer) -> Result<u64> {
    let services = balancer.json(&["services"])?;
    let rows = services.as_array().context("a list of services")?;
    rows.iter()
        .map(|row| {
            row["packets"]
                .as_u64()
                .with_context(|| format!("no packets in {row}"))
        })
        .sum()
}
