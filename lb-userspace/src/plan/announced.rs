//! The VIPs that are announced on the LAN, and the groups at which neighbours ask for those of IPv6.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::bytes::{Mac, V6};

use super::{Op, Planner};

/// By interface index and VIP: the interface's own MAC.
pub type Announced = BTreeMap<(u32, IpAddr), Mac>;

impl Planner {
    /// Brings the announced VIPs up to date.
    pub fn announced(&mut self, announced: Announced, ops: &mut Vec<Op>) {
        let before = std::mem::take(&mut self.announced);
        for (&(ifindex, address), mac) in &before {
            if announced.get(&(ifindex, address)) != Some(mac) {
                ops.push(Op::RemoveAnnounced { ifindex, address });
                if let Some(group) = group(address) {
                    self.filter.remove(group, ops);
                }
            }
        }
        for (&(ifindex, address), mac) in &announced {
            if before.get(&(ifindex, address)) != Some(mac) {
                let mac = *mac;
                ops.push(Op::InsertAnnounced {
                    ifindex,
                    address,
                    mac,
                });
                if let Some(group) = group(address) {
                    self.filter.add(group, ops);
                }
            }
        }
        self.announced = announced;
    }

    /// Takes over what the map holds; the filter has the groups' bits already.
    pub(super) fn restore_announced(&mut self, announced: Announced) {
        let groups = announced.keys().filter_map(|(_, address)| group(*address));
        groups.for_each(|group| self.filter.count(group));
        self.announced = announced;
    }
}

/// Where neighbours ask for an address: IPv4 has no such thing, ARP is a broadcast.
fn group(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(ip) = address else { return None };
    let group = V6::from(ip).solicited_node();
    Some(IpAddr::from(group.to_bytes()))
}
