//! `explain` tells what the program then does, and leaves no trace: 10,000 packets, explained, then injected.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{BackendCount, Mode, Reason},
    pipeline::{Step, Verdict},
};
use lb_tests::{frames::Frames, is_root, kernel::action, netns::Netns, place::Place, world};
use lb_userspace::{
    attach::Clock,
    dataplane::Counters,
    observe::explain::{Decision, Explainer},
};
use rustix::thread::{CpuSet, sched_setaffinity};

const PACKETS: usize = 10_000;
/// How many it may take until each of [`KINDS`] was met: some are rare, and rarer where time passes between fragments.
const MOST: usize = 40_000;
/// Packets explained in a row before all maps are compared.
const ROUND: usize = 2500;

/// What is to be met.
const KINDS: [&str; 38] = [
    "NotOurs",
    "Transmit",
    "Redirect",
    "Flow true",
    "Flow false",
    "nat",
    "ipip",
    "l2",
    "local",
    "pass",
    "dsr",
    "TunnelMalformed",
    "TunnelTag",
    "TunnelProbe",
    "Source true",
    "Source false",
    "HandedUp",
    "UnknownPort",
    "NoBackend",
    "NoFlow",
    "TooBig",
    "DoesNotFit",
    "TtlExpired",
    "Follows",
    "FragmentUnknown",
    "FragmentOverlap",
    "FragmentTiny",
    "About",
    "Echo",
    "IcmpMalformed",
    "IcmpUnmatched",
    "IcmpMtu",
    "IcmpType",
    "Protocol",
    "Malformed",
    "Announced",
    "Neighbour",
    "NoRoute",
];

/// What the program counted.
#[derive(PartialEq, Debug)]
struct Counted {
    backends: Vec<BackendCount>,
    reasons: Vec<[u64; Reason::COUNT as usize]>,
}

impl Counted {
    fn read(counters: &Counters) -> Result<Self> {
        Ok(Self {
            backends: counters.backends(0..world::BACKEND_IDS)?,
            reasons: counters.reasons(0..world::FRONTEND_IDS)?,
        })
    }

    /// The backend that got a packet since `before`.
    fn owner(&self, before: &Self) -> Option<u32> {
        let mut ids = (0..).zip(self.backends.iter().zip(&before.backends));
        ids.find(|(_, (now, before))| now.packets != before.packets)
            .map(|(id, _)| id)
    }

    /// Reasons counted since `before`.
    fn reasons(&self, before: &Self) -> Vec<Reason> {
        let grown = |reason: &Reason| {
            let at = *reason as usize;
            let mut pairs = self.reasons.iter().zip(&before.reasons);
            pairs.any(|(now, before)| now[at] != before[at])
        };
        Reason::ALL.into_iter().filter(grown).collect()
    }
}

/// Compares one packet's explanation with what the program then did.
fn compare(
    said: &Decision,
    (did, left): &(u32, Vec<u8>),
    before: &Counted,
    after: &Counted,
) -> Result<()> {
    ensure!(action(said.verdict) == *did, "action {did}");
    let dropped = matches!(said.verdict, Verdict::Drop(_));
    ensure!(dropped || said.frame == *left, "left as\n{left:02x?}");
    let owner = said.steps.iter().rev().find_map(|step| match step {
        Step::Backend { id, .. } => Some(*id),
        _ => None,
    });
    let forwarded = after.owner(before);
    ensure!(
        forwarded.is_none() || forwarded == owner,
        "counted for backend {forwarded:?}"
    );
    let mut ends: Vec<_> = said
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::End(reason) => Some(*reason),
            _ => None,
        })
        .collect();
    ends.sort_unstable();
    let counted = after.reasons(before);
    ensure!(ends == counted, "counted as {counted:?}");
    Ok(())
}

#[test]
fn what_is_explained_is_what_happens() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let netns = Netns::create("explain")?;
    netns.enter(|| explain_and_inject(&netns))
}

fn explain_and_inject(netns: &Netns) -> Result<()> {
    // Counters and tokens are per CPU.
    let mut cpus = CpuSet::new();
    cpus.set(0);
    sched_setaffinity(None, &cpus)?;
    let mut place = Place::make(netns)?;
    let counters = place.installation.counters()?;
    let clock = Arc::new(Clock::load()?);
    let explainer = Explainer::open(place.installation.maps(), clock, place.facts.clone())?;
    let (mac, ingress) = place.interface("eth0")?;
    let mut frames = Frames::new(0x9e37_79b9_7f4a_7c15, mac);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();

    let mut before = Counted::read(&counters)?;
    let mut packets = 0;
    let all_met =
        |seen: &BTreeMap<String, usize>| KINDS.iter().all(|kind| seen.contains_key(*kind));
    while packets < PACKETS || packets < MOST && !all_met(&seen) {
        packets += ROUND;
        let dump = place.dump()?;
        let mut batch = Vec::new();
        for _ in 0..ROUND {
            let frame = frames.make();
            explainer.decide(&frame, ingress, 0)?;
            batch.push(frame);
        }
        let after = place.dump()?;
        for (map, contents) in &dump {
            assert!(after[map] == *contents, "explaining changed {map}");
        }

        for frame in batch {
            let said = explainer.decide(&frame, ingress, 0)?;
            let did = place.inject(&frame, ingress)?;
            let after = Counted::read(&counters)?;
            compare(&said, &did, &before, &after)
                .with_context(|| format!("frame\n{frame:02x?}\nexplained as {said:02x?}"))?;
            if matches!(said.verdict, Verdict::Transmit | Verdict::Redirect { .. }) {
                frames.left(&did.1);
            }
            for kind in kinds(&said) {
                *seen.entry(kind).or_default() += 1;
            }
            before = after;
        }
    }
    eprintln!("{packets} packets: {seen:?}");
    for kind in KINDS {
        assert!(seen.contains_key(kind), "no packet was {kind}: {seen:?}");
    }
    Ok(())
}

const MODES: [Mode; 6] = [
    Mode::Nat,
    Mode::Ipip,
    Mode::L2,
    Mode::Local,
    Mode::Pass,
    Mode::Dsr,
];

/// What a packet met, to know that all kinds came.
fn kinds(said: &Decision) -> Vec<String> {
    let verdict = format!("{:?}", said.verdict);
    let verdict = verdict.split([' ', '(']).next().unwrap_or_default();
    let mut kinds = vec![verdict.to_owned()];
    for step in &said.steps {
        match step {
            Step::Flow { known } => kinds.push(format!("Flow {known}")),
            Step::Source { allowed } => kinds.push(format!("Source {allowed}")),
            Step::Backend { mode, .. } => {
                let known = MODES.into_iter().find(|known| *known as u8 == *mode);
                kinds.extend(known.map(|mode| mode.name().to_owned()));
            }
            Step::Announced { .. } => kinds.push("Announced".into()),
            Step::Follows => kinds.push("Follows".into()),
            Step::About { .. } => kinds.push("About".into()),
            Step::End(reason) => kinds.push(format!("{reason:?}")),
            _ => {}
        }
    }
    kinds
}
