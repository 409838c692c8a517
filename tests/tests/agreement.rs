//! The kernel's home of the pipeline and the host's give every frame the same verdict and bytes, and leave the same
//! flows and counters behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
    net::SocketAddr,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{flow_state, tag},
    bytes::{Address, Be16},
    pipeline::Verdict,
    sim::{Family, World},
};
use lb_tests::{
    both::Both,
    frames::Frames,
    is_root,
    netns::Netns,
    place::Place,
    world::{BACKEND_IDS, FRONTEND_IDS},
};
use lb_userspace::dataplane::FlowState;

/// Frames compared; a tenth in the quick run. `MILLRACE_FRAMES` asks for another number.
fn frames() -> usize {
    let asked = std::env::var("MILLRACE_FRAMES")
        .ok()
        .and_then(|text| text.parse().ok());
    let quick = std::env::var_os("MILLRACE_QUICK").is_some();
    asked.unwrap_or(if quick { 10_000 } else { 100_000 })
}

/// Frames that meet the same tables. More would fill the kernel's, which then forget what those of the host know.
const ROUND: usize = 50_000;

/// Of the first round; each other begins one further.
const SEED: u64 = 0x2545_f491_4f6c_dd1d;

#[test]
fn host_and_kernel_agree_on_every_frame() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (mut left, mut seed) = (frames(), SEED);
    let mut seen = BTreeMap::new();
    while left > 0 {
        let count = left.min(ROUND);
        let netns = Netns::create("agree")?;
        netns
            .enter(|| agree(&netns, seed, count, &mut seen))
            .with_context(|| format!("seed {seed:x}"))?;
        left -= count;
        seed += 1;
    }
    eprintln!("{} frames, 0 mismatches: {seen:?}", frames());
    Ok(())
}

fn agree(netns: &Netns, seed: u64, count: usize, seen: &mut BTreeMap<String, usize>) -> Result<()> {
    let mut both = Both::new(netns)?;
    both.change_next_hop(2, |next| next.segment.tags = tag(7, false))?;
    let mut frames = Frames::new(seed, both.uplinks[0].0);
    for number in 0..count {
        let outcome = both
            .run(&frames.make())
            .with_context(|| format!("frame {number}"))?;
        if matches!(
            outcome.verdict,
            Verdict::Transmit | Verdict::Redirect { .. }
        ) {
            frames.left(&outcome.frame);
        }
        if outcome.verdict == Verdict::Rewritten {
            frames.delivered(&outcome.frame);
        }
        *seen.entry(format!("{:?}", outcome.verdict)).or_default() += 1;
        if number % 4 == 0 {
            let outcome = both
                .leave(&frames.make_leaving())
                .with_context(|| format!("leaving after frame {number}"))?;
            let verdict = format!("leaving {:?}", outcome.verdict);
            *seen.entry(verdict).or_default() += 1;
        }
    }
    both.check_reasons()?;
    both.check_announced()?;
    let counters = both.place.installation.counters()?;
    let host = &both.host;
    let frontends = counters.frontends(0..FRONTEND_IDS)?;
    for (id, counted) in (0..).zip(frontends) {
        let expected = host
            .forwarded
            .borrow()
            .get(&id)
            .copied()
            .unwrap_or_default();
        ensure!(
            counted == expected,
            "frontend {id}: kernel {counted:?}, host {expected:?}"
        );
    }
    let backends = counters.backends(0..BACKEND_IDS)?;
    for (id, counted) in (0..).zip(backends) {
        let expected = host
            .backend_counts
            .borrow()
            .get(&id)
            .copied()
            .unwrap_or_default();
        ensure!(
            counted == expected,
            "backend {id}: kernel {counted:?}, host {expected:?}"
        );
    }
    let (kernel, host) = (flows(&both.place)?, simulated_flows(host));
    let only = |a: &FlowSet, b: &FlowSet| a.difference(b).take(5).copied().collect::<Vec<_>>();
    ensure!(
        kernel == host,
        "flows only in the kernel {:?}, only on the host {:?}",
        only(&kernel, &host),
        only(&host, &kernel)
    );
    Ok(())
}

/// Table, client, frontend, backend and own port of every flow.
type FlowSet = BTreeSet<(bool, [SocketAddr; 4])>;

fn flows(place: &Place) -> Result<FlowSet> {
    let mut set = FlowSet::new();
    place.installation.flows()?.each(0, |row| {
        let established = row.state != FlowState::Half;
        set.insert((
            established,
            [row.client, row.frontend, row.backend, row.nat],
        ));
        true
    })?;
    Ok(set)
}

fn simulated_flows(world: &World) -> FlowSet {
    let mut set = FlowSet::new();
    family_flows(&world.v4, &mut set);
    family_flows(&world.v6, &mut set);
    set
}

fn family_flows<A: Address + Hash>(family: &Family<A>, set: &mut FlowSet) {
    for (established, table) in [(true, &family.established), (false, &family.half_open)] {
        for (key, flow) in table.borrow().iter() {
            if flow.state & flow_state::REPLY == 0 {
                let end = |address: A, port: Be16| {
                    SocketAddr::new(address.to_addr().to_ip(), port.to_host())
                };
                set.insert((
                    established,
                    [
                        end(key.source, key.source_port),
                        end(key.destination, key.destination_port),
                        end(flow.destination, flow.destination_port),
                        end(flow.source, flow.source_port),
                    ],
                ));
            }
        }
    }
}
