//! The Debian package on a machine that has nothing else of ours: installed, used, upgraded, used and removed, in one
//! VM; clients, router and backends are in the other.

use super::{
    image::Image,
    lab::{Lab, Work},
    suite,
    traffic::{Side, Wires},
};
use crate::{
    dist, setup,
    test::output::{Reader, Tally},
};
use anyhow::Result;
use std::{fmt::Write as _, fs, time::Duration};

/// For one script; a restart of an emulated machine's agent takes seconds.
const PATIENCE: Duration = Duration::from_mins(5);

/// What dpkg, its scripts and this file call. Busybox's tar is not the one that dpkg-deb knows.
const PROGRAMS: [&str; 7] = [
    "ip",
    "bpftool",
    "dpkg",
    "dpkg-deb",
    "dpkg-split",
    "tar",
    "ethtool",
];

/// The network of `lb_tests::far`, and dpkg's books, which are empty.
const PREPARE: &str = "set -e
mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers
: > /var/lib/dpkg/status
: > /var/lib/dpkg/available
ip link set eth0 up
ip address add 10.0.0.2/24 dev eth0
ip address add fd00::2/64 dev eth0 nodad
ip route add default via 10.0.0.1
ip route add default via fd00::1
bpftool net show > /run/before
ls -A /sys/fs/bpf > /run/pins-before
for program in cargo rustc millrace; do
    if command -v $program; then exit 1; fi
done
";

/// `dpkg` looks for programs that only other packages need.
const DPKG: &str = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin
dpkg() { command dpkg --force-unsafe-io --force-bad-path \"$@\" 2>&1; }
";

/// As the unit starts it; ready when every backend is.
const START: &str = "set -e
eval \"exec $(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/millrace.service)\" > /run/agent.log 2>&1 &
echo $! > /run/agent.pid
for service in http4 http6 echo4 echo6; do
    until [ \"$(millrace backends $service 2> /dev/null | grep -c ' ready ')\" = 4 ]; do
        kill -0 \"$(cat /run/agent.pid)\" || { cat /run/agent.log; exit 1; }
        sleep 0.1
    done
done
ip -j link show dev eth0 | grep -q '\"xdp\":{\"mode\":1,'
";

/// SIGTERM, which detaches nothing.
const STOP: &str = "set -e
kill -TERM \"$(cat /run/agent.pid)\"
while kill -0 \"$(cat /run/agent.pid)\" 2> /dev/null; do sleep 0.1; done
ip -j link show dev eth0 | grep -q '\"xdp\":{\"mode\":1,'
[ -d /sys/fs/bpf/millrace ]
";

const GONE: &str = "set -e
bpftool net show | diff /run/before -
ls -A /sys/fs/bpf | diff /run/pins-before -
[ ! -e /usr/sbin/millrace ]
[ ! -e /run/millrace ]
[ -e /etc/millrace/millrace.yaml ]
";

/// The services that the clients of `lb_tests::far` ask for.
fn configuration() -> String {
    let mut text = "apiVersion: config.millrace.io/v1alpha1
kind: MillraceConfiguration
interfaces: [eth0]
services:
"
    .to_owned();
    for (family, vip, network) in [
        (4, "192.0.2.10", "10.0.0.1"),
        (6, "[2001:db8::10]", "fd00::1"),
    ] {
        for (name, port, protocol, target) in [("http", 80, "tcp", 8080), ("echo", 7, "udp", 7)] {
            _ = writeln!(
                text,
                "- name: {name}{family}\n  frontends: [\"{vip}:{port}/{protocol}\"]\n  mode: nat\n  backends:"
            );
            for number in 1..=4 {
                let address = match family {
                    4 => format!("{network}{number}"),
                    _ => format!("[{network}{number}]"),
                };
                _ = writeln!(text, "  - {{address: \"{address}:{target}\"}}");
            }
        }
    }
    text
}

/// On the kernel of this series.
pub(super) fn run(series: &str) -> Result<Tally> {
    let (first, second) = (dist::make(1)?, dist::make(2)?);
    let work = Work::create()?;
    let mut image = Image::new()?;
    for program in PROGRAMS {
        image.program(program)?;
    }
    image.file("/srv/first.deb", &first.file);
    image.file("/srv/second.deb", &second.file);
    image.text("/srv/millrace.yaml", &configuration(), 0o600);
    let kernel = setup::kernel(series)?;
    let folder = work.path().join("installed");
    fs::create_dir_all(&folder)?;
    let installed = Lab::open(&folder, &kernel, &image, None)?;
    let around = Lab::open(
        work.path(),
        &kernel,
        &suite::image(work.path())?,
        Some(installed.accelerator),
    )?;
    let wires = Wires::lay(&installed)?;
    let mut machine = installed.boot("installed", &wires.nics(false), wires.netns())?;
    let mut world = Side {
        machine: around.boot("world", &wires.nics(true), wires.netns())?,
        name: "world",
    };

    let mut sum = Tally::default();
    let mut step = |title: &str, script: &str| -> Result<bool> {
        let done = machine.run(&format!("{DPKG}{script}"), PATIENCE);
        eprintln!(
            "vm: package: {title}: {}",
            if done.is_ok() { "ok" } else { "FAILED" }
        );
        match done {
            Ok(_) => sum.passed += 1,
            Err(error) => {
                sum.failed += 1;
                sum.failures.push(format!("package: {title}: {error:#}"));
                return Ok(false);
            }
        }
        Ok(true)
    };
    let install =
        format!("{PREPARE}dpkg -i /srv/first.deb\nbpftool net show | diff /run/before -\n");
    let configure = "set -e\ncp /srv/millrace.yaml /etc/millrace/millrace.yaml\nmillrace check /etc/millrace/millrace.yaml\n";
    let refuse = "set -e\nif dpkg -r millrace; then exit 1; fi\n[ -x /usr/sbin/millrace ]\n";
    let mut traffic = Reader::default();
    let whole = step("it installs and attaches nothing", &install)?
        && step("its example shows how to configure it", configure)?
        && {
            world.start("plain", "nat")?;
            world.wait("ready")?;
            step("it serves by native XDP on a virtio NIC", START)?
        }
        && ask(&mut world, "installed", &mut traffic)?
        && step(
            "an upgrade leaves the agent running",
            "set -e\ndpkg -i /srv/second.deb\nkill -0 \"$(cat /run/agent.pid)\"\n",
        )?
        && step("ending the agent detaches nothing", STOP)?
        && {
            world.start("plain", "nat")?;
            world.wait("ready")?;
            step("the new version takes over", START)?
        }
        && ask(&mut world, "upgraded", &mut traffic)?
        && step("it is not removed under a running agent", refuse)?
        && step("its end detaches nothing", STOP)?
        && step("it is removed", "dpkg -r millrace\n")?;
    if whole {
        step("the host is as it was", GONE)?;
    }
    sum.absorb(traffic.finish());
    Ok(sum)
}

/// The clients' requests, as tests of their own names. The world ends with them.
fn ask(world: &mut Side, when: &str, results: &mut Reader) -> Result<bool> {
    world.go()?;
    let said = world.wait("test result: ")?;
    for line in said.lines() {
        match line.strip_prefix("test ") {
            Some(name) if !name.starts_with("result: ") => {
                results.line(&format!("test package::{when}::{name}"));
            }
            _ => results.line(line),
        }
        if line.ends_with("FAILED") {
            eprintln!("{said}");
        }
    }
    world.end()?;
    Ok(true)
}
