//! A network with servers on all backends and a balancer in front of them: where most tests begin.

use std::{fs, net::SocketAddr, process::Command, thread};

use anyhow::Result;

use crate::{
    balancer::{Balancer, Configuration, Mode, Service},
    netns::{Folder, Netns, Process},
    servers::{self, DNS, ECHO, HTTP, HTTP_BEHIND, IPERF},
    topology::{Family, Host, Shape, Topology},
};

/// A mode, and for `ipip` the family of the outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Nat,
    IpipOver(Family),
    L2,
}

impl Way {
    pub fn mode(self) -> Mode {
        match self {
            Self::Nat => Mode::Nat,
            Self::IpipOver(_) => Mode::Ipip,
            Self::L2 => Mode::L2,
        }
    }

    /// The family in which backends are named for a frontend of `family`.
    fn backend_family(self, family: Family) -> Family {
        match self {
            Self::Nat | Self::L2 => family,
            Self::IpipOver(outer) => outer,
        }
    }

    /// The port behind the HTTP frontend; only `nat` can change it.
    fn http_port(self) -> u16 {
        if self == Self::Nat { HTTP_BEHIND } else { HTTP }
    }
}

#[derive(Debug)]
pub struct Stage {
    pub way: Way,
    pub balancer: Balancer,
    pub configuration: Configuration,
    pub servers: Vec<Servers>,
    pub topology: Topology,
    pub folder: Folder,
}

/// What runs on one backend.
#[derive(Debug)]
pub struct Servers {
    pub nginx: Process,
    pub dnsmasq: Process,
    pub iperf3: Process,
    pub echo: Process,
    _decap: Option<Process>,
}

impl Stage {
    /// Four backends, a running balancer, services on the VIP of each family.
    pub fn set(way: Way, shape: Shape) -> Result<Self> {
        Self::set_with(way, shape, 4, |configuration| configuration)
    }

    /// `backends` backends, and a configuration that `change` has had its hands on.
    pub fn set_with(
        way: Way,
        shape: Shape,
        backends: usize,
        change: impl FnOnce(Configuration) -> Configuration,
    ) -> Result<Self> {
        let topology = Topology::build(shape, backends)?;
        let folder = Folder::create("stage")?;
        watch_connections(&topology.balancer.netns, &folder)?;
        if way != Way::Nat {
            topology.give_vips_to_backends()?;
        }
        if let Way::IpipOver(_) = way {
            topology.leave_room_for_tunnels()?;
        }
        let servers = thread::scope(|scope| {
            let starts: Vec<_> = topology
                .backends
                .iter()
                .map(|host| scope.spawn(|| Servers::start(host, &folder, way)))
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().expect("servers start"))
                .collect::<Result<Vec<_>>>()
        })?;
        let configuration = change(configuration(way, shape, &topology.backends));
        Ok(Self {
            way,
            balancer: Balancer::start(&topology.balancer.netns, &configuration)?,
            configuration,
            servers,
            topology,
            folder,
        })
    }

    pub fn client(&self) -> &Netns {
        self.topology.client()
    }

    /// A port of the VIP.
    pub fn vip(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(family.vip(), port)
    }

    /// A backend's address and port as the configuration has them for a frontend.
    pub fn target(&self, family: Family, backend: usize, port: u16) -> SocketAddr {
        let port = if port == HTTP {
            self.way.http_port()
        } else {
            port
        };
        self.topology.backends[backend].at(self.way.backend_family(family), port)
    }
}

impl Servers {
    /// The end of everything on this backend but its kernel.
    pub fn kill(&mut self) -> Result<()> {
        [
            &mut self.nginx,
            &mut self.dnsmasq,
            &mut self.iperf3,
            &mut self.echo,
        ]
        .into_iter()
        .try_for_each(Process::kill)
    }

    pub fn start(host: &Host, folder: &Folder, way: Way) -> Result<Self> {
        Ok(Self {
            nginx: servers::nginx(host, folder)?,
            dnsmasq: servers::dnsmasq(host)?,
            iperf3: servers::iperf3(host)?,
            echo: servers::echo(host)?,
            _decap: match way {
                Way::IpipOver(_) => Some(servers::decap(host)?),
                Way::Nat | Way::L2 => None,
            },
        })
    }
}

/// The name of the service on `port` of a family's VIP.
pub fn service_name(family: Family, port: u16) -> String {
    let what = match port {
        HTTP => "http",
        ECHO => "echo",
        DNS => "dns",
        _ => "iperf",
    };
    let suffix = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    format!("{what}{suffix}")
}

/// All of [`services`] on the interfaces of `shape`.
pub fn configuration(way: Way, shape: Shape, backends: &[Host]) -> Configuration {
    let interfaces = match shape {
        Shape::OneArm => vec!["eth0".into()],
        Shape::TwoArms => vec!["eth0".into(), "eth1".into()],
    };
    Configuration {
        interfaces,
        nat_ports: None,
        announce: false,
        services: services(way, backends),
    }
}

/// HTTP, echo (TCP and UDP), DNS and iperf3 on the VIP of each family, in front of all `backends`.
pub fn services(way: Way, backends: &[Host]) -> Vec<Service> {
    let mut services = Vec::new();
    for family in Family::BOTH {
        let service = |port: u16, protocols: &[&str], target: u16| {
            let vip = SocketAddr::new(family.vip(), port);
            let frontends: Vec<_> = protocols
                .iter()
                .map(|protocol| format!("{vip}/{protocol}"))
                .collect();
            let targets: Vec<_> = backends
                .iter()
                .map(|host| host.at(way.backend_family(family), target))
                .collect();
            Service::new(
                &service_name(family, port),
                way.mode(),
                &frontends,
                &targets,
            )
        };
        services.push(Service {
            health: true,
            ..service(HTTP, &["tcp"], way.http_port())
        });
        services.push(service(ECHO, &["tcp", "udp"], ECHO));
        services.push(service(DNS, &["udp"], DNS));
        // One test of iperf3 is several connections, which want the same server; a probe would disturb it.
        services.push(Service {
            affinity: true,
            ..service(IPERF, &["tcp"], IPERF)
        });
    }
    services
}

/// Makes a namespace's connection tracking see every packet: it sleeps until a rule asks for it.
pub(crate) fn watch_connections(netns: &Netns, folder: &Folder) -> Result<()> {
    let rules = folder.file("watch.nft");
    fs::write(
        &rules,
        "table inet watch {
  chain in { type filter hook prerouting priority 0; ct state new counter; }
  chain out { type filter hook output priority 0; ct state new counter; }
}
",
    )?;
    netns
        .run(Command::new("nft").arg("-f").arg(rules))
        .map(drop)
}

/// The namespace's tracked connections of both families, a line each.
pub fn tracked_connections(netns: &Netns) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let list = netns.run(Command::new("conntrack").args(["-L", "-f", family]))?;
        lines.extend(list.lines().map(str::to_owned));
    }
    Ok(lines)
}
