//! A LAN without any route to the balancer: neighbours find the VIPs by ARP and neighbour discovery.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use etherparse::{PacketBuilder, VlanId};
use lb_tests::{
    balancer::{Balancer, Configuration, PATIENCE},
    clients, is_root,
    netns::{Folder, Netns, Process, until},
    raw::{self, Wire},
    servers::{ECHO, HTTP},
    stage::{self, Servers, Stage, Way},
    topology::{Family, Host, Shape, Topology, VIP4, VIP6},
};

/// Two backends, and a host that has the VIPs' networks on link.
struct Lan {
    balancer: Balancer,
    configuration: Configuration,
    client: Host,
    topology: Topology,
    folder: Folder,
    _servers: Vec<Servers>,
}

/// Where a VIP is, as the balancer's status has it.
#[derive(PartialEq, Eq, Debug)]
struct Announced {
    state: String,
    /// MAC of the host that has it, or says so.
    other: Option<String>,
}

impl Lan {
    /// Everything but a running agent.
    fn prepare() -> Result<Self> {
        let topology = Topology::build(Shape::OneArm, 2)?;
        let client = topology.neighbour("n7", 7)?;
        let folder = Folder::create("lan")?;
        let servers = topology
            .backends
            .iter()
            .map(|host| Servers::start(host, &folder, Way::Nat))
            .collect::<Result<_>>()?;
        let configuration = Configuration {
            announce: true,
            ..stage::configuration(Way::Nat, Shape::OneArm, &topology.backends)
        };
        let balancer = Balancer::prepare(&topology.balancer.netns)?;
        balancer.write(&configuration.to_string())?;
        Ok(Self {
            balancer,
            configuration,
            client,
            topology,
            folder,
            _servers: servers,
        })
    }

    fn start(&mut self) -> Result<()> {
        self.balancer.run()?;
        self.balancer.wait_for(&self.configuration)
    }

    /// Starts the agent and waits until both VIPs are announced.
    fn announce(&mut self) -> Result<()> {
        self.start()?;
        [VIP4.into(), VIP6.into()]
            .into_iter()
            .try_for_each(|vip| self.wait_for(vip, "announced", None))
    }

    fn announced(&self, vip: IpAddr) -> Result<Announced> {
        let status = self.balancer.json(&["status"])?;
        let rows = status["announcements"].as_array().context("a list")?;
        let row = rows
            .iter()
            .find(|row| row["address"] == vip.to_string() && row["interface"] == "eth0")
            .with_context(|| format!("no {vip} in {status}"))?;
        let other = [&row["with"], &row["claimedBy"]];
        Ok(Announced {
            state: row["state"].as_str().context("state")?.to_owned(),
            other: other.iter().find_map(|mac| mac.as_str()).map(str::to_owned),
        })
    }

    fn wait_for(&self, vip: IpAddr, state: &str, other: Option<&str>) -> Result<()> {
        let wanted = Announced {
            state: state.to_owned(),
            other: other.map(str::to_owned),
        };
        until(PATIENCE, || {
            let found = self.announced(vip)?;
            ensure!(found == wanted, "{vip}: {found:?}, not {wanted:?}");
            Ok(())
        })
        .with_context(|| self.balancer.log())
    }

    /// The client gets its pages, both families.
    fn fetch(&self) -> Result<()> {
        for family in Family::BOTH {
            let vip = SocketAddr::new(family.vip(), HTTP);
            clients::curl(&self.client.netns, &[&format!("http://{vip}/")])?;
        }
        Ok(())
    }

    /// Makes the client forget whom it knows.
    fn forget(&self) -> Result<()> {
        self.client.netns.ip(["neigh flush all"])
    }

    /// Makes the client believe that the VIPs are at a MAC of no one's.
    fn mislead(&self) -> Result<()> {
        self.client.netns.ip([
            &*format!("neigh replace {VIP4} lladdr {NOBODY} dev eth0 nud stale"),
            &*format!("neigh replace {VIP6} lladdr {NOBODY} dev eth0 nud stale"),
        ])
    }

    /// The MAC at which the client believes a VIP.
    fn believed(&self, vip: IpAddr) -> Result<String> {
        let vip = vip.to_string();
        let mut ip = Command::new("ip");
        let shown = self
            .client
            .netns
            .run(ip.args(["neigh", "show", &vip, "dev", "eth0"]))?;
        let mut words = shown
            .split_whitespace()
            .skip_while(|word| *word != "lladdr");
        words.nth(1).map(str::to_owned).context(shown.clone())
    }

    /// Waits until the client believes that both VIPs are at `mac`.
    fn wait_until_believed(&self, mac: &str) -> Result<()> {
        until(PATIENCE, || {
            for vip in [VIP4.into(), VIP6.into()] {
                let believed = self.believed(vip)?;
                ensure!(believed == mac, "{vip} at {believed}, not at {mac}");
            }
            Ok(())
        })
        .with_context(|| self.balancer.log())
    }
}

/// A MAC that nobody has.
const NOBODY: &str = "02:00:00:00:00:99";
/// Where neighbours ask for [`VIP6`].
const GROUP: &str = "3333ff000010";

/// Of a namespace's `eth0`.
fn mac(netns: &Netns) -> Result<String> {
    raw::mac(netns, "eth0")
}

/// Multicast MACs of a namespace, as the kernel lists them.
fn multicast(netns: &Netns) -> Result<String> {
    netns.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/dev_mcast")?))
}

#[test]
fn a_neighbour_needs_no_route_and_no_living_agent() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut lan = Lan::prepare()?;
    let balancer = lan.topology.balancer.netns.clone();
    let own = mac(&balancer)?;
    let before = multicast(&balancer)?;
    lan.announce()?;
    lan.forget()?;
    lan.fetch()?;
    lan.wait_until_believed(&own)?;
    assert!(multicast(&balancer)?.contains(GROUP));
    let status = lan.balancer.cli(&["status"])?;
    for vip in [VIP4.to_string(), VIP6.to_string()] {
        let shown = |line: &str| line.split_whitespace().eq([&*vip, "eth0", "announced"]);
        assert!(status.lines().any(shown), "no {vip} in\n{status}");
    }

    lan.balancer.kill()?;
    lan.forget()?;
    lan.fetch()?;
    assert!(multicast(&balancer)?.contains(GROUP), "survives the agent");
    // Without an agent the pins tell; the end is that of no agent.
    let offline = lan.balancer.output(&["status"])?;
    let offline = String::from_utf8(offline.stdout)?;
    assert!(offline.contains("announced"), "{offline}");

    // A new agent goes on: never is there nothing in the map, nor a second of asking.
    lan.balancer.run()?;
    lan.forget()?;
    lan.fetch()?;
    lan.wait_for(VIP4.into(), "announced", None)?;
    let asked = metric(&balancer, "millrace_l2_requests_total", VIP4.into())?;
    assert!(asked >= 3, "{asked} counted over all agents");
    assert_eq!(
        metric(&balancer, "millrace_l2_responses_total", VIP4.into())?,
        asked
    );

    lan.balancer.stop()?;
    lan.balancer.cli(&["detach"])?;
    assert_eq!(multicast(&balancer)?, before, "as it was");
    assert!(!lan.balancer.has_pins());
    Ok(())
}

/// What the agent exports of a VIP.
fn metric(balancer: &Netns, name: &str, vip: IpAddr) -> Result<u64> {
    let text = clients::curl(balancer, &["http://127.0.0.1:9470/metrics"])?;
    let start = format!("{name}{{ip=\"{vip}\"");
    let line = text.lines().find(|line| line.starts_with(&start));
    let line = line.with_context(|| format!("no {start} in\n{text}"))?;
    Ok(line.rsplit(' ').next().context("a value")?.parse()?)
}

/// Everything about neighbours that `eth0` of a namespace sees, as tcpdump writes it.
fn listen(netns: &Netns, folder: &Folder) -> Result<(Process, PathBuf)> {
    let heard = folder.file("heard");
    let said = folder.file("tcpdump");
    let mut tcpdump = Command::new("tcpdump");
    tcpdump
        .args([
            "-i",
            "eth0",
            "-n",
            "-l",
            "-v",
            "-Z",
            "root",
            "arp or icmp6 or ip6 proto 0",
        ])
        .stdin(Stdio::null())
        .stdout(File::create(&heard)?)
        .stderr(File::create(&said)?);
    let tcpdump = netns.spawn(&mut tcpdump)?;
    until(PATIENCE, || {
        let said = fs::read_to_string(&said)?;
        ensure!(said.contains("listening on eth0"), "{said}");
        Ok(())
    })?;
    Ok((tcpdump, heard))
}

#[test]
fn neighbours_are_told_where_the_vips_are() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut lan = Lan::prepare()?;
    let own = mac(&lan.topology.balancer.netns)?;
    let (_tcpdump, heard) = listen(&lan.client.netns, &lan.folder)?;
    // What a balancer before this one may have left in everybody's tables.
    lan.mislead()?;
    lan.announce()?;
    lan.wait_until_believed(&own)?;
    until(PATIENCE, || {
        let heard = fs::read_to_string(&heard)?;
        for said in [
            // Has anybody this address?
            format!("Request who-has {VIP4} tell 0.0.0.0"),
            format!("neighbor solicitation, length 24, who has {VIP6}"),
            // It is here.
            format!("Request who-has {VIP4} tell {VIP4}"),
            format!("Reply {VIP4} is-at {own}"),
            format!("tgt is {VIP6}, Flags [override]"),
            // Its questions belong here.
            "multicast listener report v2".to_owned(),
            "[gaddr ff02::1:ff00:10 to_ex".to_owned(),
        ] {
            ensure!(heard.contains(&said), "no {said:?} in\n{heard}");
        }
        Ok(())
    })?;

    // The cable is pulled and put back, perhaps at another port of the switch.
    lan.topology.router.ip(["link set lb down"])?;
    lan.mislead()?;
    lan.topology.router.ip(["link set lb up"])?;
    lan.wait_until_believed(&own)?;

    // A VIP that comes later.
    let later: IpAddr = "192.0.2.20".parse()?;
    let mut service = lan.configuration.services[0].clone();
    service.name = "later".into();
    service.frontends = vec![format!("{later}:{HTTP}/tcp")];
    lan.configuration.services.push(service);
    lan.balancer.configure(&lan.configuration)?;
    lan.wait_for(later, "announced", None)?;
    clients::curl(&lan.client.netns, &[&format!("http://{later}:{HTTP}/")])?;

    // And one that goes: nobody answers for it any more.
    lan.configuration.services.pop();
    lan.balancer.configure(&lan.configuration)?;
    until(PATIENCE, || {
        ensure!(lan.announced(later).is_err(), "{later} is announced");
        Ok(())
    })?;
    lan.forget()?;
    let mut ping = Command::new("ping");
    let ping = lan
        .client
        .netns
        .output(ping.args(["-c", "1", "-W", "1", &later.to_string()]))?;
    assert!(!ping.status.success());
    let mut ip = Command::new("ip");
    let shown = ip.args(["neigh", "show", &later.to_string()]);
    let shown = lan.client.netns.run(shown)?;
    assert!(!shown.contains("lladdr"), "{shown}");
    Ok(())
}

#[test]
fn a_vip_of_another_host_is_reported_and_not_announced() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut lan = Lan::prepare()?;
    let balancer = lan.topology.balancer.netns.clone();
    let rival = lan.topology.neighbour("n8", 8)?;
    let theirs = mac(&rival.netns)?;
    rival.netns.ip([
        &*format!("address add {VIP4}/24 dev eth0"),
        &*format!("address add {VIP6}/64 dev eth0 nodad"),
    ])?;
    lan.start()?;
    for vip in [VIP4.into(), VIP6.into()] {
        lan.wait_for(vip, "conflict", Some(&theirs))?;
        assert_eq!(metric(&balancer, "millrace_address_conflict", vip)?, 1);
    }
    let line = format!("not announced: {theirs} has it");
    let status = lan.balancer.cli(&["status"])?;
    assert!(status.contains(&line), "{status}");
    let log = lan.balancer.log();
    assert!(log.contains("another host has this VIP"), "{log}");
    assert!(!multicast(&balancer)?.contains(GROUP));
    // The client finds who has it.
    lan.forget()?;
    let mut ping = Command::new("ping");
    lan.client
        .netns
        .run(ping.args(["-c", "1", "-W", "5", &VIP4.to_string()]))?;
    assert_eq!(lan.believed(VIP4.into())?, theirs);

    // The other host gives it up.
    rival.netns.ip([
        &*format!("address del {VIP4}/24 dev eth0"),
        &*format!("address del {VIP6}/64 dev eth0"),
    ])?;
    for vip in [VIP4.into(), VIP6.into()] {
        lan.wait_for(vip, "announced", None)?;
        assert_eq!(metric(&balancer, "millrace_address_conflict", vip)?, 0);
    }
    lan.forget()?;
    lan.fetch()?;

    // Who checks before taking an address is told that it is taken (RFC 4862, section 5.4.4).
    rival.netns.sysctl("net.ipv6.conf.eth0.accept_dad", "1")?;
    rival
        .netns
        .ip([&*format!("address add {VIP6}/64 dev eth0")])?;
    until(PATIENCE, || {
        let mut ip = Command::new("ip");
        let shown = ip.args(["address", "show", "dev", "eth0"]);
        let shown = rival.netns.run(shown)?;
        ensure!(shown.contains("dadfailed"), "{shown}");
        Ok(())
    })?;
    // Who takes it without a question is reported, and nothing else changes.
    rival.netns.sysctl("net.ipv4.conf.eth0.arp_notify", "1")?;
    rival.netns.ip([
        &*format!("address add {VIP4}/24 dev eth0"),
        // A new MAC is told to all.
        "link set eth0 address 02:00:00:00:00:08",
    ])?;
    lan.wait_for(VIP4.into(), "announced", Some("02:00:00:00:00:08"))?;
    assert_eq!(
        metric(&balancer, "millrace_address_conflict", VIP4.into())?,
        1
    );
    lan.wait_until_believed(&mac(&balancer)?)?;
    lan.fetch()
}

#[test]
fn a_tagged_question_goes_to_its_backend_without_the_tag() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set(Way::Nat, Shape::TwoArms)?;
    let own = raw::mac_bytes(&mac(&stage.topology.balancer.netns)?)?;
    // The way back is the kernel's, and without a tag.
    let balancer = &stage.topology.balancer.netns;
    balancer.sysctl("net.ipv4.ip_forward", "1")?;
    balancer.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    // The router's end of the wire, by which frames come as a switch's trunk would send them.
    let wire = Wire::open(&stage.topology.router, "lb")?;
    let router = raw::mac_bytes(&raw::mac(&stage.topology.router, "front")?)?;
    let client = &stage.topology.clients[0];
    for family in Family::BOTH {
        let vip = stage.vip(family, ECHO);
        let mut ping = Command::new("ping");
        let to = client.address(family).to_string();
        balancer.run(ping.args(["-c", "1", "-W", "5", &to]))?;
        let socket = client.netns.enter(|| -> Result<UdpSocket> {
            let socket = UdpSocket::bind(client.at(family, 5555))?;
            socket.connect(vip)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })?;
        let builder = PacketBuilder::ethernet2(router, own).single_vlan(VlanId::try_new(7)?);
        let mut frame = Vec::new();
        let builder = match (client.address(family), vip.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
            _ => unreachable!("ends of one family"),
        };
        builder
            .udp(5555, vip.port())
            .write(&mut frame, b"question")?;
        wire.send(&frame)?;
        let mut answer = [0; 64];
        let length = socket
            .recv(&mut answer)
            .with_context(|| stage.balancer.log())?;
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.ends_with(" question"), "{answer}");
    }
    // All by XDP.
    let metrics = clients::curl(
        &stage.topology.balancer.netns,
        &["http://127.0.0.1:9470/metrics"],
    )?;
    assert!(!metrics.contains("reason=\"handed_up\""), "{metrics}");
    Ok(())
}
