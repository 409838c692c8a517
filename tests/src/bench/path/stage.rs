//! Hosts in a row, a veth between each two: a generator, the nodes, and a sink in the place of the backends.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{
    abi::Mode,
    bytes::{Addr, Mac},
};
use lb_userspace::{attach::Clock, dataplane::Dataplane as _};

use crate::{
    bench::{
        contents::{self, Kind as Service},
        established,
        frames::{self, Kind},
        kernel::{self, Cell},
        machine,
    },
    director,
    kernel::Kernel,
    netns::Netns,
};

/// The processor that everything runs on.
const CPU: usize = 0;
/// Time between two looks at the sink's counter, and time without a packet after which none is on its way.
const WATCH: Duration = Duration::from_millis(1);
const QUIET: Duration = Duration::from_millis(5);

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// Each host's interface towards the generator, and towards the sink.
const UP: &str = "eth0";
const DOWN: &str = "eth1";

/// MAC of an end of a wire, 1 or 2; the generator's wire is number 0.
const fn mac(wire: usize, end: u8) -> Mac {
    [2, 0, 0, 0, 1, 2 * wire as u8 + end]
}

pub(super) struct Stage {
    generator: Netns,
    nodes: Vec<Node>,
    count: Cell,
    _sink: OwnedFd,
    _last: Netns,
}

struct Node {
    netns: Netns,
    program: OwnedFd,
    _kernel: Kernel,
}

/// What makes frames, and the first of them.
pub(super) struct Generator {
    program: OwnedFd,
    frame: Vec<u8>,
}

impl Stage {
    /// `nodes`: their addresses. The backends are the last one's own; those before it reach them through its tunnel. They
    /// know `flows` established connections from clients of the generator's.
    pub(super) fn set(nodes: &[Ipv4Addr], flows: u32) -> Result<Self> {
        let hosts = (0..nodes.len() + 2)
            .map(|at| Netns::create(&format!("host{at}")))
            .collect::<Result<Vec<_>>>()?;
        for netns in &hosts {
            // Nothing but our frames on the wires.
            netns.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        }
        for (wire, pair) in hosts.windows(2).enumerate() {
            connect(wire, &pair[0], &pair[1])?;
        }
        let [generator, between @ .., last] = &*hosts else {
            anyhow::bail!("a stage has two ends");
        };
        let count = Cell::create(8)?;
        let sink = frames::sink(&count)?;
        let sink = attach(last, UP, &sink)?;
        let nodes = (1..)
            .zip(nodes.iter().zip(between))
            .map(|(place, (own, netns))| Node::set(netns, place, *own, nodes.get(place), flows))
            .collect::<Result<_>>()?;
        Ok(Self {
            generator: generator.clone(),
            nodes,
            count,
            _sink: sink,
            _last: last.clone(),
        })
    }

    /// The node that clients' packets come to.
    pub(super) fn first(&self) -> &Netns {
        &self.nodes[0].netns
    }

    /// Lets our program serve, on all nodes, until the result is dropped.
    pub(super) fn serve(&self) -> Result<Vec<OwnedFd>> {
        let attached = self.nodes.iter();
        attached
            .map(|node| attach(&node.netns, UP, &node.program))
            .collect()
    }

    /// Packets of `flows` connections, one after the other.
    pub(super) fn generator(&self, to: SocketAddr, kind: Kind, flows: u64) -> Result<Generator> {
        let frame = frames::frame([mac(0, 1), mac(0, 2)], IpAddr::V4(CLIENT), to, kind)?;
        let program = frames::generator(&frame, flows, index(&self.generator, DOWN)?)?;
        Ok(Generator { program, frame })
    }

    /// Sends on one processor, and waits for the last to arrive: how many did, and the processor's time for all of it,
    /// from the generator to the sink. Where the kernel keeps softirqs out of a thread's time
    /// (`CONFIG_IRQ_TIME_ACCOUNTING`) it is too short, for all cases alike.
    pub(super) fn send(&self, from: &Generator, packets: u32) -> Result<(u64, Duration)> {
        let before = self.counted()?;
        let softirqs = machine::softirq_time(CPU)?;
        let own = self.generator.enter(|| -> Result<Duration> {
            machine::pin(CPU)?;
            let start = machine::processor_time();
            kernel::inject(from.program.as_fd(), &from.frame, packets)
                .context("live frames (Linux 5.18)")?;
            Ok(machine::processor_time().saturating_sub(start))
        })?;
        let (mut counted, mut since) = (self.counted()?, Instant::now());
        while since.elapsed() < QUIET {
            thread::sleep(WATCH);
            let now = self.counted()?;
            if now != counted {
                (counted, since) = (now, Instant::now());
            }
        }
        let softirqs = machine::softirq_time(CPU)?.saturating_sub(softirqs);
        Ok((counted - before, own + softirqs))
    }

    fn counted(&self) -> Result<u64> {
        let bytes = self.count.read()?;
        Ok(u64::from_ne_bytes(bytes[..8].try_into()?))
    }
}

impl Node {
    /// `place`: in the row. `next`: the address of the node behind it.
    fn set(
        netns: &Netns,
        place: usize,
        own: Ipv4Addr,
        next: Option<&Ipv4Addr>,
        flows: u32,
    ) -> Result<Self> {
        let to = text(mac(place, 2));
        netns.ip([
            &*format!("address add {own}/32 dev {DOWN}"),
            &format!("neighbour add 169.254.0.1 lladdr {to} dev {DOWN}"),
            &format!("route add 10.200.0.0/16 via 169.254.0.1 dev {DOWN} onlink"),
        ])?;
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        // A NIC would have verified the TCP checksums.
        netns.sysctl("net.netfilter.nf_conntrack_checksum", "0")?;
        for device in [UP, DOWN] {
            netns.like_a_wire(device)?;
        }
        let mut kernel = Kernel::load(netns.name(), contents::SIZES)?;
        let clock = Clock::load()?;
        let ifindex = index(netns, DOWN)?;
        let next_hop = contents::next_hop(mac(place, 2), mac(place, 1), ifindex);
        let mut ops = contents::ops(&next_hop, clock.rate()?);
        let mut mode = Mode::Local;
        if let Some(next) = next {
            ops = director::tunnelled(&ops, [own, *next].map(|ip| Addr::from(IpAddr::V4(ip))));
            mode = Mode::Dsr;
        }
        kernel.dataplane.apply(&ops)?;
        let now = clock.now()? as u32;
        let services = [
            (Service::Nat, Mode::Nat),
            (Service::Dsr4, Mode::Dsr),
            (Service::Local, mode),
        ];
        for (service, mode) in services {
            established::enter(&kernel, service, mode, CLIENT.into(), flows, now)?;
        }
        // Devices are looked up in the namespace of whoever enters them.
        netns.enter(|| contents::allow(&kernel.folder, ifindex))?;
        Ok(Self {
            netns: netns.clone(),
            program: kernel.xdp()?.fd()?.as_fd().try_clone_to_owned()?,
            _kernel: kernel,
        })
    }
}

/// Lays a wire, with known addresses, from a host to the next.
fn connect(wire: usize, from: &Netns, to: &Netns) -> Result<()> {
    let (one, other) = (text(mac(wire, 1)), text(mac(wire, 2)));
    let ends = format!(
        "link add {DOWN} address {one} type veth peer name {UP} address {other} netns {}",
        to.name()
    );
    from.ip([&*ends, &format!("link set {DOWN} up")])?;
    to.ip([&*format!("link set {UP} up")])
}

fn attach(netns: &Netns, device: &str, program: &OwnedFd) -> Result<OwnedFd> {
    let ifindex = index(netns, device)?;
    Ok(netns.enter(|| kernel::attach(program.as_fd(), ifindex))?)
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn index(netns: &Netns, device: &str) -> Result<u32> {
    let shown = netns.run(Command::new("ip").args(["-o", "link", "show", "dev", device]))?;
    let number = shown.split(':').next().context("ip link")?;
    Ok(number.trim().parse()?)
}
