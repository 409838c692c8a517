//! The network of [`crate::topology`] cut in two at the balancer's cable: the balancer in one VM, everything else in
//! another, a virtio-net NIC on either side (two for a bond).
//!
//! Both sides know all addresses, so they need not talk. Each is driven by lines on its standard input: one line when
//! the other side is ready, the end of input when all is done.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

pub mod segment;

use crate::{
    balancer::{Balancer, Configuration},
    clients, kernel,
    netns::{Folder, Netns, Process, until},
    servers::{self, ECHO, HTTP, tunnels},
    stage::{self, Way, tracked_connections},
    topology::{self, Family, Host, Shape},
};

/// Backends b1 to b4.
const BACKENDS: u16 = 4;

/// Requests of each kind and family: enough that each backend gets some, for certain.
const REQUESTS: usize = 200;

/// A NIC comes back some time after its namespace is gone.
const PATIENCE: Duration = Duration::from_secs(20);

const TAG: u16 = 7;

/// Of the service VLAN that another is in.
const SERVICE_TAG: u16 = 4000;

/// How the balancer is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Plain,
    /// Its address is on a VLAN device; packets travel tagged.
    Vlan,
    /// Its address is on a VLAN device upon one of 802.1ad; and the kernel knows the way to the clients, too.
    Qinq,
    /// An active-backup bond of two NICs.
    Bond,
    /// A VLAN device upon that.
    BondVlan,
}

impl Link {
    /// The device that the program is attached to.
    fn uplink(self) -> &'static str {
        match self {
            Self::Plain | Self::Vlan | Self::Qinq => "eth0",
            Self::Bond | Self::BondVlan => "bond0",
        }
    }

    /// The device that has the addresses.
    fn device(self) -> String {
        match self {
            Self::Plain | Self::Bond => self.uplink().to_owned(),
            Self::Vlan | Self::BondVlan => format!("{}.{TAG}", self.uplink()),
            Self::Qinq => format!("{}.{SERVICE_TAG}.{TAG}", self.uplink()),
        }
    }

    /// Brings the NICs from the VM's own namespace and makes of them what this link is.
    fn plug(self, netns: &Netns) -> Result<()> {
        let nics: &[&str] = if self.uplink() == "bond0" {
            &["eth0", "eth1"]
        } else {
            &["eth0"]
        };
        for nic in nics {
            let mut command = Command::new("ip");
            command.args(["link", "set", nic, "netns", netns.name()]);
            until(PATIENCE, || crate::netns::run(&mut command).map(drop))?;
        }
        let uplink = self.uplink();
        if uplink == "bond0" {
            netns.ip([
                "link add bond0 type bond mode active-backup miimon 100",
                "link set eth0 master bond0",
                "link set eth1 master bond0",
                "link set bond0 type bond primary eth0",
            ])?;
            // As `millrace doctor` asks for; a bond has it on whatever its NICs can do.
            let mut ethtool = Command::new("ethtool");
            netns.run(ethtool.args(["-K", "bond0", "lro", "off"]))?;
        }
        netns.ip([&*format!("link set {uplink} up")])?;
        let mut below = uplink.to_owned();
        if self == Self::Qinq {
            let outer = format!("{uplink}.{SERVICE_TAG}");
            netns.ip([
                &*format!(
                    "link add link {uplink} name {outer} type vlan protocol 802.1ad id {SERVICE_TAG}"
                ),
                &*format!("link set {outer} up"),
            ])?;
            below = outer;
        }
        let device = self.device();
        if device != uplink {
            netns.ip([&*format!(
                "link add link {below} name {device} type vlan id {TAG}"
            )])?;
        }
        if self == Self::Qinq {
            // A NIC has room for one tag.
            netns.ip([&*format!("link set {device} mtu 1496")])?;
        }
        netns.ip([&*format!("link set {device} up")])
    }

    /// Before 5.15 a bond has no native XDP (Linux commit 9e2ee5c7e7c3), and generic XDP takes no program as ours (Linux
    /// commit 2ea5eabaf04a).
    fn has_xdp(self) -> bool {
        self.uplink() != "bond0" || kernel::is_at_least(5, 15)
    }
}

impl FromStr for Link {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "plain" => Self::Plain,
            "vlan" => Self::Vlan,
            "qinq" => Self::Qinq,
            "bond" => Self::Bond,
            "bondvlan" => Self::BondVlan,
            _ => bail!("no link {text}: plain, vlan, qinq, bond or bondvlan"),
        })
    }
}

/// A mode as the command line has it; `ipip` with the outer header's family.
pub fn way(text: &str) -> Result<Way> {
    Ok(match text {
        "nat" => Way::Nat,
        "ipip4" => Way::IpipOver(Family::V4),
        "ipip6" => Way::IpipOver(Family::V6),
        "l2" => Way::L2,
        _ => bail!("no way {text}: nat, ipip4, ipip6 or l2"),
    })
}

/// The balancer's side, from the start of the agent to the end of standard input.
pub fn balance(way: Way, link: Link) -> Result<()> {
    let netns = Netns::create("lb")?;
    link.plug(&netns)?;
    let device = link.device();
    netns.ip([
        &*format!("address add 10.0.0.2/24 dev {device}"),
        &*format!("address add fd00::2/64 dev {device} nodad"),
        "route add default via 10.0.0.1",
        "route add default via fd00::1",
    ])?;
    let mut configuration = stage::configuration(way, Shape::OneArm, &backends_elsewhere(&netns)?);
    configuration.interfaces = vec![link.uplink().to_owned()];
    let folder = Folder::create("far")?;
    stage::watch_connections(&netns, &folder)?;
    if link == Link::Qinq {
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        // Or the first reply to a client is the stack's: it alone asks for an unknown neighbour.
        for gateway in ["10.0.0.1", "fd00::1"] {
            let mut ping = Command::new("ping");
            let ping = ping.args(["-c", "1", "-w", "20", gateway]);
            netns.run(ping)?;
        }
    }
    let balancer = Balancer::start(&netns, &configuration)?;
    if !link.has_xdp() {
        stands_aside(&netns, &balancer, &configuration, link.uplink())?;
        say(ASIDE);
        say("ready");
        return end_of_input().map(|()| say("done"));
    }
    runs_natively(&netns, link.uplink()).with_context(|| balancer.log())?;
    say("ready");
    end_of_input()?;
    say(&balancer.cli(&["status"])?);
    runs_natively(&netns, link.uplink())?;
    no_tracked(&netns, Family::vip)?;
    nothing_was_handed_up(&netns)?;
    drop(balancer);
    say("done");
    Ok(())
}

/// Clients, router and backends; then, when the balancer is ready, their requests.
pub fn surround(way: Way, link: Link) -> Result<()> {
    let router = topology::router()?;
    link.plug(&router)?;
    router.ip([&*format!("link set {} master lan", link.device())])?;
    router.ip([
        "route replace 192.0.2.0/24 via 10.0.0.2",
        "route replace 2001:db8::/64 via fd00::2",
    ])?;
    let clients = topology::clients(&router)?;
    let folder = Folder::create("far")?;
    let mut running = Vec::new();
    for number in 1..=BACKENDS {
        let host = topology::backend(&router, number)?;
        if way != Way::Nat {
            topology::give_vips(&host)?;
        }
        if let Way::IpipOver(_) = way {
            tunnels::open(&host)?;
        }
        // No process of ours unpacks anything: that is the tunnel devices' part.
        let servers = serve(&host, &folder)?;
        running.push((host, servers));
    }
    if let Way::IpipOver(_) = way {
        for client in &clients {
            client.netns.ip(["link set eth0 mtu 1400"])?;
        }
    }
    say("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let requests = Requests {
        way,
        client: &clients[0],
        vip: Family::vip,
    };
    requests.all();
    Ok(())
}

/// What the clients ask a backend for; each process more takes an emulated CPU seconds.
fn serve(host: &Host, folder: &Folder) -> Result<[Process; 2]> {
    Ok([servers::nginx(host, folder)?, servers::echo(host)?])
}

/// What the clients ask for, as tests with names of their own.
struct Requests<'a> {
    way: Way,
    client: &'a Host,
    vip: fn(Family) -> IpAddr,
}

type Test<'a> = fn(&Requests<'a>, Family) -> Result<()>;

impl Requests<'_> {
    /// Runs all and prints what libtest would.
    fn all(&self) {
        let tests: [(&str, Test<'_>); 4] = [
            ("every_backend_answers_http", Self::http),
            ("every_backend_answers_datagrams", Self::datagrams),
            ("the_client_address_is_what_the_mode_says", Self::address),
            ("an_unknown_port_is_refused", Self::refusal),
        ];
        let mut score = Score::default();
        for family in Family::BOTH {
            for (name, test) in tests {
                let name = format!("{family:?}::{name}").to_lowercase();
                score.note(&name, test(self, family));
            }
        }
        score.end();
    }

    fn http(&self, family: Family) -> Result<()> {
        let vip = SocketAddr::new((self.vip)(family), HTTP);
        // Where nothing comes back, one request's patience is enough.
        let first = clients::http(&self.client.netns, vip, 1, 1);
        ensure!(first.failed() == 0, "{first:?}");
        let answers = clients::http(&self.client.netns, vip, REQUESTS, 2);
        ensure!(
            answers.answered() == REQUESTS && answers.by_backend.len() == usize::from(BACKENDS),
            "{answers:?}"
        );
        Ok(())
    }

    fn datagrams(&self, family: Family) -> Result<()> {
        let vip = SocketAddr::new((self.vip)(family), ECHO);
        let first = clients::udp(&self.client.netns, vip, 1);
        ensure!(first.failed() == 0, "{first:?}");
        let answers = clients::udp(&self.client.netns, vip, REQUESTS);
        ensure!(
            answers.answered() == REQUESTS && answers.by_backend.len() == usize::from(BACKENDS),
            "{answers:?}"
        );
        Ok(())
    }

    fn address(&self, family: Family) -> Result<()> {
        let url = format!("http://{}/", SocketAddr::new((self.vip)(family), HTTP));
        let answer = clients::curl(&self.client.netns, &[&url])?;
        let expected = match (self.way, family) {
            (Way::Nat, Family::V4) => "10.0.0.2".to_owned(),
            (Way::Nat, Family::V6) => "fd00::2".to_owned(),
            _ => self.client.address(family).to_string(),
        };
        ensure!(answer.trim().ends_with(&format!(" {expected}")), "{answer}");
        Ok(())
    }

    fn refusal(&self, family: Family) -> Result<()> {
        let nowhere = SocketAddr::new((self.vip)(family), 4444);
        let refused = Some(std::io::ErrorKind::ConnectionRefused);
        let tcp = clients::tcp_refusal(&self.client.netns, nowhere);
        let udp = clients::udp_refusal(&self.client.netns, nowhere);
        ensure!(tcp == refused && udp == refused, "{tcp:?}, {udp:?}");
        Ok(())
    }
}

/// Says what libtest would.
#[derive(Default)]
struct Score {
    passed: usize,
    failed: usize,
}

impl Score {
    fn note(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                say(&format!("test {name} ... ok"));
            }
            Err(error) => {
                self.failed += 1;
                say(&format!("{error:#}"));
                say(&format!("test {name} ... FAILED"));
            }
        }
    }

    fn end(&self) {
        let Self { passed, failed } = self;
        say(&format!("test result: {passed} passed; {failed} failed"));
    }
}

/// Names and addresses of the backends, which are not in this VM.
fn backends_elsewhere(netns: &Netns) -> Result<Vec<Host>> {
    (1..=BACKENDS)
        .map(|number| {
            let last = 10 + number;
            Ok(Host {
                name: format!("b{number}"),
                netns: netns.clone(),
                v4: format!("10.0.0.{last}").parse()?,
                v6: format!("fd00::{last}").parse()?,
            })
        })
        .collect()
}

/// For `cargo xtask vm`: nobody need ask for anything.
const ASIDE: &str = "test stands_aside_and_says_why ... ok";

/// The agent puts up with no less than it was asked for, says what would do, and leaves the uplink alone.
fn stands_aside(
    netns: &Netns,
    balancer: &Balancer,
    configuration: &Configuration,
    device: &str,
) -> Result<()> {
    const FIX: &str =
        "use another interface, or boot a kernel from 5.15 on and set `xdp.mode: generic` (slower)";
    let refused = |what: &str| {
        let expected = format!("interface {device}: {what}; {FIX}");
        until(PATIENCE, || {
            let status = balancer.json(&["status"])?;
            let interfaces = status["interfaces"].as_array().context("interfaces")?;
            let found = interfaces.iter().find(|found| found["name"] == device);
            let attached = &found.with_context(|| status.to_string())?["attached"];
            ensure!(
                attached["state"] == "refused" && attached["why"] == *expected,
                "{attached}"
            );
            Ok(())
        })
        .with_context(|| balancer.log())?;
        let xdp = xdp(netns, device)?;
        ensure!(xdp.is_null(), "{device}: {xdp}");
        say(&expected);
        anyhow::Ok(())
    };
    refused("its driver has no native XDP")?;
    let text = configuration.to_string();
    balancer.write(&text.replacen("services:", "xdp: {mode: generic}\nservices:", 1))?;
    refused("this kernel takes no program as ours in generic XDP")
}

/// Asks the kernel, not the agent.
fn runs_natively(netns: &Netns, device: &str) -> Result<()> {
    let xdp = xdp(netns, device)?;
    // XDP_ATTACHED_DRV (`linux/if_link.h`)
    ensure!(xdp["mode"] == 1, "{device}: {xdp}");
    let driver = netns.run(Command::new("ethtool").args(["-i", device]))?;
    let driver = driver
        .lines()
        .find_map(|line| line.strip_prefix("driver: "));
    // Read by `cargo xtask vm`, for its table.
    say(&format!("XDP: {} native", driver.context("a driver")?));
    Ok(())
}

/// What the kernel says about XDP on a device.
fn xdp(netns: &Netns, device: &str) -> Result<serde_json::Value> {
    let shown = netns.run(Command::new("ip").args(["-j", "link", "show", "dev", device]))?;
    let links: serde_json::Value = serde_json::from_str(&shown).context("ip -j link")?;
    Ok(links[0]["xdp"].clone())
}

/// The proof that the XDP program sent every packet: none went up to the tc program.
fn nothing_was_handed_up(netns: &Netns) -> Result<()> {
    let metrics = clients::curl(netns, &["http://127.0.0.1:9470/metrics"])?;
    let of = |name: &str| -> Vec<&str> {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.filter(|line| !line.ends_with(" 0")).collect()
    };
    ensure!(
        !of("millrace_frontend_packets_total").is_empty(),
        "nothing was forwarded: {metrics}"
    );
    let reasons = metrics.lines().filter(|line| line.contains("handed_up"));
    let some: Vec<_> = reasons.filter(|line| !line.ends_with(" 0")).collect();
    ensure!(some.is_empty(), "handed up: {some:?}");
    Ok(())
}

/// The proof that packets for VIPs never reach the balancer's own stack.
fn no_tracked(netns: &Netns, vip: fn(Family) -> IpAddr) -> Result<()> {
    // Probes of an agent that is dead are forgotten after two minutes.
    netns.run(Command::new("ping").args(["-c", "1", "127.0.0.1"]))?;
    let tracked = tracked_connections(netns)?;
    ensure!(
        tracked.iter().any(|line| line.contains("=127.0.0.1 ")),
        "nothing is tracked, not even what the stack sends itself: {tracked:?}"
    );
    for family in Family::BOTH {
        let vip = format!("={} ", vip(family));
        let vips: Vec<_> = tracked.iter().filter(|line| line.contains(&vip)).collect();
        ensure!(vips.is_empty(), "tracked: {vips:?}");
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "whoever drives this side reads it")]
fn say(line: &str) {
    println!("{line}");
}

fn end_of_input() -> Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
