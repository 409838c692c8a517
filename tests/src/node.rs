//! A node with pods, as a CNI makes one: a bridge, veths into namespaces, routes, and a rule that masquerades what pods
//! send out. Two clients outside, each on an uplink of its own. The packet path is filled by the planner, not by an agent.
//!
//! ```text
//!  client 1 ── 198.51.100.0/24, 2001:db8:a::/64 ── eth0 ┐        ┌ pod 1  10.244.1.11, fd00:244::11
//!                                                      node ── cni0
//!  client 2 ── 203.0.113.0/24, 2001:db8:b::/64 ─── eth1 ┘        └ pod 2  10.244.1.12, fd00:244::12
//! ```
//! The other server of the VIPs, kube-proxy in a cluster, is a rule that sends them to pod 2.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result};
use lb_common::abi::{Mode, Settings};
use lb_userspace::{
    attach::{self, Installation, Options, TcChoice},
    config::{Algorithm, Frontend, Protocol, ServiceName},
    dataplane::Dataplane as _,
    desired::{Backend, Desired, Group, GroupFrontend, GroupKey, Service},
    plan::{Limits, Planner},
};

use crate::{
    kernel,
    netns::{Folder, Netns, unique_name},
    pass::PassProgram,
    servers::sibling,
};

/// VIPs of both families; the second of each is another frontend of the same services.
pub const VIPS: [[&str; 2]; 2] = [
    ["192.0.2.10", "192.0.2.11"],
    ["2001:db8::10", "2001:db8::11"],
];
/// The frontends' port, and the one that pods listen on.
pub const PORT: u16 = 80;
pub const TARGET: u16 = 8080;

const LIMITS: Limits = Limits {
    frontends: 64,
    backends: 256,
    flows: 16_384,
};

/// Where a backend is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Here,
    /// On another node, for all that the packet path knows.
    Elsewhere,
}

#[derive(Debug)]
pub struct Node {
    pub netns: Netns,
    pub clients: [Netns; 2],
    pub pods: [Netns; 2],
    planner: Planner,
    pub installation: Option<Installation>,
    pub pins: PathBuf,
    pub run: Folder,
    _ports: Vec<PassProgram>,
}

/// Addresses of the clients, by family.
pub const CLIENTS: [[&str; 2]; 2] = [
    ["198.51.100.7", "203.0.113.7"],
    ["2001:db8:a::7", "2001:db8:b::7"],
];
/// Addresses of the pods, by family.
pub const PODS: [[&str; 2]; 2] = [
    ["10.244.1.11", "10.244.1.12"],
    ["fd00:244::11", "fd00:244::12"],
];

const RULES: &str = "
table inet cni {
  chain post {
    type nat hook postrouting priority 100;
    ip saddr 10.244.1.0/24 ip daddr != 10.244.0.0/16 masquerade
    ip6 saddr fd00:244::/64 ip6 daddr != fd00:244::/64 masquerade
  }
}
table inet proxy {
  chain pre {
    type nat hook prerouting priority -100;
    ip daddr 192.0.2.0/24 meta l4proto { tcp, udp } th dport 80 dnat ip to 10.244.1.12:8080
    ip6 daddr 2001:db8::/64 meta l4proto { tcp, udp } th dport 80 dnat ip6 to [fd00:244::12]:8080
  }
}
";

impl Node {
    /// The network, and the programs on both uplinks.
    pub fn build(tc: TcChoice) -> Result<Self> {
        let netns = Netns::create("node")?;
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        for scope in ["all", "default"] {
            netns.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "1")?;
        }
        netns.ip([
            "link add cni0 type bridge",
            "link set cni0 up",
            "address add 10.244.1.1/24 dev cni0",
            "address add fd00:244::1/64 dev cni0 nodad",
        ])?;
        let mut ports = Vec::new();
        let mut client = |number: usize, v4: &str, v6: &str| {
            let client = Netns::create("client")?;
            let (device, peer) = (format!("eth{number}"), client.name().to_owned());
            netns.ip([&*format!(
                "link add {device} type veth peer name eth0 netns {peer}"
            )])?;
            // Whole frames, with whole checksums, on this wire.
            netns.like_a_wire(&device)?;
            client.like_a_wire("eth0")?;
            netns.ip([
                &*format!("address add {v4}.1/24 dev {device}"),
                &*format!("address add {v6}::1/64 dev {device} nodad"),
                &*format!("link set {device} up"),
            ])?;
            client.ip([
                &*format!("address add {v4}.7/24 dev eth0"),
                &*format!("address add {v6}::7/64 dev eth0 nodad"),
                "link set eth0 up",
                &*format!("route add default via {v4}.1"),
                &*format!("route add default via {v6}::1"),
            ])?;
            ports.push(PassProgram::attach(&client, "eth0")?);
            anyhow::Ok(client)
        };
        let clients = [
            client(0, "198.51.100", "2001:db8:a")?,
            client(1, "203.0.113", "2001:db8:b")?,
        ];
        let pod = |number: usize| {
            let pod = Netns::create("pod")?;
            let (port, peer, last) = (format!("pod{number}"), pod.name(), 11 + number);
            netns.ip([
                &*format!("link add {port} type veth peer name eth0 netns {peer}"),
                &*format!("link set {port} master cni0"),
                &*format!("link set {port} up"),
            ])?;
            pod.ip([
                &*format!("address add 10.244.1.{last}/24 dev eth0"),
                &*format!("address add fd00:244::{last}/64 dev eth0 nodad"),
                "link set eth0 up",
                "route add default via 10.244.1.1",
                "route add default via fd00:244::1",
            ])?;
            anyhow::Ok(pod)
        };
        let pods = [pod(0)?, pod(1)?];
        let run = Folder::create("node")?;
        let rules = run.file("rules.nft");
        fs::write(&rules, RULES)?;
        netns.run(Command::new("nft").arg("-f").arg(&rules))?;
        let pins = PathBuf::from("/sys/fs/bpf").join(unique_name("node"));
        let options = Options {
            pin_root: pins.clone(),
            run_folder: run.path().join("run"),
            limits: LIMITS,
            tc,
            ..Options::default()
        };
        let installation = netns.enter(|| {
            let mut installation = Installation::open(&options)?;
            for uplink in ["eth0", "eth1"] {
                installation.attach(uplink, attach::Mode::Native)?;
            }
            anyhow::Ok(installation)
        })?;
        let mut node = Self {
            netns,
            clients,
            pods,
            planner: Planner::new(LIMITS, [1, 2]),
            installation: Some(installation),
            pins,
            run,
            _ports: ports,
        };
        let settings = Settings {
            hz: attach::Clock::load()?.rate()?,
            ..kernel::settings()
        };
        let mut ops = Vec::new();
        node.planner.settings(settings, &mut ops);
        node.apply(&ops)?;
        Ok(node)
    }

    fn apply(&self, ops: &[lb_userspace::plan::Op]) -> Result<()> {
        let installation = self.installation.as_ref().context("attached")?;
        installation.dataplane()?.apply(ops)?;
        Ok(())
    }

    /// Serves the VIPs of both families by these pods, over TCP and UDP; with the chain for forgotten replies.
    pub fn serve(&mut self, pods: [Option<Place>; 2]) -> Result<()> {
        let mut services = BTreeMap::new();
        let mut answering = BTreeSet::new();
        for (family, vips) in VIPS.into_iter().enumerate() {
            let mut backends = Vec::new();
            for (pod, place) in pods.into_iter().enumerate() {
                let Some(place) = place else { continue };
                let address: IpAddr = PODS[family][pod].parse()?;
                let socket = SocketAddr::new(address, TARGET);
                if place == Place::Here {
                    answering.extend([(socket, 6), (socket, 17)]);
                }
                backends.push(Backend {
                    socket,
                    address,
                    port: TARGET,
                    mode: match place {
                        Place::Here => Mode::Local,
                        Place::Elsewhere => Mode::Pass,
                    },
                    weight: 100,
                    drain: false,
                    down: false,
                    away: false,
                    node_address: None,
                    source: None,
                    path: None,
                    origin: None,
                });
            }
            let mut frontends = Vec::new();
            for vip in vips {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let frontend = Frontend {
                        address: vip.parse()?,
                        port: PORT,
                        protocol,
                    };
                    frontends.push(GroupFrontend {
                        frontend,
                        owns_address: false,
                        rules: None,
                    });
                }
            }
            let group = Group {
                key: GroupKey::default(),
                frontends,
                backends,
                source_ranges: None,
                drop: false,
            };
            let service = Service {
                mode: Mode::Local,
                is_tunnel_end: false,
                affinity: None,
                algorithm: Algorithm::Rendezvous,
                groups: vec![group],
                left_out: Vec::new(),
            };
            let name: ServiceName = format!("web{family}").parse().ok().context("a name")?;
            services.insert(name, service);
        }
        let mut ops = Vec::new();
        self.planner.all(&Desired { services }, &mut ops)?;
        self.apply(&ops)?;
        self.netns
            .enter(|| attach::replies::write(&mut attach::Nft::default(), &answering))?;
        Ok(())
    }

    /// Packets that went to backends of this node and back, of all frontends.
    pub fn forwarded(&self) -> Result<[u64; 2]> {
        let installation = self.installation.as_ref().context("attached")?;
        let all = installation.counters()?.frontends(0..64)?;
        Ok(all.iter().fold([0; 2], |[there, back], count| {
            [there + count.packets, back + count.replies]
        }))
    }

    /// Connections that the node tracks, a line each.
    pub fn tracked(&self) -> Result<Vec<String>> {
        crate::stage::tracked_connections(&self.netns)
    }

    /// Has the node forget all connections.
    pub fn forget(&self) -> Result<()> {
        for family in ["ipv4", "ipv6"] {
            // Without one entry to delete it fails.
            self.netns
                .output(Command::new("conntrack").args(["-D", "-f", family]))?;
        }
        Ok(())
    }

    /// The program, on these pins and without an agent.
    pub fn millrace(&self) -> Result<Command> {
        let mut command = Command::new(sibling("millrace")?);
        command.env("MILLRACE_PIN_ROOT", &self.pins);
        command.env("MILLRACE_SOCKET", self.run.file("none.sock"));
        Ok(command)
    }

    /// Takes everything of ours away, as `millrace detach` does.
    pub fn detach(&mut self) -> Result<()> {
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
