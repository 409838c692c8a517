//! A flood of SYNs from sources that do not exist: half-open flows have a table of their own, so it costs no client its
//! established flow.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lb_common::{abi::Reason, pipeline::Verdict};
use lb_tests::{both::Both, world::FRONTEND_IDS};
use lb_userspace::dataplane::FlowState;

use super::{
    Kind, local,
    stateful::{self, answer, ends},
    with_both,
};

/// Flows that are there before.
const ESTABLISHED: usize = 100;

/// Spoofed SYNs; `MILLRACE_SYNS` asks for another number.
fn syns() -> u32 {
    let asked = std::env::var("MILLRACE_SYNS")
        .ok()
        .and_then(|text| text.parse().ok());
    let quick = std::env::var_os("MILLRACE_QUICK").is_some();
    asked.unwrap_or(if quick { 50_000 } else { 500_000 })
}

/// Sends the kernel an IPv4 SYN from ever new sources.
fn flood(both: &mut Both, syn: &[u8]) -> Result<()> {
    let ingress = both.uplinks[0].1;
    let counters = both.place.installation.counters()?;
    let before = counters.reasons(0..FRONTEND_IDS)?;
    let mut frame = syn.to_vec();
    for number in 0..syns() {
        // Checksums do not matter to the path.
        frame[26..30].copy_from_slice(&(0x2000_0000 + number * 7).to_be_bytes());
        both.place.inject(&frame, ingress)?;
    }
    // The host has not seen the flood: it counts what the kernel counted.
    let after = counters.reasons(0..FRONTEND_IDS)?;
    let mut counted = both.host.reasons.borrow_mut();
    for (id, (after, before)) in (0..).zip(after.iter().zip(&before)) {
        for reason in Reason::ALL {
            let grown = after[reason as usize] - before[reason as usize];
            if grown > 0 {
                *counted.entry((id, reason)).or_default() += grown;
            }
        }
    }
    Ok(())
}

/// Fails unless the flows of these client ports are established.
fn are_established(both: &Both, ports: &[u16]) -> Result<()> {
    let mut established = BTreeSet::new();
    both.place.installation.flows()?.each(0, |row| {
        if row.state == FlowState::Established {
            established.insert(row.client.port());
        }
        true
    })?;
    for port in ports {
        ensure!(
            established.contains(port),
            "the flow of port {port} was evicted"
        );
    }
    Ok(())
}

#[test]
fn a_flood_of_spoofed_syns_evicts_no_established_flow() -> Result<()> {
    with_both(|both| {
        let mut ports = Vec::new();
        let mut port = 1024;
        while ports.len() < ESTABLISHED {
            let (found, _) = stateful::establish(both, stateful::V4, port)?;
            ports.push(found);
            port = found + 1;
        }
        let syn = stateful::packet(stateful::V4, 1, Kind::Syn).frame(both);
        flood(both, &syn)?;
        are_established(both, &ports)
    })
}

#[test]
fn a_flood_of_spoofed_syns_to_a_backend_here_evicts_no_established_flow() -> Result<()> {
    with_both(|both| {
        // All of it to backends of this node.
        local::all_to(both, 7, 0)?;
        let mut flows = Vec::new();
        for port in 1024..1024 + ESTABLISHED as u16 {
            let (_, there) = local::establish(both, local::V4, port)?;
            flows.push((port, Kind::Ack, there));
        }
        for port in 5000..5000 + ESTABLISHED as u16 {
            let (_, there) = local::begin(both, local::V4, port, Kind::Udp, Verdict::Rewritten)?;
            both.leave(&answer(&there.frame, Kind::Udp).frame(both))?;
            both.run(&local::packet(local::V4, port, Kind::Udp).frame(both))?;
            flows.push((port, Kind::Udp, there));
        }
        let ports: Vec<_> = flows.iter().map(|(port, ..)| *port).collect();
        are_established(both, &ports)?;
        let syn = local::packet(local::V4, 1, Kind::Syn).frame(both);
        flood(both, &syn)?;
        are_established(both, &ports)?;
        for (port, kind, there) in flows {
            let next = both.run(&local::packet(local::V4, port, kind).frame(both))?;
            assert_eq!(ends(&next.frame), ends(&there.frame));
            let back = both.leave(&answer(&there.frame, kind).frame(both))?;
            assert_eq!(back.verdict, Verdict::Rewritten);
        }
        // And there is room for who comes now.
        local::establish(both, local::V4, 9000)?;
        Ok(())
    })
}
