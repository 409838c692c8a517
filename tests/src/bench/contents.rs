//! What the maps hold while packets are measured: one service of each kind, a hundred backends each, and this node's end
//! of the tunnels.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use anyhow::Result;
use lb_common::{
    abi::{
        Backend, Frontend, FrontendKey, Mode, NextHop, Region, Segment, Service, Settings,
        SourceKey, TargetKey, Tunnel, filter_bit, service_flag, slot_of,
    },
    bytes::{Addr, Address as _, Be16, Mac, V4, V6},
};
use lb_userspace::{
    dataplane::{Bpf, Dataplane as _},
    plan::Op,
};

use crate::{
    kernel::{self, Sizes},
    world::TUNNEL_PORT,
};

/// Backends of each service.
pub(super) const BACKENDS: u32 = 100;
pub(super) const LOG2_SLOTS: u8 = 13;
const LOG2_MEMBERS: u8 = 7;

/// The port of every frontend.
pub(super) const PORT: u16 = 80;
pub(super) const TCP: u8 = 6;
const UDP: u8 = 17;

/// The services, by index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Ipip4 = 0,
    Ipip6 = 1,
    Nat = 2,
    L2 = 3,
    /// Backends on other nodes.
    Dsr4 = 4,
    Dsr6 = 5,
    /// Backends on this node, to which [`Kind::Dsr4`]'s are on others.
    Local = 6,
}

const KINDS: [Kind; 7] = [
    Kind::Ipip4,
    Kind::Ipip6,
    Kind::Nat,
    Kind::L2,
    Kind::Dsr4,
    Kind::Dsr6,
    Kind::Local,
];

/// Index of the service that is this node's end of the tunnels.
const TUNNEL_END: u32 = KINDS.len() as u32;

impl Kind {
    pub(super) const fn vip(self) -> SocketAddr {
        let ip = match self {
            Self::Ipip6 | Self::Dsr6 => {
                IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, self as u16))
            }
            _ => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1 + self as u8)),
        };
        SocketAddr::new(ip, PORT)
    }

    pub(super) const fn mode(self) -> Mode {
        match self {
            Self::Ipip4 | Self::Ipip6 => Mode::Ipip,
            Self::Nat => Mode::Nat,
            Self::L2 => Mode::L2,
            Self::Dsr4 | Self::Dsr6 => Mode::Dsr,
            Self::Local => Mode::Local,
        }
    }

    const fn flags(self) -> u64 {
        match self {
            Self::Nat => service_flag::FLOWS,
            Self::Local => service_flag::FLOWS | service_flag::SHARED,
            Self::Dsr4 | Self::Dsr6 => {
                service_flag::FLOWS | service_flag::SHARED | service_flag::DSR
            }
            Self::Ipip4 | Self::Ipip6 | Self::L2 => 0,
        }
    }

    pub(super) fn backend(self, ordinal: u32) -> IpAddr {
        let low = (ordinal + 1) as u16;
        if self.vip().is_ipv6() {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, self as u16, low).into()
        } else {
            Ipv4Addr::new(10, 200, self as u8, low as u8).into()
        }
    }

    pub(super) fn source(self) -> IpAddr {
        if self.vip().is_ipv6() {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0xffff, 1).into()
        } else {
            OWN.into()
        }
    }

    pub(super) const fn frontend(self) -> u32 {
        1 + self as u32
    }

    const fn slots(self) -> u32 {
        (self as u32) << LOG2_SLOTS
    }

    const fn members(self) -> u32 {
        (self as u32) << LOG2_MEMBERS
    }
}

/// Source of translated packets and of tunnels.
pub(super) const OWN: Ipv4Addr = Ipv4Addr::new(10, 200, 255, 1);

/// Another node, which may send through tunnels.
pub(super) const PEER: Ipv4Addr = Ipv4Addr::new(10, 200, 254, 1);

/// Sizes of the maps: the shipped ones, but for those of IPv6 that would only take memory.
pub(super) const SIZES: Sizes<'static> = &[
    ("SLOTS", 65_536),
    ("MEMBERS", 1024),
    ("BACKENDS", 1024),
    ("BACKEND_STATS", 1024),
    ("FLOWS6", 1 << 18),
    ("HALF_OPEN6", 4096),
];

/// `hz`: jiffies per second.
pub(super) fn settings(hz: u32) -> Settings {
    Settings {
        hz,
        // What is measured is no flood.
        fragment_rate: u32::MAX,
        fragment_burst: u32::MAX,
        tunnel: Tunnel::new(Be16::new(TUNNEL_PORT), 0).0,
        tag_keys: [[1, 2], [3, 4]],
        tag_ids: Tunnel::accepted(&[0]),
        mtu: 1500,
        ..kernel::settings()
    }
}

/// The neighbour that all backends are behind, which XDP sends to by itself.
pub(super) fn next_hop(neighbour: Mac, own: Mac, ifindex: u32) -> NextHop {
    let flags = NextHop::RESOLVED | NextHop::XDP_SEND;
    NextHop {
        destination: NextHop::destination_word(neighbour, flags),
        source: NextHop::source_word(own, 1500),
        segment: Segment { ifindex, tags: 0 },
        ..NextHop::default()
    }
}

/// What fills the maps; every backend is behind `next_hop`. `hz`: jiffies per second.
pub(super) fn ops(next_hop: &NextHop, hz: u32) -> Vec<Op> {
    let mut ops = vec![
        Op::Settings(settings(hz)),
        Op::NextHop {
            id: 1,
            value: *next_hop,
        },
    ];
    for kind in KINDS {
        service(kind, &mut ops);
    }
    tunnel_end(&mut ops);
    let mut words = std::collections::BTreeMap::<u32, u64>::new();
    let addresses = KINDS.map(|kind| kind.vip().ip());
    for address in addresses.into_iter().chain([OWN.into()]) {
        let (index, bit) = match address {
            IpAddr::V4(v4) => filter_bit(&V4::from(v4)),
            IpAddr::V6(v6) => filter_bit(&V6::from(v6)),
        };
        *words.entry(index).or_default() |= bit;
    }
    ops.extend(words.iter().map(|(index, word)| Op::Address {
        index: *index,
        word: *word,
    }));
    ops
}

/// Lets XDP send on a device. `folder` is that of the pinned maps.
pub(super) fn allow(folder: &Path, ifindex: u32) -> Result<()> {
    Ok(Bpf::open(folder)?.apply(&[Op::InsertDevice { ifindex }])?)
}

fn service(kind: Kind, ops: &mut Vec<Op>) {
    let first = 1 + kind as u32 * BACKENDS;
    for ordinal in 0..BACKENDS {
        let value = Backend {
            address: Addr::from(kind.backend(ordinal)),
            source: Addr::from(kind.source()),
            target: match kind.mode() {
                Mode::Dsr => Addr::from(kind.backend(ordinal)),
                _ => Addr::default(),
            },
            port: Be16::new(PORT),
            mode: kind.mode() as u8,
            generation: 1,
            next_hop: 1,
            state: 1,
            ..Backend::default()
        };
        ops.push(Op::Backend {
            id: first + ordinal,
            value,
        });
        if kind == Kind::Local {
            let target = V4::from_addr(&value.address);
            ops.push(Op::InsertTarget4 {
                key: TargetKey::new(kind as u32, target, value.port),
                id: first + ordinal,
            });
        }
    }
    ops.push(Op::Members {
        base: kind.members(),
        members: (first..first + BACKENDS).map(u64::from).collect(),
    });
    ops.push(Op::Slots {
        base: kind.slots(),
        slots: (0..1 << LOG2_SLOTS).map(slot).collect(),
    });
    ops.push(Op::Service {
        index: kind as u32,
        value: Service {
            table: Region::new(kind.slots(), LOG2_SLOTS, 1).0,
            members: Region::new(kind.members(), LOG2_MEMBERS, 1).0,
            flags: service_flag::LIVE | kind.flags(),
            reserved: 0,
        },
    });
    let value = Frontend {
        service: kind as u32,
        id: kind.frontend(),
    };
    let port = Be16::new(PORT);
    match kind.vip().ip() {
        IpAddr::V4(vip) => {
            let vip = V4::from(vip);
            for key in [
                FrontendKey::new(vip, port, TCP),
                FrontendKey::new(vip, port, UDP),
                FrontendKey::vip(vip),
            ] {
                ops.push(Op::InsertFrontend4 { key, value });
            }
        }
        IpAddr::V6(vip) => {
            let vip = V6::from(vip);
            for key in [
                FrontendKey::new(vip, port, TCP),
                FrontendKey::new(vip, port, UDP),
                FrontendKey::vip(vip),
            ] {
                ops.push(Op::InsertFrontend6 { key, value });
            }
        }
    }
}

/// Takes what the other node sends.
fn tunnel_end(ops: &mut Vec<Op>) {
    ops.push(Op::Service {
        index: TUNNEL_END,
        value: Service {
            flags: service_flag::LIVE | service_flag::TUNNEL | service_flag::SOURCE_RANGES,
            ..Service::default()
        },
    });
    ops.push(Op::InsertFrontend4 {
        key: FrontendKey::new(V4::from(OWN), Be16::new(TUNNEL_PORT), UDP),
        value: Frontend {
            service: TUNNEL_END,
            id: 1 + TUNNEL_END,
        },
    });
    ops.push(Op::InsertSource4 {
        key: SourceKey {
            service_be: TUNNEL_END.to_be(),
            client: V4::from(PEER),
        },
        bits: 32,
    });
}

pub(super) const fn slot(index: u32) -> u64 {
    let current = (index % BACKENDS) as u16;
    slot_of([current, u16::MAX, u16::MAX, u16::MAX])
}
