//! Targets: backends of this node, as packets of other nodes name them.

use std::{collections::HashMap, net::IpAddr};

use lb_common::{
    abi::{Mode, TargetKey},
    bytes::{Address, Be16, V4, V6},
};

use super::{Op, placed::Member};

/// Index of the service, and the backend's address and port.
pub(super) type TargetName = (u32, IpAddr, u16);

/// Names a backend of this node, once it is written. What was removed before needs no rest: who reads another's entry in its
/// place sees by the backend that it is another's.
pub(super) fn insert_target(service: u32, member: &mut Member, ops: &mut Vec<Op>) {
    if member.value.mode != Mode::Local as u8 || member.named {
        return;
    }
    ops.push(insert(name(service, member), member.id));
    member.named = true;
}

/// Before the backend's id rests.
pub(super) fn remove_target(service: u32, member: &mut Member, ops: &mut Vec<Op>) {
    if std::mem::take(&mut member.named) {
        ops.push(remove(name(service, member)));
    }
}

const fn name(service: u32, member: &Member) -> TargetName {
    (service, member.key.0, member.key.1)
}

fn insert((service, address, port): TargetName, id: u32) -> Op {
    let port = Be16::new(port);
    match address {
        IpAddr::V4(ip) => Op::InsertTarget4 {
            key: TargetKey::new(service, ip.into(), port),
            id,
        },
        IpAddr::V6(ip) => Op::InsertTarget6 {
            key: TargetKey::new(service, ip.into(), port),
            id,
        },
    }
}

pub(super) fn remove((service, address, port): TargetName) -> Op {
    let port = Be16::new(port);
    match address {
        IpAddr::V4(ip) => Op::RemoveTarget4 {
            key: TargetKey::new(service, ip.into(), port),
        },
        IpAddr::V6(ip) => Op::RemoveTarget6 {
            key: TargetKey::new(service, ip.into(), port),
        },
    }
}

/// What maps hold, by name.
pub(super) fn targets(
    v4: &[(TargetKey<V4>, u32)],
    v6: &[(TargetKey<V6>, u32)],
) -> HashMap<TargetName, u32> {
    fn target<A: Address>((key, id): &(TargetKey<A>, u32)) -> (TargetName, u32) {
        let address = key.address.to_addr().to_ip();
        ((key.service, address, key.port.to_host()), *id)
    }
    v4.iter().map(target).chain(v6.iter().map(target)).collect()
}
