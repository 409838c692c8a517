//! What the balancer of this test serves: every mode in both families, next hops of each kind, by ops.

mod simulated;
mod told;

use std::net::IpAddr;

use lb_common::{
    abi::{
        Backend, FILTER_WORDS, Frontend, FrontendKey, Mode, NextHop, Region, Segment, Service,
        Settings, SourceKey, TargetKey, Tunnel, filter_bit, leaving_bit, service_flag, slot_of,
    },
    bytes::{Addr, Address as _, Be16, V4, V6},
};
use lb_userspace::plan::Op;

pub use simulated::simulate;
pub use told::services;

/// Own addresses: sources of translated packets and of outer headers.
pub const OWN: [&str; 2] = ["10.0.0.1", "2001:db8:1::1"];

/// The other node, of which this one is the other: where `dsr` sends to, and what is sent from to the backends here.
pub const PEER: [&str; 2] = ["10.0.0.11", "2001:db8:1::11"];

/// This node's end of the tunnels.
pub const TUNNEL_PORT: u16 = 16_081;

/// What the settings say of this node's uplinks.
pub const UPLINK_MTU: u32 = 1500;

/// VIPs announced on the interface that packets come in by; the others are not.
pub const ANNOUNCED: [&str; 4] = ["192.0.2.10", "2001:db8::10", "192.0.2.11", "2001:db8::11"];

/// A frontend's address, port and protocol. Those on 13 and 14 are of services that are restricted, and without backends;
/// those from 15 on are a cluster's, and the last ones the end of its tunnels.
pub const FRONTENDS: [(&str, u16, u8); 26] = [
    ("192.0.2.10", 443, 6),
    ("192.0.2.10", 53, 17),
    ("2001:db8::10", 443, 6),
    ("2001:db8::10", 53, 17),
    ("192.0.2.11", 80, 6),
    ("192.0.2.11", 53, 17),
    ("2001:db8::11", 80, 6),
    ("2001:db8::11", 53, 17),
    ("192.0.2.12", 80, 6),
    ("2001:db8::12", 80, 6),
    ("192.0.2.13", 80, 6),
    ("2001:db8::13", 80, 6),
    ("192.0.2.14", 80, 6),
    ("2001:db8::14", 80, 6),
    ("192.0.2.15", 80, 6),
    ("192.0.2.15", 53, 17),
    ("192.0.2.16", 80, 6),
    ("2001:db8::15", 80, 6),
    ("2001:db8::15", 53, 17),
    ("2001:db8::16", 80, 6),
    ("192.0.2.17", 80, 6),
    ("192.0.2.17", 53, 17),
    ("2001:db8::17", 80, 6),
    ("2001:db8::17", 53, 17),
    (OWN[0], TUNNEL_PORT, 17),
    (OWN[1], TUNNEL_PORT, 17),
];

/// Service index of each frontend.
const SERVICE_OF: [u32; FRONTENDS.len()] = [
    1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 10, 10, 11, 11,
];

/// Next hops by id: 1 on the interface that packets come in by, 2 on another, 3 unresolved.
const NEXT_HOPS: u32 = 3;

/// Mode, address (in `dsr` the pod's), next hop. Id 0 is never used.
const BACKENDS: [(Mode, &str, u32); 25] = [
    (Mode::Nat, "10.0.0.11", 1),
    (Mode::Nat, "10.1.0.12", 2),
    (Mode::Nat, "10.0.0.13", 0),
    (Mode::Nat, "2001:db8:1::11", 1),
    (Mode::Nat, "2001:db8:2::12", 2),
    (Mode::Nat, "2001:db8:1::13", 0),
    (Mode::Ipip, "10.0.0.11", 1),
    (Mode::Ipip, "2001:db8:2::12", 2),
    (Mode::Ipip, "10.0.0.13", 0),
    (Mode::Ipip, "2001:db8:1::11", 1),
    (Mode::L2, "10.0.0.11", 1),
    (Mode::L2, "10.1.0.12", 2),
    (Mode::L2, "10.0.0.14", 3),
    (Mode::Nat, "10.0.0.14", 3),
    (Mode::Nat, "10.9.9.9", 0),
    (Mode::Local, "10.0.1.21", 0),
    (Mode::Local, "10.0.1.22", 0),
    (Mode::Pass, "10.2.0.31", 0),
    (Mode::Local, "2001:db8:11::21", 0),
    (Mode::Local, "2001:db8:11::22", 0),
    (Mode::Pass, "2001:db8:12::31", 0),
    (Mode::Dsr, "10.2.0.41", 1),
    (Mode::Dsr, "10.2.0.42", 2),
    (Mode::Dsr, "2001:db8:12::41", 1),
    (Mode::Dsr, "2001:db8:12::42", 2),
];

/// Number of ids of backends and of frontends, 0 included.
pub const BACKEND_IDS: u32 = BACKENDS.len() as u32 + 1;
pub const FRONTEND_IDS: u32 = FRONTENDS.len() as u32 + 1;

/// Backend ids of services 1 to 11.
const MEMBERS: [&[u32]; 11] = [
    &[1, 2, 3, 14, 15],
    &[4, 5, 6],
    &[7, 8, 9, 10],
    &[11, 12, 13],
    &[11],
    &[],
    &[16, 17, 18, 1],
    &[19, 20, 21, 4],
    &[22, 23],
    &[24, 25],
    &[],
];

const FLAGS: [u64; 11] = [
    service_flag::FLOWS,
    service_flag::FLOWS | service_flag::AFFINITY,
    0,
    service_flag::AFFINITY,
    service_flag::SOURCE_RANGES,
    0,
    service_flag::FLOWS | service_flag::SHARED,
    service_flag::FLOWS | service_flag::SHARED,
    service_flag::FLOWS | service_flag::SHARED | service_flag::DSR,
    service_flag::FLOWS | service_flag::SHARED | service_flag::DSR,
    service_flag::TUNNEL | service_flag::SOURCE_RANGES,
];

/// Names of services 1 to 11.
pub(crate) const NAMES: [&str; 11] = [
    "nat4", "nat6", "ipip", "l2", "ranges", "empty", "local4", "local6", "dsr4", "dsr6", "tunnel",
];

/// Log2 of the number of slots, and of the number of members, of each service.
const TABLE: u8 = 6;
const REGION: u8 = 3;

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}

/// Those of this world. `hz`: jiffies per second.
pub fn settings(hz: u32) -> Settings {
    Settings {
        hash_key: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
        hz,
        // 61000 to 65535.
        nat_ports: 0xffff_ee48,
        reject_rate: u32::MAX,
        reject_burst: 1_000_000,
        flow_rate: u32::MAX,
        flow_burst: 1_000_000,
        fragment_rate: u32::MAX,
        fragment_burst: 1_000_000,
        tunnel: Tunnel::new(Be16::new(TUNNEL_PORT), 7).0,
        tag_keys: [[0x11, 0x12], [0x13, 0x14]],
        tag_ids: Tunnel::accepted(&[6, 7]),
        mtu: UPLINK_MTU,
        ..Settings::default()
    }
}

/// The ops that make this world. `macs`: own MAC and interface index of each interface. Frontend ids are the places in
/// [`FRONTENDS`], from 1.
pub fn ops(hz: u32, macs: [([u8; 6], u32); 2]) -> Vec<Op> {
    let mut ops = vec![Op::Settings(settings(hz))];
    for (_, ifindex) in macs {
        ops.push(Op::InsertDevice { ifindex });
    }
    for id in 1..=NEXT_HOPS {
        let (mac, ifindex) = macs[usize::from(id == 2)];
        let known = if id == 3 { 0 } else { NextHop::RESOLVED };
        ops.push(Op::NextHop {
            id,
            value: NextHop {
                destination: NextHop::destination_word(
                    [2, 0, 0, 9, 0, id as u8],
                    known | NextHop::XDP_SEND,
                ),
                source: NextHop::source_word(mac, 1500),
                segment: Segment { ifindex, tags: 0 },
                gateway: addr("10.0.0.14"),
            },
        });
    }
    for (index, (mode, address, next_hop)) in BACKENDS.into_iter().enumerate() {
        let target = addr(address);
        // The second of each two is reached over the other family.
        let v4 = target.is_v4() == (mode != Mode::Dsr || next_hop == 1);
        let (address, target) = match mode {
            Mode::Dsr => (addr(PEER[usize::from(!v4)]), target),
            _ => (target, Addr::default()),
        };
        ops.push(Op::Backend {
            id: index as u32 + 1,
            value: Backend {
                address,
                source: addr(OWN[usize::from(!v4)]),
                target,
                port: Be16::new(8080),
                mode: mode as u8,
                pad: 0,
                generation: 1,
                next_hop,
                state: 1,
            },
        });
    }
    for (index, members) in MEMBERS.into_iter().enumerate() {
        ops.extend(service(index as u32 + 1, members, FLAGS[index]));
    }
    for key in [0, 128] {
        ops.push(Op::InsertSource4 {
            key: SourceKey {
                service_be: 5u32.to_be(),
                client: V4::from_bytes([198, 51, 100, key]),
            },
            bits: 26,
        });
    }
    ops.push(Op::InsertSource6 {
        key: SourceKey {
            service_be: 5u32.to_be(),
            client: V6::from_addr(&addr("2001:db8:9::")),
        },
        bits: 112,
    });
    for peer in PEER {
        let (service_be, peer) = (11u32.to_be(), addr(peer));
        ops.push(if peer.is_v4() {
            let client = V4::from_addr(&peer);
            let key = SourceKey { service_be, client };
            Op::InsertSource4 { key, bits: 32 }
        } else {
            let client = V6::from_addr(&peer);
            let key = SourceKey { service_be, client };
            Op::InsertSource6 { key, bits: 128 }
        });
    }
    for (service, members) in (1..).zip(MEMBERS) {
        for id in members {
            let (mode, address, _) = BACKENDS[*id as usize - 1];
            if mode == Mode::Local {
                ops.push(target(service, &addr(address), *id));
            }
        }
    }
    let mut filter = vec![0u64; FILTER_WORDS as usize];
    for (mode, address, _) in BACKENDS {
        let address = addr(address);
        for port in [0, 8080].map(Be16::new) {
            let (word, bit) = if address.is_v4() {
                leaving_bit(&V4::from_addr(&address), port)
            } else {
                leaving_bit(&V6::from_addr(&address), port)
            };
            if mode == Mode::Local {
                filter[word as usize] |= bit;
            }
        }
    }
    let mut set = |address: &Addr| {
        let (word, bit) = if address.is_v4() {
            filter_bit(&V4::from_addr(address))
        } else {
            filter_bit(&V6::from_addr(address))
        };
        filter[word as usize] |= bit;
    };
    for own in OWN {
        set(&addr(own));
    }
    for address in ANNOUNCED {
        let address = addr(address);
        if !address.is_v4() {
            set(&V6::from_addr(&address).solicited_node().to_addr());
        }
        ops.push(Op::InsertAnnounced {
            ifindex: macs[0].1,
            address: address.to_ip(),
            mac: macs[0].0,
        });
    }
    for (index, (address, port, protocol)) in FRONTENDS.into_iter().enumerate() {
        let is_vip = !OWN.contains(&address);
        let address = addr(address);
        set(&address);
        let value = Frontend {
            service: SERVICE_OF[index],
            id: index as u32 + 1,
        };
        let port = Be16::new(port);
        if address.is_v4() {
            let address = V4::from_addr(&address);
            let key = FrontendKey::new(address, port, protocol);
            ops.push(Op::InsertFrontend4 { key, value });
            if is_vip {
                let (key, value) = (FrontendKey::vip(address), Frontend::default());
                ops.push(Op::InsertFrontend4 { key, value });
            }
        } else {
            let address = V6::from_addr(&address);
            let key = FrontendKey::new(address, port, protocol);
            ops.push(Op::InsertFrontend6 { key, value });
            if is_vip {
                let (key, value) = (FrontendKey::vip(address), Frontend::default());
                ops.push(Op::InsertFrontend6 { key, value });
            }
        }
    }
    for (index, word) in filter.into_iter().enumerate() {
        let index = index as u32;
        ops.push(Op::Address { index, word });
    }
    ops
}

pub(crate) fn target(service: u32, address: &Addr, id: u32) -> Op {
    let port = Be16::new(8080);
    if address.is_v4() {
        let key = TargetKey::new(service, V4::from_addr(address), port);
        Op::InsertTarget4 { key, id }
    } else {
        let key = TargetKey::new(service, V6::from_addr(address), port);
        Op::InsertTarget6 { key, id }
    }
}

fn service(index: u32, members: &[u32], flags: u64) -> [Op; 3] {
    let (slots, ordinals) = ((index - 1) << TABLE, (index - 1) << REGION);
    let owner = |slot: u32| match members.len() as u32 {
        0 => 0,
        count => slot_of([(slot % count) as u16, u16::MAX, u16::MAX, u16::MAX]),
    };
    let table = match members {
        [] => Region::EMPTY,
        [_] => Region::new(slots, 0, 1),
        _ => Region::new(slots, TABLE, 1),
    };
    [
        Op::Members {
            base: ordinals,
            members: members.iter().map(|id| u64::from(*id)).collect(),
        },
        Op::Slots {
            base: slots,
            slots: (0..1 << TABLE).map(owner).collect(),
        },
        Op::Service {
            index,
            value: Service {
                table: table.0,
                members: Region::new(ordinals, REGION, 1).0,
                flags: flags | service_flag::LIVE,
                reserved: 0,
            },
        },
    ]
}

/// Slots of the services with backends on other nodes only, each with the next owner; with `history`, behind it the one of
/// before.
pub(crate) fn swapped_owners(history: bool) -> Vec<Op> {
    let behind_tunnels = |id: &u32| BACKENDS[*id as usize - 1].0 == Mode::Dsr;
    let services = MEMBERS.into_iter().enumerate();
    let services =
        services.filter(|(_, members)| !members.is_empty() && members.iter().all(behind_tunnels));
    let swapped = services.map(|(index, members)| {
        let count = members.len() as u32;
        let slot = |slot: u32| {
            let before = if history {
                (slot % count) as u16
            } else {
                u16::MAX
            };
            slot_of([((slot + 1) % count) as u16, before, u16::MAX, u16::MAX])
        };
        Op::Slots {
            base: (index as u32) << TABLE,
            slots: (0..1 << TABLE).map(slot).collect(),
        }
    });
    swapped.collect()
}
