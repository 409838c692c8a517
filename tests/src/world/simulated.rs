//! The world's contents for the host's home of the pipeline.

use std::net::IpAddr;

use lb_common::{
    abi::{Announced, AnnouncedKey},
    bytes::{V4, V6},
    sim::World,
};
use lb_userspace::plan::Op;

/// What a kernel's maps would hold after `ops`.
pub fn simulate(ops: &[Op]) -> World {
    let mut world = World {
        reject_tokens: u32::MAX.into(),
        flow_tokens: u32::MAX.into(),
        fragment_tokens: u32::MAX.into(),
        ..World::default()
    };
    for op in ops {
        match op {
            Op::Address { index, word } => {
                world.filter.insert(*index, *word);
            }
            Op::Backend { id, value } => {
                world.backends.insert(*id, *value);
            }
            Op::NextHop { id, value } => {
                world.next_hops.insert(*id, *value);
            }
            Op::Slots { base, slots } => world.slots.extend((*base..).zip(slots.iter().copied())),
            Op::Members { base, members } => {
                world.members.extend((*base..).zip(members.iter().copied()));
            }
            Op::Service { index, value } => {
                world.services.insert(*index, *value);
            }
            Op::InsertFrontend4 { key, value } => {
                world.v4.frontends.insert(*key, *value);
            }
            Op::InsertFrontend6 { key, value } => {
                world.v6.frontends.insert(*key, *value);
            }
            Op::InsertSource4 { key, bits } => {
                let service = u32::from_be(key.service_be);
                world.v4.sources.push((service, key.client, *bits));
            }
            Op::InsertSource6 { key, bits } => {
                let service = u32::from_be(key.service_be);
                world.v6.sources.push((service, key.client, *bits));
            }
            Op::InsertTarget4 { key, id } => {
                world.v4.targets.insert(*key, *id);
            }
            Op::InsertTarget6 { key, id } => {
                world.v6.targets.insert(*key, *id);
            }
            Op::InsertAnnounced {
                ifindex,
                address,
                mac,
            } => {
                let (ifindex, value) = (*ifindex, Announced::new(*mac));
                match address {
                    IpAddr::V4(ip) => {
                        let address = V4::from(*ip);
                        let mut entries = world.v4.announced.borrow_mut();
                        entries.insert(AnnouncedKey { ifindex, address }, value);
                    }
                    IpAddr::V6(ip) => {
                        let address = V6::from(*ip);
                        let mut entries = world.v6.announced.borrow_mut();
                        entries.insert(AnnouncedKey { ifindex, address }, value);
                    }
                }
            }
            Op::InsertInterface { segment, ifindex } => {
                world.interfaces.insert(*segment, *ifindex);
            }
            Op::Settings(_) | Op::InsertDevice { .. } => {}
            other => panic!("{other:?} is none of this world's"),
        }
    }
    world
}
