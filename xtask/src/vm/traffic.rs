//! Two VMs on a wire: the balancer in one, clients, router and backends in the other (`lb_tests::far`).

use super::{
    lab::Lab,
    machine::{Machine, Nic, Wire},
    segment,
};
use crate::test::output::{Reader, Tally};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::{self, Command},
    time::{Duration, Instant},
};

/// Link, mode, and whether every test run wants it.
const SCENARIOS: [(&str, &str, bool); 12] = [
    ("plain", "nat", true),
    ("plain", "ipip4", false),
    ("plain", "ipip6", true),
    ("plain", "l2", false),
    ("vlan", "nat", false),
    ("vlan", "l2", false),
    ("qinq", "nat", false),
    ("qinq", "ipip6", false),
    ("bond", "nat", false),
    ("bondvlan", "nat", false),
    ("segment", "nat", true),
    ("vlansegment", "nat", false),
];

/// For setting up one side, or for one side's requests: longer than what `lb_tests` waits for on a slow machine, which
/// says more about it.
const PATIENCE: Duration = Duration::from_mins(5);

/// [`PATIENCE`] in tenths of a second.
const TRIES: u64 = PATIENCE.as_secs() * 10;

/// What two VMs had to say.
#[derive(Debug, Default)]
pub(super) struct Results {
    /// Seconds that a boot took.
    pub(super) boot: f64,
    /// Driver and mode of each uplink that the program was on, as the kernel has them.
    pub(super) modes: BTreeSet<String>,
    pub(super) tally: Tally,
}

/// Which scenarios to run.
#[derive(Clone, Copy)]
pub(super) struct Choice<'a> {
    pub(super) core: bool,
    /// Only over these links; over all if there is none.
    pub(super) links: &'a [String],
}

impl Choice<'_> {
    fn wants(self, link: &str, core: bool) -> bool {
        (core || !self.core)
            && (self.links.is_empty() || self.links.iter().any(|only| only == link))
    }
}

/// Runs the scenarios, each to its end whatever becomes of the others.
pub(super) fn run(lab: &Lab<'_>, choice: Choice<'_>, results: &mut Results) -> Result<()> {
    let wires = Wires::lay(lab)?;
    let mut sides = None;
    for (link, way, core) in SCENARIOS {
        if !choice.wants(link, core) {
            continue;
        }
        let (mut balancer, mut world) = match sides.take() {
            Some(sides) => sides,
            None => (
                Side::boot(lab, &wires, "balancer")?,
                Side::boot(lab, &wires, "world")?,
            ),
        };
        results.boot = results.boot.max(world.machine.booted);
        let begin = Instant::now();
        let mut reader = Reader::default();
        let mut modes = BTreeSet::new();
        let done = {
            let mut line = |line: &str| {
                reader.line(line);
                modes.extend(line.strip_prefix("XDP: ").map(str::to_owned));
            };
            if link.ends_with("segment") {
                segment::run(&mut balancer, &mut world, link, &mut line)
            } else {
                scenario(&mut balancer, &mut world, link, way, &mut line)
            }
        };
        let mut tally = reader.finish();
        match done {
            Ok(steps) => tally.passed += steps,
            Err(error) => tally.note(&format!("{link}::{way}"), Err(error)),
        }
        // Where something failed, who knows what still runs: the next scenario shall not suffer from it.
        if tally.failed == 0 {
            let ended = balancer.end().and(world.end());
            if ended.is_ok() {
                sides = Some((balancer, world));
            }
            tally.note(&format!("{link}::{way}::end"), ended);
        }
        let seconds = begin.elapsed().as_secs_f64();
        eprintln!("vm: {link}, {way}: {}, {seconds:.0} s", tally.line());
        results.modes.append(&mut modes);
        results.tally.absorb(tally);
    }
    Ok(())
}

/// Sets both sides up, lets the clients ask and the balancer look at itself in the end: its program is native still, and
/// its stack has seen nothing of all that. Where a kernel has no XDP for a link, the balancer says so in its time, and
/// nobody asks. The number of tests that this itself is.
fn scenario(
    balancer: &mut Side,
    world: &mut Side,
    link: &str,
    way: &str,
    line: &mut impl FnMut(&str),
) -> Result<usize> {
    world.start(link, way)?;
    world.wait("ready")?;
    balancer.start(link, way)?;
    let begun = balancer.wait("ready")?;
    if begun.contains("stands_aside_and_says_why") {
        balancer.close()?;
        hand_on(&balancer.wait("done")?, &format!("{link}::{way}"), line);
        return Ok(1);
    }
    world.go()?;
    let said = world.wait("test result: ");
    balancer.close()?;
    let looked = balancer.wait("done")?;
    let said = said.with_context(|| looked.clone())?;
    hand_on(&said, &format!("{link}::{way}"), line);
    looked.lines().for_each(line);
    if said.contains("... FAILED") {
        eprintln!("{looked}");
    }
    Ok(1)
}

/// Hands lines on, with names of tests under this one; those of a failed test go to stderr, too.
pub(super) fn hand_on(said: &str, under: &str, line: &mut impl FnMut(&str)) {
    for said in said.lines() {
        match said.strip_prefix("test ") {
            Some(name) if !name.starts_with("result: ") => line(&format!("test {under}::{name}")),
            _ => line(said),
        }
    }
    if said.contains("... FAILED") {
        eprintln!("{said}");
    }
}

/// A VM and the program `far` in it.
pub(super) struct Side {
    pub(super) machine: Machine,
    pub(super) name: &'static str,
}

impl Side {
    pub(super) fn boot(lab: &Lab<'_>, wires: &Wires, name: &'static str) -> Result<Self> {
        let nics = wires.nics(name == "world");
        let machine = lab.boot(name, &nics, wires.netns())?;
        Ok(Self { machine, name })
    }

    pub(super) fn start(&mut self, link: &str, way: &str) -> Result<()> {
        let name = self.name;
        let script = format!(
            "rm -f /run/far.in /run/far.log
mkfifo /run/far.in
sleep 100000 > /run/far.in 2> /dev/null &
echo $! > /run/far.open
(far {name} {way} {link} < /run/far.in; echo \"ended $?\") >> /run/far.log 2>&1 &"
        );
        self.machine.run(&script, PATIENCE).map(drop)
    }

    /// Waits until the program has said a line that begins so; everything it said.
    pub(super) fn wait(&mut self, line: &str) -> Result<String> {
        let script = format!(
            "tries=0
until grep -q -e '^{line}' -e '^ended' /run/far.log || [ $tries -gt {TRIES} ]; do
    tries=$((tries + 1))
    sleep 0.1
done
cat /run/far.log"
        );
        let said = self.machine.run(&script, 2 * PATIENCE)?;
        if !said.lines().any(|said| said.starts_with(line)) {
            bail!("{}: no `{line}` in:\n{said}", self.name);
        }
        Ok(said)
    }

    pub(super) fn go(&mut self) -> Result<()> {
        self.machine.run("echo > /run/far.in", PATIENCE).map(drop)
    }

    /// Tells the program to go on and waits for this answer; what it said in between.
    pub(super) fn step(&mut self, line: &str, answer: &str) -> Result<String> {
        let script = format!(": > /run/far.log\necho '{line}' > /run/far.in");
        self.machine.run(&script, PATIENCE)?;
        self.wait(answer)
    }

    /// Closes the program's input.
    fn close(&mut self) -> Result<()> {
        let script = "kill $(cat /run/far.open)";
        self.machine.run(script, PATIENCE).map(drop)
    }

    /// Waits until the program is gone and the NICs are back from its namespaces.
    pub(super) fn end(&mut self) -> Result<()> {
        let script = "kill $(cat /run/far.open) 2> /dev/null
until grep -q '^ended' /run/far.log; do sleep 0.1; done
until ip link show dev eth0 && ip link show dev eth1; do sleep 0.1; done > /dev/null 2>&1";
        let name = self.name;
        let ended = self.machine.run(script, PATIENCE);
        ended.map(drop).with_context(|| format!("{name}: end"))
    }
}

/// Two wires between the VMs.
pub(super) enum Wires {
    /// Sockets in this folder.
    Sockets(PathBuf),
    Taps(Cables),
}

impl Wires {
    pub(super) fn lay(lab: &Lab<'_>) -> Result<Self> {
        // Until 5.13 virtio_net wants a pair of queues for each CPU's XDP; a socket carries one pair.
        Ok(if lab.kernel_at_least(5, 13) {
            Self::Sockets(lab.work.to_owned())
        } else {
            Self::Taps(Cables::lay()?)
        })
    }

    pub(super) fn nics(&self, world: bool) -> [Nic; 2] {
        [0, 1].map(|wire| Nic {
            number: 2 * wire + u8::from(world) + 1,
            wire: match self {
                Self::Sockets(folder) => Wire::Socket {
                    path: folder.join(format!("wire{wire}")),
                    makes_it: !world,
                },
                Self::Taps(_) => Wire::Tap {
                    device: tap(world, wire),
                    queues: 2,
                    offloads: false,
                },
            },
        })
    }

    pub(super) fn netns(&self) -> Option<&str> {
        match self {
            Self::Sockets(_) => None,
            Self::Taps(cables) => Some(&cables.netns),
        }
    }
}

fn tap(world: bool, wire: u8) -> String {
    format!("{}{wire}", if world { "world" } else { "lb" })
}

/// A network namespace of this machine with tap devices in pairs; gone with the value.
pub(super) struct Cables {
    netns: String,
}

impl Cables {
    pub(super) fn lay() -> Result<Self> {
        let cables = Self {
            netns: format!("millrace-vm-{}", process::id()),
        };
        let name = &cables.netns;
        let mut lines = vec![format!("netns add {name}")];
        for wire in [0, 1] {
            let bridge = format!("wire{wire}");
            lines.push(format!("-n {name} link add {bridge} type bridge"));
            lines.push(format!("-n {name} link set {bridge} up"));
            for world in [false, true] {
                let tap = tap(world, wire);
                lines.push(format!("-n {name} tuntap add {tap} mode tap multi_queue"));
                lines.push(format!("-n {name} link set {tap} master {bridge}"));
                lines.push(format!("-n {name} link set {tap} up"));
            }
        }
        for line in lines {
            let status = Command::new("ip").args(line.split(' ')).status()?;
            if !status.success() {
                bail!("ip {line}: {status}");
            }
        }
        Ok(cables)
    }

    pub(super) fn netns(&self) -> &str {
        &self.netns
    }

    /// One end of the first.
    pub(super) fn end() -> String {
        tap(false, 0)
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        let mut ip = Command::new("ip");
        drop(ip.args(["netns", "del", &self.netns]).status());
    }
}
