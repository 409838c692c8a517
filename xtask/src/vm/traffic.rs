//! Two VMs on a wire: the balancer in one, clients, router and backends in the other (`lb_tests::far`).

use super::{
    lab::Lab,
    machine::{Machine, Nic, Wire},
    segment,
};
use crate::test::output::{Reader, Tally};
use anyhow::{Context as _, Result, bail};
use std::{
    path::PathBuf,
    process::{self, Command},
    time::Duration,
};

/// Link, mode, and whether every test run wants it.
const SCENARIOS: [(&str, &str, bool); 10] = [
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
];

/// For setting up one side, or for one side's requests.
const PATIENCE: Duration = Duration::from_mins(3);

/// [`PATIENCE`] in tenths of a second.
const TRIES: u64 = PATIENCE.as_secs() * 10;

/// Runs the scenarios, or the `core` ones. Seconds that a boot took, and the results.
pub(super) fn run(lab: &Lab<'_>, core: bool) -> Result<(f64, Tally)> {
    let wires = Wires::lay(lab)?;
    let boot = || -> Result<(Side, Side)> {
        let side = |name, world| -> Result<Side> {
            let machine = lab.boot(name, &wires.nics(world), wires.netns())?;
            Ok(Side { machine, name })
        };
        Ok((side("balancer", false)?, side("world", true)?))
    };
    let (mut balancer, mut world) = boot()?;
    let mut sum = Tally::default();
    for (link, way, wanted) in SCENARIOS {
        if core && !wanted {
            continue;
        }
        let mut reader = Reader::default();
        let done = scenario(&mut balancer, &mut world, link, way, |line| {
            reader.line(line);
        });
        let mut tally = reader.finish();
        match done {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                eprintln!("{link}::{way}: {error:#}");
                tally.failed += 1;
                tally.failures.push(format!("{link}::{way}"));
            }
        }
        let whole = tally.failed == 0;
        eprintln!("vm: {link}, {way}: {}", tally.line());
        sum.absorb(tally);
        if whole {
            balancer.end().and(world.end())?;
        } else {
            // Who knows what still runs: the next scenario shall not suffer from it.
            drop((balancer, world));
            (balancer, world) = boot()?;
        }
    }
    sum.absorb(segment::run(&mut balancer, &mut world)?);
    Ok((world.machine.booted, sum))
}

/// Sets both sides up, lets the clients ask and the balancer look at itself in the end: its program is native still, and
/// its stack has seen nothing of all that.
fn scenario(
    balancer: &mut Side,
    world: &mut Side,
    link: &str,
    way: &str,
    mut line: impl FnMut(&str),
) -> Result<()> {
    world.start(link, way)?;
    world.wait("ready")?;
    balancer.start(link, way)?;
    balancer.wait("ready")?;
    world.go()?;
    let said = world.wait("test result: ");
    balancer.close()?;
    let looked = balancer.wait("done")?;
    let said = said.with_context(|| looked.clone())?;
    for said in said.lines() {
        match said.strip_prefix("test ") {
            Some(name) if !name.starts_with("result: ") => {
                line(&format!("test {link}::{way}::{name}"));
            }
            _ => line(said),
        }
        if !said.ends_with("... ok") && !said.starts_with("test result: ") && said != "ready" {
            eprintln!("{said}");
        }
    }
    if said.contains("... FAILED") {
        eprintln!("{looked}");
    }
    Ok(())
}

/// A VM and the program `far` in it.
pub(super) struct Side {
    pub(super) machine: Machine,
    pub(super) name: &'static str,
}

impl Side {
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
