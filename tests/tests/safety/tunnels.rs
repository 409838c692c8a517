//! `millrace doctor` between two nodes, by real sockets and the programs on both: what it says of a way that is there, of one
//! that is closed, and of one that carries less than the nodes send.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use lb_common::{
    abi::{Mode, Reason, Settings, Tunnel},
    bytes::Be16,
};
use lb_tests::{
    is_root, kernel,
    netns::{Folder, Netns, unique_name},
    pass::PassProgram,
    servers::sibling,
    topology::{Family, Host, Shape, Topology},
    world::TUNNEL_PORT,
};
use lb_userspace::{
    attach::{self, Clock, Installation, Options},
    config::{Algorithm, Frontend, Protocol, ServiceName},
    dataplane::Dataplane as _,
    desired::{Backend, Desired, Group, GroupFrontend, GroupKey, Service},
    doctor::{Line, State},
    plan::{Limits, Planner},
};

use super::doctor::line;

const LIMITS: Limits = Limits {
    frontends: 64,
    backends: 256,
    flows: 16_384,
};

/// Of the nodes' uplinks, in bytes.
const MTU: u32 = 1500;

/// Nodes that nobody has heard of: 198.18.0.1 and on.
const SILENT: u8 = 50;

/// The network's two hosts behind a router, as nodes of a cluster.
struct Nodes {
    first: Node,
    second: Node,
    topology: Topology,
    _ports: [PassProgram; 2],
}

/// A node with an end of the tunnels, but no agent.
struct Node {
    netns: Netns,
    installation: Option<Installation>,
    pins: PathBuf,
    run: Folder,
}

impl Nodes {
    /// Each is sent packets by the other, over IPv4. `silent`: nodes besides these two.
    fn build(silent: u8) -> Result<Self> {
        let topology = Topology::build(Shape::OneArm, 0)?;
        let ports = ["c1", "c2"].map(|port| PassProgram::attach(&topology.router, port));
        let [one, other] = ports;
        let [first, second] = &*topology.clients else {
            anyhow::bail!("two hosts");
        };
        Ok(Self {
            first: Node::set(first, second, silent)?,
            second: Node::set(second, first, silent)?,
            topology,
            _ports: [one?, other?],
        })
    }

    /// The other node's line, by the address of a family.
    fn to_second<'a>(&self, lines: &'a [Line], family: Family) -> Result<&'a Line> {
        let address = self.topology.clients[1].address(family);
        line(lines, &format!("tunnel to {address}"))
    }

    /// What the router drops of what it forwards, instead of what it dropped before.
    fn drop_between(&self, what: &str) -> Result<()> {
        let router = &self.topology.router;
        let table = "table inet between";
        let hook = "type filter hook forward priority 0;";
        let rules = format!(
            "{table}\ndelete {table}\n{table} {{\nchain forward {{\n{hook}\n{what}\n}}\n}}"
        );
        router.run(Command::new("nft").arg(rules)).map(drop)
    }
}

impl Node {
    fn set(own: &Host, other: &Host, silent: u8) -> Result<Self> {
        let run = Folder::create("tunnels")?;
        let pins = PathBuf::from("/sys/fs/bpf").join(unique_name("tunnels"));
        let options = Options {
            pin_root: pins.clone(),
            run_folder: run.path().join("run"),
            limits: LIMITS,
            ..Options::default()
        };
        let installation = own.netns.enter(|| {
            let mut installation = Installation::open(&options)?;
            installation.attach("eth0", attach::Mode::Native)?;
            anyhow::Ok(installation)
        })?;
        let mut planner = Planner::new(LIMITS, [1, 2]);
        let settings = Settings {
            hz: Clock::load()?.rate()?,
            tunnel: Tunnel::new(Be16::new(TUNNEL_PORT), 0).0,
            tag_ids: Tunnel::accepted(&[0]),
            mtu: MTU,
            ..kernel::settings()
        };
        let mut ops = Vec::new();
        planner.settings(settings, &mut ops);
        let services = [
            ("tunnel", end(own, other, silent)),
            ("web", web(own, other)?),
        ];
        let services = services.into_iter().map(|(name, service)| {
            let name: ServiceName = name.parse().ok().context("a name")?;
            Ok((name, service))
        });
        let services = services.collect::<Result<BTreeMap<_, _>>>()?;
        planner.all(&Desired { services }, &mut ops)?;
        installation.dataplane()?.apply(&ops)?;
        Ok(Self {
            netns: own.netns.clone(),
            installation: Some(installation),
            pins,
            run,
        })
    }

    /// What `millrace doctor` says here, and how long it takes.
    fn doctor(&self) -> Result<(Vec<Line>, Duration)> {
        let mut command = Command::new(sibling("millrace")?);
        command.args(["doctor", "--output=json", "--interface=eth0"]);
        command.env("MILLRACE_PIN_ROOT", &self.pins);
        command.env("MILLRACE_RUN_FOLDER", self.run.path().join("run"));
        let begun = Instant::now();
        let output = self.netns.output(&mut command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let lines = serde_json::from_slice(&output.stdout).with_context(|| said.into_owned())?;
        Ok((lines, begun.elapsed()))
    }

    /// Packets that the program counted for a reason.
    fn counted(&self, reason: Reason) -> Result<u64> {
        let installation = self.installation.as_ref().context("attached")?;
        let all = installation.counters()?.reasons(0..LIMITS.frontends)?;
        Ok(all.iter().map(|counts| counts[reason as usize]).sum())
    }

    /// Takes everything of ours away.
    fn detach(&mut self) -> Result<()> {
        self.installation = None;
        let run = self.run.path().join("run");
        self.netns
            .enter(|| attach::detach(&self.pins, &run, None))?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.pins));
    }
}

/// A node's end of the tunnels.
fn end(own: &Host, other: &Host, silent: u8) -> Service {
    let both = |host: &Host| Family::BOTH.map(|family| host.address(family));
    let frontend = |address: IpAddr| GroupFrontend {
        frontend: Frontend {
            address,
            port: TUNNEL_PORT,
            protocol: Protocol::Udp,
        },
        owns_address: false,
        rules: None,
    };
    let silent = (1..=silent).map(|last| IpAddr::from([198, 18, 0, last]));
    let others = both(other).into_iter().chain(silent);
    let group = Group {
        key: GroupKey {
            restricted: true,
            ..GroupKey::default()
        },
        frontends: both(own).map(frontend).to_vec(),
        backends: Vec::new(),
        source_ranges: Some(others.map(IpNet::from).collect()),
        drop: false,
    };
    Service {
        is_tunnel_end: true,
        ..service(group)
    }
}

/// A service with a pod on the other node, which is reached over IPv4.
fn web(own: &Host, other: &Host) -> Result<Service> {
    let address = IpAddr::from([10, 244, 2, 11]);
    let backend = Backend {
        socket: SocketAddr::new(address, 8080),
        address,
        port: 8080,
        mode: Mode::Dsr,
        weight: 100,
        drain: false,
        down: false,
        away: false,
        node_address: Some(other.address(Family::V4)),
        source: Some(own.address(Family::V4)),
        path: None,
        origin: None,
    };
    let frontend = GroupFrontend {
        frontend: Frontend {
            address: "192.0.2.10".parse()?,
            port: 80,
            protocol: Protocol::Tcp,
        },
        owns_address: true,
        rules: None,
    };
    Ok(service(Group {
        key: GroupKey::default(),
        frontends: vec![frontend],
        backends: vec![backend],
        source_ranges: None,
        drop: false,
    }))
}

fn service(group: Group) -> Service {
    Service {
        mode: Mode::Dsr,
        is_tunnel_end: false,
        affinity: None,
        algorithm: Algorithm::Rendezvous,
        groups: vec![group],
        left_out: Vec::new(),
    }
}

#[test]
fn doctor_tries_the_way_to_another_node() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut nodes = Nodes::build(0)?;
    let (lines, _) = nodes.first.doctor()?;
    for family in Family::BOTH {
        let line = nodes.to_second(&lines, family)?;
        ensure!(line.state == State::Ok, "{line:?}");
        ensure!(line.found.starts_with("answered in "), "{line:?}");
    }
    let room = line(&lines, "tunnel room")?;
    ensure!(room.state == State::Limit, "{room:?}");
    ensure!(room.found.contains("up to 1500 bytes"), "{room:?}");
    // By the program: one question of each family, and one of full size.
    let answered = nodes.second.counted(Reason::TunnelProbe)?;
    ensure!(answered == 4, "{answered} questions");
    ensure!(nodes.first.counted(Reason::TunnelProbe)? == 0);
    for node in [&nodes.first, &nodes.second] {
        ensure!(node.counted(Reason::TunnelMalformed)? == 0);
    }

    // The other node's stack says that nobody takes them: which is bad for IPv4 alone, as nothing is sent over IPv6.
    nodes.second.detach()?;
    let (lines, _) = nodes.first.doctor()?;
    for (family, state) in [(Family::V4, State::Unfit), (Family::V6, State::Ok)] {
        let line = nodes.to_second(&lines, family)?;
        ensure!(line.state == state, "{line:?}");
    }
    ensure!(lines.iter().all(|line| line.check != "tunnel room"));

    // No tunnels, no lines.
    nodes.first.detach()?;
    let (lines, _) = nodes.first.doctor()?;
    let tunnels = |line: &&Line| line.check.starts_with("tunnel");
    ensure!(lines.iter().find(tunnels).is_none(), "{lines:#?}");
    Ok(())
}

#[test]
fn doctor_says_which_port_is_closed_between_nodes() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let nodes = Nodes::build(SILENT)?;
    nodes.drop_between(&format!("udp dport {TUNNEL_PORT} drop"))?;
    let (lines, took) = nodes.first.doctor()?;
    let [own, other] = [0, 1].map(|at| nodes.topology.clients[at].address(Family::V4));
    let line = nodes.to_second(&lines, Family::V4)?;
    ensure!(line.state == State::Unfit, "{line:?}");
    let open = format!("open UDP {TUNNEL_PORT} between {own} and {other}");
    ensure!(line.fix.as_deref() == Some(&*open), "{line:?}");
    let line = nodes.to_second(&lines, Family::V6)?;
    ensure!(line.state == State::Limit, "{line:?}");
    let silent = lines
        .iter()
        .filter(|line| line.check.starts_with("tunnel to 198.18.0."));
    let silent: Vec<_> = silent.map(|line| line.state).collect();
    ensure!(silent == [State::Limit; SILENT as usize], "{silent:?}");
    println!("{} silent nodes: {took:?}", SILENT + 1);
    // One after the other they would take three quarters of a minute.
    ensure!(took < Duration::from_secs(10), "{took:?}");
    Ok(())
}

#[test]
fn doctor_measures_what_the_way_between_nodes_carries() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let nodes = Nodes::build(0)?;
    let room = |carries: &str| -> Result<()> {
        let (lines, took) = nodes.first.doctor()?;
        for family in Family::BOTH {
            let line = nodes.to_second(&lines, family)?;
            ensure!(line.state == State::Ok, "{line:?}");
        }
        let room = line(&lines, "tunnel room")?;
        println!("{}: {took:?}", room.found);
        let begin = format!("packets of up to {carries} bytes come through to ");
        ensure!(room.found.starts_with(&begin), "{room:?}");
        ensure!(room.state == State::Unfit, "{room:?}");
        ensure!(room.found.contains("uplinks send 1500"), "{room:?}");
        let fix = room.fix.as_deref().context("a fix")?;
        ensure!(fix.contains(carries) && fix.contains("1588"), "{room:?}");
        Ok(())
    };
    // A router that says so, and one that does not.
    let router = &nodes.topology.router;
    router.ip(["link set c2 mtu 1400"])?;
    room("1400")?;
    router.ip(["link set c2 mtu 1500"])?;
    nodes.drop_between("meta length > 1337 drop")?;
    room("1337")
}
