//! The small network everything runs in.
//!
//! ```text
//!  client 1 ── 198.51.100.0/24 ─┐                         ┌── b1  10.0.0.11
//!              2001:db8:a::/64  │                         │       fd00::11
//!                            router ══ 10.0.0.0/24 bridge ┼── b2  10.0.0.12
//!  client 2 ── 203.0.113.0/24 ──┘      fd00::/64          │       fd00::12
//!              2001:db8:b::/64          │                 └── ...
//!                                      lb  10.0.0.2, fd00::2
//! ```
//!
//! The router sends 192.0.2.0/24 and `2001:db8::/64`, where the VIPs are, to the balancer. Backends answer through the
//! router. With two arms the balancer has a second interface: `eth0` in a network of its own with the router
//! (10.1.0.0/24, `fd01::/64`), where the clients' packets come in, `eth1` in the backends' network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;

use crate::{netns::Netns, pass::PassProgram};

/// The address of most services, and its IPv6 twin.
pub const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn vip(self) -> IpAddr {
        match self {
            Self::V4 => VIP4.into(),
            Self::V6 => VIP6.into(),
        }
    }
}

/// How many interfaces the balancer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    OneArm,
    TwoArms,
}

/// A machine with one address of each family.
#[derive(Debug)]
pub struct Host {
    pub name: String,
    pub netns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Host {
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }
}

#[derive(Debug)]
pub struct Topology {
    shape: Shape,
    /// On the router's ports to the balancer, so that they take what it sends by XDP.
    ports: Vec<PassProgram>,
    pub router: Netns,
    pub balancer: Host,
    pub clients: Vec<Host>,
    pub backends: Vec<Host>,
}

impl Topology {
    /// Two clients, the balancer and `backends` backends (at most 80).
    pub fn build(shape: Shape, backends: usize) -> Result<Self> {
        let router = router()?;

        let balancer = host(
            "lb",
            Ipv4Addr::new(10, 0, 0, 2),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
        )?;
        // Leaves 20000 and up to tests whose connections want more ports than the default range of `nat` has.
        balancer
            .netns
            .sysctl("net.ipv4.ip_local_port_range", "10000 19999")?;
        if shape == Shape::TwoArms {
            bridge(&router, "front", "10.1.0.1", "fd01::1")?;
            plug(
                &router, "lb1", "lan", &balancer, "eth1", "10.0.0.2", "fd00::2",
            )?;
        }
        let clients = clients(&router)?;
        let backends = (1..=backends as u16)
            .map(|number| backend(&router, number))
            .collect::<Result<_>>()?;
        let mut topology = Self {
            shape,
            ports: Vec::new(),
            router,
            balancer,
            clients,
            backends,
        };
        topology.plug_balancer()?;
        if shape == Shape::TwoArms {
            let second = PassProgram::attach(&topology.router, "lb1")?;
            topology.ports.push(second);
        }
        Ok(topology)
    }

    /// Connects the balancer's `eth0` and leads the VIPs there.
    pub fn plug_balancer(&mut self) -> Result<()> {
        let (network, v4, v6) = match self.shape {
            Shape::OneArm => ("lan", "10.0.0", "fd00::"),
            Shape::TwoArms => ("front", "10.1.0", "fd01::"),
        };
        let (own4, own6) = (format!("{v4}.2"), format!("{v6}2"));
        plug(
            &self.router,
            "lb",
            network,
            &self.balancer,
            "eth0",
            &own4,
            &own6,
        )?;
        self.ports.push(PassProgram::attach(&self.router, "lb")?);
        self.balancer.netns.ip([
            // It is the same NIC that comes back: for one with another address its neighbours would ask in their own time.
            "link set eth0 address 02:00:00:00:00:02",
            &*format!("route add default via {v4}.1"),
            &*format!("route add default via {v6}1"),
        ])?;
        self.router.ip([
            &*format!("route replace 192.0.2.0/24 via {own4}"),
            &*format!("route replace 2001:db8::/64 via {own6}"),
        ])
    }

    /// One more host in the backends' network, 10.0.0.LAST and `fd00::LAST`, to which the VIPs' networks are on link: it has
    /// no route to the balancer.
    pub fn neighbour(&self, name: &str, last: u8) -> Result<Host> {
        let host = on_lan(&self.router, name, last)?;
        host.netns.ip([
            "route add 192.0.2.0/24 dev eth0",
            "route add 2001:db8::/64 dev eth0",
        ])?;
        Ok(host)
    }

    /// Takes the balancer's `eth0` away, as if the NIC were pulled out.
    pub fn unplug_balancer(&self) -> Result<()> {
        self.balancer.netns.ip(["link del eth0"])
    }

    /// The client that tests use when any will do.
    pub fn client(&self) -> &Netns {
        &self.clients[0].netns
    }

    /// Makes every backend take packets for the VIPs as its own, without answering ARP for them: what `l2` and `ipip`
    /// ask of a backend.
    pub fn give_vips_to_backends(&self) -> Result<()> {
        self.backends.iter().try_for_each(give_vips)
    }

    /// Lowers the MTU of the clients' way to the VIPs, which leaves room for a tunnel's outer header.
    pub fn leave_room_for_tunnels(&self) -> Result<()> {
        for client in &self.clients {
            client.netns.ip(["link set eth0 mtu 1400"])?;
        }
        Ok(())
    }
}

/// The router, with the backends' network as the bridge `lan`.
pub(crate) fn router() -> Result<Netns> {
    let router = Netns::create("router")?;
    router.sysctl("net.ipv4.ip_forward", "1")?;
    router.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    // Redirects would teach the router's neighbours short cuts that no test expects.
    router.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
    router.sysctl("net.ipv4.conf.default.send_redirects", "0")?;
    bridge(&router, "lan", "10.0.0.1", "fd00::1")?;
    Ok(router)
}

pub(crate) fn clients(router: &Netns) -> Result<Vec<Host>> {
    Ok(vec![
        client(router, "c1", [198, 51, 100], 0xa)?,
        client(router, "c2", [203, 0, 113], 0xb)?,
    ])
}

/// See [`Topology::give_vips_to_backends`].
pub(crate) fn give_vips(backend: &Host) -> Result<()> {
    for scope in ["all", "default", "eth0"] {
        backend
            .netns
            .sysctl(&format!("net.ipv4.conf.{scope}.arp_ignore"), "1")?;
        backend
            .netns
            .sysctl(&format!("net.ipv4.conf.{scope}.arp_announce"), "2")?;
    }
    backend.netns.ip([
        &*format!("address add {VIP4}/32 dev lo"),
        &*format!("address add {VIP6}/128 dev lo nodad"),
    ])
}

fn host(name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Host> {
    Ok(Host {
        name: name.into(),
        netns: Netns::create(name)?,
        v4,
        v6,
    })
}

fn client(router: &Netns, name: &str, [a, b, c]: [u8; 3], net6: u16) -> Result<Host> {
    let v4 = Ipv4Addr::new(a, b, c, 7);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, net6, 0, 0, 0, 0, 7);
    let host = host(name, v4, v6)?;
    let gateway4 = format!("{a}.{b}.{c}.1");
    let gateway6 = format!("2001:db8:{net6:x}::1");
    cable(router, name, &host.netns, "eth0")?;
    router.ip([
        &*format!("address add {gateway4}/24 dev {name}"),
        &*format!("address add {gateway6}/64 dev {name} nodad"),
    ])?;
    host.netns.ip([
        &*format!("address add {v4}/24 dev eth0"),
        &*format!("address add {v6}/64 dev eth0 nodad"),
        &*format!("route add default via {gateway4}"),
        &*format!("route add default via {gateway6}"),
    ])?;
    // Ten thousand connections to one VIP want their own ports.
    host.netns
        .sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    Ok(host)
}

/// A host in the backends' network, 10.0.0.LAST and `fd00::LAST`, with no routes.
pub(crate) fn on_lan(router: &Netns, name: &str, last: u8) -> Result<Host> {
    let v6: Ipv6Addr = format!("fd00::{last}").parse()?;
    let host = host(name, Ipv4Addr::new(10, 0, 0, last), v6)?;
    let (own4, own6) = (host.v4.to_string(), host.v6.to_string());
    plug(router, name, "lan", &host, "eth0", &own4, &own6)?;
    Ok(host)
}

pub(crate) fn backend(router: &Netns, number: u16) -> Result<Host> {
    let last = 10 + number;
    let v4 = Ipv4Addr::new(10, 0, 0, last as u8);
    // The decimal digits again, so that b1 is 10.0.0.11 and fd00::11.
    let v6: Ipv6Addr = format!("fd00::{last}").parse()?;
    let host = host(&format!("b{number}"), v4, v6)?;
    let (own4, own6) = (v4.to_string(), v6.to_string());
    plug(router, &host.name, "lan", &host, "eth0", &own4, &own6)?;
    host.netns.ip([
        "route add default via 10.0.0.1",
        "route add default via fd00::1",
    ])?;
    // A whole test's connections may arrive at once.
    host.netns.sysctl("net.core.somaxconn", "16384")?;
    host.netns.sysctl("net.ipv4.tcp_max_syn_backlog", "16384")?;
    Ok(host)
}

/// A bridge in the router with an address of its own.
fn bridge(router: &Netns, name: &str, v4: &str, v6: &str) -> Result<()> {
    router.ip([
        &*format!("link add {name} type bridge"),
        &*format!("link set {name} up"),
        &*format!("address add {v4}/24 dev {name}"),
        &*format!("address add {v6}/64 dev {name} nodad"),
    ])
}

/// Connects a host's interface to a bridge of the router.
fn plug(
    router: &Netns,
    port: &str,
    bridge: &str,
    host: &Host,
    device: &str,
    v4: &str,
    v6: &str,
) -> Result<()> {
    cable(router, port, &host.netns, device)?;
    router.ip([&*format!("link set {port} master {bridge}")])?;
    host.netns.ip([
        &*format!("address add {v4}/24 dev {device}"),
        &*format!("address add {v6}/64 dev {device} nodad"),
    ])
}

/// A veth pair between two namespaces, both ends up.
fn cable(one: &Netns, one_device: &str, other: &Netns, other_device: &str) -> Result<()> {
    let other_name = other.name();
    one.ip([&*format!(
        "link add {one_device} type veth peer name {other_device} netns {other_name}"
    )])?;
    one.like_a_wire(one_device)?;
    other.like_a_wire(other_device)?;
    one.ip([&*format!("link set {one_device} up")])?;
    other.ip([&*format!("link set {other_device} up")])
}
