//! What maps hold, as text that a person can judge: owners, addresses and ways, no words of memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::{
    abi::{Backend, FrontendKey, NO_OWNER, NextHop, Region, backend_state, owner, service_flag},
    bytes::Address,
};
use lb_userspace::plan::{Dump, DumpedService};

/// What the maps mean, a line each.
pub(crate) fn lines(dump: &Dump) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let settings = &dump.settings;
    lines.insert(format!(
        "settings: flags {:x}, nat ports {}-{}",
        settings.flags,
        settings.nat_ports & 0xffff,
        settings.nat_ports >> 16
    ));
    let bits: u32 = dump.addresses.values().map(|word| word.count_ones()).sum();
    lines.insert(format!("filter: {bits} bits"));
    for (key, value) in &dump.frontends4 {
        lines.insert(frontend(key, value.service, value.id));
    }
    for (key, value) in &dump.frontends6 {
        lines.insert(frontend(key, value.service, value.id));
    }
    for (key, bits) in &dump.sources4 {
        lines.insert(source(u32::from_be(key.service_be), &key.client, *bits));
    }
    for (key, bits) in &dump.sources6 {
        lines.insert(source(u32::from_be(key.service_be), &key.client, *bits));
    }
    for (index, dumped) in &dump.services {
        service(*index, dumped, dump, &mut lines);
    }
    for ifindex in &dump.devices {
        lines.insert(format!("device {ifindex}"));
    }
    lines
}

fn frontend<A: Address>(key: &FrontendKey<A>, service: u32, id: u32) -> String {
    let ip = key.address.to_addr().to_ip();
    match key.protocol {
        0 => format!("vip {ip}"),
        number => {
            let socket = SocketAddr::new(ip, key.port.to_host());
            let protocol = if number == 6 { "tcp" } else { "udp" };
            format!("frontend {socket}/{protocol}: service {service}, id {id}")
        }
    }
}

fn source<A: Address>(service: u32, client: &A, bits: u32) -> String {
    format!(
        "service {service}: clients {}/{bits}",
        client.to_addr().to_ip()
    )
}

fn service(index: u32, dumped: &DumpedService, dump: &Dump, lines: &mut BTreeSet<String>) {
    let flags = dumped.value.flags;
    if flags & service_flag::LIVE == 0 {
        return;
    }
    let names = [
        (service_flag::FLOWS, " flows"),
        (service_flag::AFFINITY, " affinity"),
        (service_flag::SOURCE_RANGES, " ranges"),
        (service_flag::DROP, " drop"),
    ];
    let set = names.iter().filter(|(bit, _)| flags & bit != 0);
    let set: String = set.map(|(_, name)| *name).collect();
    let mut owned: BTreeMap<u16, u32> = BTreeMap::new();
    for slot in &dumped.slots {
        *owned.entry(owner(*slot, 0)).or_default() += 1;
    }
    let table = dumped
        .slots
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, slot| {
            (sum ^ u64::from(owner(*slot, 0))).wrapping_mul(0x0100_0000_01b3)
        });
    let size = Region(dumped.value.table).size();
    lines.insert(format!(
        "service {index}:{set} {size} slots, owners {table:016x}"
    ));
    for (ordinal, member) in dumped.members.iter().enumerate() {
        let id = *member as u32;
        let slots = owned.get(&(ordinal as u16)).copied().unwrap_or_default();
        let Some(backend) = dump.backends.get(&id).filter(|_| id != 0) else {
            continue;
        };
        if slots == 0 && backend.state == backend_state::DOWN && ordinal as u16 == NO_OWNER {
            continue;
        }
        lines.insert(format!(
            "service {index} ordinal {ordinal}: backend {id}, {slots} slots, {}",
            shown(backend, dump.next_hops.get(&backend.next_hop))
        ));
    }
}

fn shown(backend: &Backend, next_hop: Option<&NextHop>) -> String {
    let mode = ["?", "nat", "ipip", "l2"][usize::from(backend.mode & 3)];
    let state = match backend.state {
        backend_state::USABLE => "usable",
        backend_state::DRAINING => "drains",
        _ => "down",
    };
    let way = next_hop.map_or_else(
        || "asks the kernel".into(),
        |hop| {
            let mac = hop.destination.to_le_bytes();
            let resolved = if hop.destination & NextHop::RESOLVED != 0 {
                format!("to :{:02x}", mac[5])
            } else {
                "unresolved".into()
            };
            format!(
                "by {} via {} {resolved}, mtu {}",
                hop.segment.ifindex,
                hop.gateway.to_ip(),
                hop.mtu()
            )
        },
    );
    let socket = SocketAddr::new(backend.address.to_ip(), backend.port.to_host());
    format!(
        "generation {}, {mode} {socket} from {}, {state}, {way}",
        backend.generation,
        backend.source.to_ip()
    )
}
