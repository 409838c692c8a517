//! Next hops, shared by all backends behind the same one.

use std::collections::HashMap;

use lb_common::{
    abi::{NextHop, Segment},
    bytes::Addr,
};

use super::{Op, pools::Pools};
use crate::net::Path;

/// What a next hop is; its id never changes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct HopKey {
    segment: Segment,
    gateway: Addr,
    source: u64,
}

#[derive(Debug)]
struct Hop {
    id: u32,
    users: u32,
    destination: u64,
}

#[derive(Default, Debug)]
pub(super) struct NextHops(HashMap<HopKey, Hop>);

impl HopKey {
    fn of(path: &Path) -> Self {
        Self {
            segment: path.segment,
            gateway: path.gateway.into(),
            source: NextHop::source_word(path.own_mac, path.mtu),
        }
    }
}

impl NextHops {
    /// Adds a user of the next hop of a path, and brings its neighbour up to date. Id 0 and no key if there is no room:
    /// the program then asks the kernel for each flow.
    pub(super) fn acquire(
        &mut self,
        path: &Path,
        pools: &mut Pools,
        ops: &mut Vec<Op>,
    ) -> (u32, Option<HopKey>) {
        let key = HopKey::of(path);
        let resolved = if path.neighbour.is_some() {
            NextHop::RESOLVED
        } else {
            0
        };
        let send = if path.xdp_send { NextHop::XDP_SEND } else { 0 };
        let mac = path.neighbour.unwrap_or_default();
        let destination = NextHop::destination_word(mac, resolved | send);
        if let Some(hop) = self.0.get_mut(&key) {
            hop.users += 1;
            if hop.destination != destination {
                hop.destination = destination;
                ops.push(Op::Neighbour {
                    id: hop.id,
                    destination,
                });
            }
            return (hop.id, Some(key));
        }
        let Ok(id) = pools.id("next hops", |pools| &mut pools.next_hops, ops) else {
            return (0, None);
        };
        let value = NextHop {
            destination,
            source: key.source,
            segment: key.segment,
            gateway: key.gateway,
        };
        ops.push(Op::NextHop { id, value });
        let users = 1;
        self.0.insert(
            key,
            Hop {
                id,
                users,
                destination,
            },
        );
        (id, Some(key))
    }

    pub(super) fn release(&mut self, key: HopKey, pools: &mut Pools) {
        if let Some(hop) = self.0.get_mut(&key) {
            hop.users -= 1;
            if hop.users == 0 {
                pools.next_hops.release(hop.id);
                self.0.remove(&key);
            }
        }
    }

    /// Adds a user of a next hop that is in the map. None if another id means the same.
    pub(super) fn restore(&mut self, id: u32, value: &NextHop) -> Option<HopKey> {
        let key = HopKey {
            segment: value.segment,
            gateway: value.gateway,
            source: value.source,
        };
        let hop = self.0.entry(key).or_insert(Hop {
            id,
            users: 0,
            destination: value.destination,
        });
        if hop.id != id {
            return None;
        }
        hop.users += 1;
        Some(key)
    }
}
