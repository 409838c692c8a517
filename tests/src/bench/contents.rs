//! What the maps hold while packets are measured: one service of each kind, a hundred backends each.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    abi::{
        Backend, Flow, Frontend, FrontendKey, Hop, Mode, NextHop, Region, Service, Settings, Tuple,
        filter_bit, owner, service_flag, slot_of,
    },
    bytes::{Addr, Address as _, Be16, V4, V6},
    hash,
};
use lb_userspace::{
    dataplane::{Bpf, Dataplane as _},
    plan::Op,
};

use crate::kernel::{self, Kernel, Sizes};

/// Backends of each service.
pub(super) const BACKENDS: u32 = 100;
const LOG2_SLOTS: u8 = 13;
const LOG2_MEMBERS: u8 = 7;

/// The port of every frontend.
pub(super) const PORT: u16 = 80;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The services, by index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Ipip4 = 0,
    Ipip6 = 1,
    Nat = 2,
    L2 = 3,
}

const KINDS: [Kind; 4] = [Kind::Ipip4, Kind::Ipip6, Kind::Nat, Kind::L2];

impl Kind {
    pub(super) const fn vip(self) -> SocketAddr {
        let ip = match self {
            Self::Ipip6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            _ => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1 + self as u8)),
        };
        SocketAddr::new(ip, PORT)
    }

    const fn mode(self) -> Mode {
        match self {
            Self::Ipip4 | Self::Ipip6 => Mode::Ipip,
            Self::Nat => Mode::Nat,
            Self::L2 => Mode::L2,
        }
    }

    pub(super) fn backend(self, ordinal: u32) -> IpAddr {
        let low = (ordinal + 1) as u16;
        if self == Self::Ipip6 {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, low).into()
        } else {
            Ipv4Addr::new(10, 200, self as u8, low as u8).into()
        }
    }

    fn source(self) -> IpAddr {
        if self == Self::Ipip6 {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, 0).into()
        } else {
            OWN.into()
        }
    }

    const fn frontend(self) -> u32 {
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

/// Sizes of the maps: the shipped ones, but for those of IPv6 that would only take memory.
pub(super) const SIZES: Sizes<'static> = &[
    ("SLOTS", 65_536),
    ("MEMBERS", 1024),
    ("BACKENDS", 512),
    ("BACKEND_STATS", 512),
    ("FLOWS6", 4096),
    ("HALF_OPEN6", 4096),
];

/// Fills the maps; every backend is behind `next_hop`. `hz`: jiffies per second.
pub(super) fn fill(kernel: &mut Kernel, next_hop: &NextHop, hz: u32) -> Result<()> {
    let settings = Settings {
        hz,
        // What is measured is no flood.
        fragment_rate: u32::MAX,
        fragment_burst: u32::MAX,
        ..kernel::settings()
    };
    let mut ops = vec![
        Op::Settings(settings),
        Op::NextHop {
            id: 1,
            value: *next_hop,
        },
    ];
    for kind in KINDS {
        service(kind, &mut ops);
    }
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
    Ok(kernel.dataplane.apply(&ops)?)
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
    }
    ops.push(Op::Members {
        base: kind.members(),
        members: (first..first + BACKENDS).map(u64::from).collect(),
    });
    ops.push(Op::Slots {
        base: kind.slots(),
        slots: (0..1 << LOG2_SLOTS).map(slot).collect(),
    });
    let flows = if kind == Kind::Nat {
        service_flag::FLOWS
    } else {
        0
    };
    ops.push(Op::Service {
        index: kind as u32,
        value: Service {
            table: Region::new(kind.slots(), LOG2_SLOTS, 1).0,
            members: Region::new(kind.members(), LOG2_MEMBERS, 1).0,
            flags: service_flag::LIVE | flows,
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

const fn slot(index: u32) -> u64 {
    let current = (index % BACKENDS) as u16;
    slot_of([current, u16::MAX, u16::MAX, u16::MAX])
}

/// Enters flows of clients of the `nat` service as established, as the program would have: `flows` of them, numbered as
/// [`super::frames::Fresh`] numbers its sources, from `client` on.
pub(super) fn establish(kernel: &Kernel, client: Ipv4Addr, flows: u32, now: u32) -> Result<()> {
    let map = MapData::from_pin(kernel.folder.join("FLOWS4"))?;
    let mut map: HashMap<_, Tuple<V4>, Flow<V4>> = Map::LruHashMap(map).try_into()?;
    let IpAddr::V4(vip) = Kind::Nat.vip().ip() else {
        unreachable!("the nat service is IPv4");
    };
    for number in 0..flows {
        let [a, b, ..] = client.octets();
        let [p0, p1, c, d] = number.to_le_bytes();
        let key = Tuple {
            source: V4::from_bytes([a, b, c, d]),
            destination: V4::from(vip),
            source_port: Be16::from_raw(u16::from_ne_bytes([p0, p1])),
            destination_port: Be16::new(PORT),
            protocol: TCP,
            pad: [0; 3],
        };
        let hash = hash::flow(&kernel::settings().hash_key, &key);
        let at = hash as u32 & ((1 << LOG2_SLOTS) - 1);
        let ordinal = u32::from(owner(slot(at), 0));
        let flow = Flow {
            source: V4::from(OWN),
            destination: V4::from_addr(&Addr::from(Kind::Nat.backend(ordinal))),
            source_port: Be16::new(61_000 + (number / BACKENDS % 4000) as u16),
            destination_port: Be16::new(PORT),
            hop: Hop::default(),
            backend: 1 + Kind::Nat as u32 * BACKENDS + ordinal,
            generation: 1,
            frontend: Kind::Nat.frontend(),
            seen: now,
            resolved: now,
            isn: 0,
            state: 0,
        };
        map.insert(key, flow, 0).context("FLOWS4")?;
    }
    Ok(())
}
