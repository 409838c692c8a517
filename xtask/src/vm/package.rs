//! The Debian package on a Debian with systemd that has nothing else of ours: installed, used, upgraded and managed
//! under traffic, and removed, in one VM. Client and backends are in the other, on the same LAN segment: they find the
//! VIPs by ARP and neighbour discovery.

mod scripts;

use super::{
    image::{Image, PUT},
    lab::{Lab, Work},
    steps::Steps,
    suite,
    traffic::{Side, Wires, hand_on},
};
use crate::{
    dist, setup,
    test::output::{Reader, Tally},
};
use anyhow::{Result, ensure};
use std::{fmt::Write as _, fs, path::Path};

/// At least so many requests are asked of each service by `lb_tests::far`.
const REQUESTS: u64 = 200;

/// The console is a file: nobody logs in there.
const WORDS: &str = "systemd.mask=serial-getty@ttyS0.service";

/// On the kernel of this series.
pub(crate) fn run(series: &str) -> Result<Tally> {
    // One after the other: nobody makes one while another is held.
    let first = dist::make(1)?.file;
    let second = dist::make(2)?.file;
    let disk = setup::debian_root()?;
    let kernel = setup::kernel(series)?;
    let work = Work::create()?;
    let around = Lab::open(work.path(), &kernel, &suite::image(work.path())?, None)?;
    let folder = work.path().join("installed");
    fs::create_dir_all(&folder)?;
    let image = image(&first, &second)?;
    let installed = Lab::open(&folder, &kernel, &image, Some(around.accelerator))?
        .with_words(WORDS)
        .with_disk(&disk);
    let wires = Wires::lay(&installed)?;
    let machine = installed.boot("installed", &wires.nics(false), wires.netns())?;
    eprintln!("vm: package: systemd is up after {:.1} s", machine.booted);
    let world = Side::boot(&around, &wires, "world")?;
    let mut pair = Pair {
        steps: Steps::on(machine, "package", scripts::PRELUDE, scripts::LOG),
        world,
    };
    pair.world.start("segment", "nat")?;
    pair.world.wait("done")?;
    pair.all()?;
    Ok(pair.steps.sum)
}

fn image(first: &Path, second: &Path) -> Result<Image> {
    let mut image = Image::of_disk()?;
    image.file(&format!("{PUT}/srv/first.deb"), first);
    image.file(&format!("{PUT}/srv/second.deb"), second);
    let network = format!("{PUT}/etc/systemd/network/lan.network");
    image.text(&network, scripts::NETWORK, 0o644);
    let configured = format!("{PUT}/srv/millrace.yaml");
    image.text(&configured, &configuration(), 0o600);
    Ok(image)
}

/// The services that the client of `lb_tests::far::segment` asks for.
fn configuration() -> String {
    let mut text = "apiVersion: config.millrace.io/v1alpha1
kind: MillraceConfiguration
interfaces: [eth0]
announce: {l2: true}
services:
"
    .to_owned();
    for (family, vip, network) in [(4, "10.0.0.100", "10.0.0.1"), (6, "[fd00::100]", "fd00::1")] {
        for (name, port, protocols, target) in [
            ("http", 80, &["tcp"][..], 8080),
            ("echo", 7, &["tcp", "udp"], 7),
        ] {
            let frontends = protocols
                .iter()
                .map(|protocol| format!("{vip}:{port}/{protocol}"));
            let frontends: Vec<_> = frontends.collect();
            _ = writeln!(
                text,
                "- name: {name}{family}\n  frontends: {frontends:?}\n  mode: nat"
            );
            if name == "http" {
                text += "  health: {tcp: {}}\n";
            }
            text += "  backends:\n";
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

/// The machine with the package, and the world around it.
struct Pair {
    steps: Steps,
    world: Side,
}

impl Pair {
    /// Up to the first step that fails; whether there is none.
    fn all(&mut self) -> Result<bool> {
        Ok(self.step("it boots", scripts::PREPARE)
            && self.step("it installs and attaches nothing", scripts::INSTALL)
            && self.step("it starts, and is ready when it serves", scripts::START)
            && self.asked("requests", "done", "installed")?
            && self.counted()
            && self.asked("busy", "busy", "upgraded_under_traffic")?
            && self.step("it is upgraded under traffic", scripts::UPGRADE)
            && self.asked("enough", "done", "upgraded_under_traffic")?
            && self.asked("busy", "busy", "managed_under_traffic")?
            && self.step("it is stopped, started and restarted", scripts::MANAGE)
            && self.step("a mistake is no crash loop", scripts::MISTAKE)
            && self.asked("enough", "done", "managed_under_traffic")?
            && self.asked("requests", "done", "upgraded")?
            && self.step("it stays under a running agent", scripts::REFUSE)
            && self.step("removed, it leaves the host as it was", scripts::REMOVE))
    }

    fn step(&mut self, title: &str, script: &str) -> bool {
        self.steps.step(title, script)
    }

    /// What the world does, as tests of their own names.
    fn asked(&mut self, line: &str, answer: &str, when: &str) -> Result<bool> {
        let said = self.world.step(line, answer)?;
        let mut reader = Reader::default();
        let under = format!("package::{when}");
        hand_on(&said, &under, &mut |line| reader.line(line));
        let tally = reader.finish();
        if tally.ran() {
            eprintln!("vm: package: {when}: {}", tally.line());
        }
        let whole = tally.failed == 0;
        self.steps.sum.absorb(tally);
        Ok(whole)
    }

    /// Whether the program saw each request.
    fn counted(&mut self) -> bool {
        let title = "every request is counted";
        self.steps.look(title, scripts::METRICS, |metrics| {
            for service in ["http4", "http6", "echo4", "echo6"] {
                let packets = packets(metrics, service);
                ensure!(
                    packets >= REQUESTS,
                    "{service}: {packets} packets in\n{metrics}"
                );
            }
            Ok(())
        })
    }
}

/// Of all frontends of a service.
fn packets(metrics: &str, service: &str) -> u64 {
    let label = format!("service=\"{service}\"");
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("millrace_frontend_packets_total{"))
        .filter(|line| line.contains(&label));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_all_frontends_are_summed() {
        let metrics = "# TYPE millrace_frontend_packets_total counter
millrace_frontend_packets_total{namespace=\"default\",service=\"echo4\",protocol=\"tcp\"} 3
millrace_frontend_packets_total{namespace=\"default\",service=\"echo4\",protocol=\"udp\"} 4
millrace_frontend_packets_total{namespace=\"default\",service=\"echo6\",protocol=\"udp\"} 50
millrace_frontend_bytes_total{namespace=\"default\",service=\"echo4\",protocol=\"udp\"} 600
";
        assert_eq!(packets(metrics, "echo4"), 7);
    }
}
