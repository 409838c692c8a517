//! `explain` tells what the program then does, and leaves no trace: 10,000 packets, explained, then injected.

#[path = "explain/frames.rs"]
mod frames;
#[path = "explain/world.rs"]
mod world;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    TestRunAttrs, TestRunOptions,
    programs::{TestRun as _, Xdp},
};
use frames::Frames;
use lb_common::{
    abi::{BackendCount, Reason},
    pipeline::{Step, Verdict},
};
use lb_tests::{
    is_root,
    netns::{Folder, Netns, run, unique_name},
};
use lb_userspace::{
    attach::{Installation, Mode, Options},
    dataplane::{Counters, Dataplane as _},
    net::{self, Facts},
    observe::explain::{Decision, Explainer},
    plan::Limits,
};
use rustix::thread::{CpuSet, sched_setaffinity};

const PACKETS: usize = 10_000;
/// Packets explained in a row before all maps are compared.
const ROUND: usize = 2500;

const LIMITS: Limits = Limits {
    frontends: 64,
    backends: 256,
    flows: 16_384,
};

/// The program on `eth0` and `eth1`, and a network around them.
struct Place {
    installation: Installation,
    pins: PathBuf,
    facts: Facts,
    _folders: Folder,
    _other: Netns,
}

impl Place {
    /// In the namespace of the calling thread, which is `netns`.
    fn make(netns: &Netns) -> Result<Self> {
        let other = Netns::create("other")?;
        for (number, device) in ["eth0", "eth1"].into_iter().enumerate() {
            let peer = other.name();
            let v6 = number + 1;
            netns.ip([
                &*format!("link add {device} type veth peer name {device} netns {peer}"),
                &*format!("addr add 10.{number}.0.1/24 dev {device}"),
                &*format!("addr add 2001:db8:{v6}::1/64 dev {device} nodad"),
                &*format!("link set {device} up"),
            ])?;
            other.ip([&*format!("link set {device} up")])?;
            netns.sysctl(&format!("net.ipv4.conf.{device}.forwarding"), "1")?;
            netns.sysctl(&format!("net.ipv6.conf.{device}.forwarding"), "1")?;
        }
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        netns.ip([
            "neigh add 10.0.0.254 lladdr 02:00:00:00:00:fe dev eth0 nud permanent",
            "neigh add 2001:db8:1::fe lladdr 02:00:00:00:00:fe dev eth0 nud permanent",
            "neigh add 10.0.0.13 lladdr 02:00:00:00:00:13 dev eth0 nud permanent",
            "neigh add 2001:db8:1::13 lladdr 02:00:00:00:00:13 dev eth0 nud permanent",
            "route add default via 10.0.0.254",
            "route add ::/0 via 2001:db8:1::fe",
            "route add unreachable 10.9.0.0/16",
        ])?;
        let folders = Folder::create("explain")?;
        let pins = PathBuf::from("/sys/fs/bpf").join(unique_name("explain"));
        let mut installation = Installation::open(&Options {
            pin_root: pins.clone(),
            run_folder: folders.path().to_owned(),
            limits: LIMITS,
            ..Options::default()
        })?;
        installation.attach("eth0", Mode::Native)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let facts = runtime.block_on(net::snapshot(|_, _| net::Sending::Always))?;
        let hz = installation.clock()?.rate()?;
        let place = Self {
            installation,
            pins,
            facts,
            _folders: folders,
            _other: other,
        };
        let ops = world::ops(hz, [place.interface("eth0")?, place.interface("eth1")?]);
        place.installation.dataplane()?.apply(&ops)?;
        Ok(place)
    }

    /// MAC and index.
    fn interface(&self, name: &str) -> Result<([u8; 6], u32)> {
        let found = self.facts.links.iter().find(|(_, link)| link.name == name);
        let (index, link) = found.context("interface")?;
        Ok((link.mac.context("MAC")?, *index))
    }

    fn explainer(&mut self) -> Result<Explainer> {
        let clock = Arc::new(self.installation.clock()?);
        let maps = self.installation.maps();
        Ok(Explainer::open(maps, clock, self.facts.clone())?)
    }

    /// Runs the program: its action, and the frame as it leaves.
    fn inject(&mut self, frame: &[u8], ingress: u32) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 256];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [0, frame.len() as u32, 0, ingress, 0, 0]
            .iter()
            .flat_map(|field: &u32| field.to_ne_bytes())
            .collect();
        let program: &mut Xdp = self
            .installation
            .ebpf()
            .program_mut("millrace_xdp")
            .context("millrace_xdp")?
            .try_into()?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            attrs: TestRunAttrs::new(),
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// What every map holds, as text.
    fn dump(&self) -> Result<BTreeMap<String, String>> {
        let folder: &Path = self.installation.maps();
        let mut dumps = BTreeMap::new();
        for pin in fs::read_dir(folder)? {
            let pin = pin?;
            let mut bpftool = Command::new("bpftool");
            let shown = run(bpftool
                .args(["-j", "map", "dump", "pinned"])
                .arg(pin.path()))?;
            dumps.insert(pin.file_name().to_string_lossy().into_owned(), shown);
        }
        ensure!(dumps.len() > 15, "maps: {:?}", dumps.keys());
        Ok(dumps)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.pins));
    }
}

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

/// `XDP_*` (linux/bpf.h).
const fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop(_) => 1,
        Verdict::NotOurs | Verdict::Pass(_) | Verdict::Neighbour { .. } => 2,
        Verdict::Transmit => 3,
        Verdict::Redirect { .. } => 4,
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
    let explainer = place.explainer()?;
    let (mac, ingress) = place.interface("eth0")?;
    let mut frames = Frames::new(0x9e37_79b9_7f4a_7c15, mac);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();

    let mut before = Counted::read(&counters)?;
    for _ in 0..PACKETS / ROUND {
        let dump = place.dump()?;
        let mut batch = Vec::new();
        for _ in 0..ROUND {
            let frame = frames.next();
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
    eprintln!("{PACKETS} packets: {seen:?}");
    for kind in [
        "NotOurs",
        "Transmit",
        "Redirect",
        "Flow true",
        "Flow false",
        "nat",
        "ipip",
        "l2",
        "Source true",
        "Source false",
        "HandedUp",
        "UnknownPort",
        "NoBackend",
        "NoFlow",
        "TooBig",
        "TtlExpired",
        "Fragment",
        "Icmp",
        "Protocol",
        "Malformed",
        "NoRoute",
    ] {
        assert!(seen.contains_key(kind), "no packet was {kind}: {seen:?}");
    }
    Ok(())
}

/// What a packet met, to know that all kinds came.
fn kinds(said: &Decision) -> Vec<String> {
    let verdict = format!("{:?}", said.verdict);
    let verdict = verdict.split([' ', '(']).next().unwrap_or_default();
    let mut kinds = vec![verdict.to_owned()];
    for step in &said.steps {
        match step {
            Step::Flow { known } => kinds.push(format!("Flow {known}")),
            Step::Source { allowed } => kinds.push(format!("Source {allowed}")),
            Step::Backend { mode: 1, .. } => kinds.push("nat".into()),
            Step::Backend { mode: 2, .. } => kinds.push("ipip".into()),
            Step::Backend { mode: 3, .. } => kinds.push("l2".into()),
            Step::End(reason) => kinds.push(format!("{reason:?}")),
            _ => {}
        }
    }
    kinds
}
