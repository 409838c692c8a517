//! One LAN segment: the VIPs are addresses of the network that balancer, backends and client share, so that nobody has a
//! route to them. Whoever wants one asks by ARP or neighbour discovery.
//!
//! The segment is what the cable carries, or a VLAN on it. virtio-net filters multicast, which veth does not: a question
//! for an address of IPv6 reaches the balancer only while the NIC is told of the address' group. That it is told without
//! an agent, too, is shown here.
//!
//! Each side does one thing for a line on its standard input and says `done` behind it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Lines, StdinLock, stdin},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    BACKENDS, Link, PATIENCE, Requests, Score, backends_elsewhere, no_tracked, runs_natively, say,
    serve,
};
use crate::{
    balancer::{Balancer, Configuration},
    clients::{self, Answers, Held},
    netns::{Folder, Netns, Process, until},
    servers::{ECHO, HTTP},
    stage::{self, Way},
    topology::{self, Family, Host, Shape, VIP4, VIP6},
};

const LAN4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const LAN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
/// Where neighbours ask for [`LAN6`] (RFC 4291, section 2.7.1; RFC 2464, section 7), as the kernel lists it.
const GROUP: &str = "3333ff000100";

/// Connections of each family that stay open.
const HELD: usize = 50;

fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => LAN4.into(),
        Family::V6 => LAN6.into(),
    }
}

fn configuration(netns: &Netns, link: Link) -> Result<Configuration> {
    let backends = backends_elsewhere(netns)?;
    let mut configuration = stage::configuration(Way::Nat, Shape::OneArm, &backends);
    configuration.interfaces = vec![link.uplink().to_owned()];
    configuration.announce = true;
    let frontends = configuration.services.iter_mut();
    for frontend in frontends.flat_map(|service| &mut service.frontends) {
        *frontend = frontend
            .replace(&VIP4.to_string(), &LAN4.to_string())
            .replace(&VIP6.to_string(), &LAN6.to_string());
    }
    Ok(configuration)
}

/// The balancer's side. A first line starts the agent, a second one kills it, a third one detaches.
pub fn balance(link: Link) -> Result<()> {
    let netns = Netns::create("lb")?;
    link.plug(&netns)?;
    let device = link.device();
    netns.ip([
        &*format!("address add 10.0.0.2/24 dev {device}"),
        &*format!("address add fd00::2/64 dev {device} nodad"),
    ])?;
    let before = multicast(&netns)?;
    let folder = Folder::create("far")?;
    stage::watch_connections(&netns, &folder)?;
    let (tcpdump, heard) = listen(&netns, &device, &folder)?;
    let mut lines = stdin().lines();
    say("done");

    next(&mut lines)?;
    until(PATIENCE, || {
        let heard = fs::read_to_string(&heard)?;
        ensure!(heard.contains(&format!("who-has {LAN4} ")), "{heard}");
        Ok(())
    })?;
    // It was asked before the other one.
    let all = fs::read_to_string(&heard)?;
    ensure!(
        !all.contains(&format!("who has {LAN6}")),
        "this NIC does not filter multicast: {all}"
    );
    drop(tcpdump);
    let configuration = configuration(&netns, link)?;
    let mut balancer = Balancer::start(&netns, &configuration)?;
    for family in Family::BOTH {
        announced(&balancer, vip(family))?;
    }
    runs_natively(&netns, link.uplink())?;
    takes_one_group(&netns)?;
    say("done");

    next(&mut lines)?;
    balancer.kill()?;
    takes_one_group(&netns)?;
    say("done");

    next(&mut lines)?;
    runs_natively(&netns, link.uplink())?;
    takes_one_group(&netns)?;
    no_tracked(&netns, vip)?;
    balancer.cli(&["detach"])?;
    let after = multicast(&netns)?;
    ensure!(after == before, "multicast was\n{before}and is\n{after}");
    say("done");
    Ok(())
}

fn next(lines: &mut Lines<StdinLock<'_>>) -> Result<String> {
    Ok(lines.next().context("end of input")??)
}

fn announced(balancer: &Balancer, vip: IpAddr) -> Result<()> {
    until(PATIENCE, || {
        let status = balancer.json(&["status"])?;
        let rows = status["announcements"].as_array().context("a list")?;
        let is = |row: &&serde_json::Value| {
            row["address"] == vip.to_string() && row["state"] == "announced"
        };
        ensure!(rows.iter().any(|row| is(&row)), "{vip}: {rows:?}");
        Ok(())
    })
    .with_context(|| balancer.log())
}

/// The NIC is told of the VIP's group, and filters all others.
fn takes_one_group(netns: &Netns) -> Result<()> {
    let groups = multicast(netns)?;
    ensure!(groups.contains(GROUP), "no {GROUP} in\n{groups}");
    // `ip netns exec` mounts the namespace's own /sys, whose flags hide nothing, unlike netlink's.
    let mut ip = Command::new("ip");
    ip.args(["netns", "exec", netns.name()]);
    ip.args(["cat", "/sys/class/net/eth0/flags"]);
    let flags = crate::netns::run(&mut ip)?;
    let bits = flags.trim().trim_start_matches("0x");
    let bits = u32::from_str_radix(bits, 16).context(flags.clone())?;
    let everything = libc::IFF_PROMISC | libc::IFF_ALLMULTI;
    ensure!(bits & everything as u32 == 0, "flags {flags}");
    Ok(())
}

/// Multicast MACs of `eth0`, as the kernel lists them.
fn multicast(netns: &Netns) -> Result<String> {
    let all = netns.enter(|| fs::read_to_string("/proc/thread-self/net/dev_mcast"))?;
    let own = all.lines().filter(|line| line.contains(" eth0 "));
    Ok(own.collect::<Vec<_>>().join("\n"))
}

/// What a device takes off the wire about neighbours, as tcpdump writes it; the filter of the NIC stays as it is.
fn listen(netns: &Netns, device: &str, folder: &Folder) -> Result<(Process, PathBuf)> {
    let heard = folder.file("heard");
    let said = folder.file("tcpdump");
    let mut tcpdump = Command::new("tcpdump");
    tcpdump
        .args(["-i", device, "--no-promiscuous-mode", "-n", "-l"])
        .args(["-Z", "root", "arp or icmp6"])
        .stdin(Stdio::null())
        .stdout(File::create(&heard)?)
        .stderr(File::create(&said)?);
    let tcpdump = netns.spawn(&mut tcpdump)?;
    until(PATIENCE, || {
        let said = fs::read_to_string(&said)?;
        ensure!(said.contains(&format!("listening on {device}")), "{said}");
        Ok(())
    })?;
    Ok((tcpdump, heard))
}

/// The segment without its balancer. Lines: `ask` where nobody answers yet, `requests`, and `busy`, which goes on until
/// the next line.
pub fn surround(link: Link) -> Result<()> {
    let router = topology::router()?;
    link.plug(&router)?;
    router.ip([&*format!("link set {} master lan", link.device())])?;
    let client = topology::on_lan(&router, "c1", 7)?;
    let folder = Folder::create("far")?;
    let mut running = Vec::new();
    for number in 1..=BACKENDS {
        let host = topology::backend(&router, number)?;
        let servers = serve(&host, &folder)?;
        running.push((host, servers));
    }
    say("done");
    let mut lines = stdin().lines();
    while let Some(line) = lines.next() {
        match &*line? {
            "ask" => ask(&client)?,
            "requests" => {
                client.netns.ip(["neigh flush all"])?;
                let requests = Requests {
                    way: Way::Nat,
                    client: &client,
                    vip,
                };
                requests.all();
            }
            "busy" => busy(&client, &mut lines)?,
            line => bail!("no line {line}: ask, requests or busy"),
        }
        say("done");
    }
    Ok(())
}

/// IPv6 first: its question would be there when the other one is.
fn ask(client: &Host) -> Result<()> {
    for family in [Family::V6, Family::V4] {
        let vip = vip(family).to_string();
        let mut ping = Command::new("ping");
        let ping = ping.args(["-c", "1", "-W", "1", &vip]);
        let answered = client.netns.output(ping)?.status.success();
        ensure!(!answered, "somebody has {vip}");
    }
    Ok(())
}

/// Requests all the time, and connections that stay open, until a line comes.
fn busy(client: &Host, lines: &mut Lines<StdinLock<'_>>) -> Result<()> {
    let mut score = Score::default();
    let stop = AtomicBool::new(false);
    let mut held = Vec::new();
    for family in Family::BOTH {
        let echo = SocketAddr::new(vip(family), ECHO);
        held.push((family, Held::open(&client.netns, echo, HELD)?));
    }
    say("busy");
    let line = thread::scope(|scope| {
        let work: Vec<_> = held
            .into_iter()
            .map(|(family, held)| {
                let (stop, http) = (&stop, SocketAddr::new(vip(family), HTTP));
                let wanted = move || !stop.load(Ordering::Relaxed);
                let answers =
                    scope.spawn(move || clients::http_while(&client.netns, http, 1, wanted));
                let trips = scope.spawn(move || round_trips(held, wanted));
                (family, answers, trips)
            })
            .collect();
        let line = next(lines);
        stop.store(true, Ordering::Relaxed);
        for (family, answers, trips) in work {
            let answers = answers.join().expect("clients do not panic");
            let trips = trips.join().expect("clients do not panic");
            let name = |what: &str| format!("{family:?}::{what}").to_lowercase();
            score.note(&name("no_request_fails"), unfailing(&answers));
            score.note(&name("no_connection_is_lost"), trips);
        }
        line
    });
    score.end();
    line.map(drop)
}

fn unfailing(answers: &Answers) -> Result<()> {
    say(&format!("{} requests", answers.answered()));
    ensure!(
        answers.answered() > 0 && answers.failed() == 0,
        "{answers:?}"
    );
    Ok(())
}

/// One after the other, and one when it is over.
fn round_trips(mut held: Held, wanted: impl Fn() -> bool) -> Result<()> {
    let mut broken: BTreeMap<String, usize> = BTreeMap::new();
    let mut trips = 0;
    let mut last = false;
    while !last {
        last = !wanted();
        broken.extend(held.round_trip());
        trips += 1;
        clients::pause();
    }
    say(&format!(
        "{trips} round trips on {} connections",
        held.len()
    ));
    ensure!(broken.is_empty() && held.len() == HELD, "{broken:?}");
    Ok(())
}
