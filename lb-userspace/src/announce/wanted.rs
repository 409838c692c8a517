//! Pure: which VIPs are to be announced on which interface.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use super::Seat;
use crate::{config::Config, net::Facts};

/// By interface index and VIP.
pub type Wanted = BTreeMap<(u32, IpAddr), Seat>;

/// Every VIP on every interface that has our program and an Ethernet address, and on the VLAN devices upon it that this host
/// has an address on. An address of this host is the kernel's to announce.
pub fn wanted(config: &Config, facts: &Facts) -> Wanted {
    let mut wanted = Wanted::new();
    if !config.announce_l2 {
        return wanted;
    }
    let frontends = config.services.iter().flat_map(|one| &one.frontends);
    let vips: BTreeSet<IpAddr> = frontends.map(|frontend| frontend.address).collect();
    let vips: Vec<_> = vips
        .into_iter()
        .filter(|vip| !facts.is_host_address(*vip))
        .collect();
    for ifindex in segments(facts) {
        let Some(link) = facts.links.get(&ifindex).filter(|link| link.up) else {
            continue;
        };
        let Some(mac) = link.mac else { continue };
        let seat = Seat {
            mac,
            carrier: link.carrier,
            link_local: link_local(facts, ifindex),
        };
        wanted.extend(vips.iter().map(|vip| ((ifindex, *vip), seat)));
    }
    wanted
}

/// Interfaces whose neighbours our program hears.
fn segments(facts: &Facts) -> BTreeSet<u32> {
    let lives_on = |ifindex: u32| {
        let mut addresses = facts.addresses.iter();
        addresses.any(|address| address.ifindex == ifindex && address.global)
    };
    let vlans = facts.links.keys().filter(|ifindex| {
        let below = facts.segment(**ifindex);
        below.tags != 0 && facts.attached.contains(&below.ifindex) && lives_on(**ifindex)
    });
    facts.attached.iter().chain(vlans).copied().collect()
}

/// The address that multicast listener reports come from (RFC 3810, section 5.2.13).
fn link_local(facts: &Facts, ifindex: u32) -> Option<Ipv6Addr> {
    facts
        .addresses
        .iter()
        .filter(|address| address.ifindex == ifindex && address.preferred)
        .find_map(|address| match address.net.addr() {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(ip),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use lb_common::abi::tag;

    use super::*;
    use crate::net::{Address, Link, Update, Vlan};

    const CONFIG: &str = "
apiVersion: config.millrace.io/v1alpha1
kind: MillraceConfiguration
interfaces: [eth0]
announce: {l2: true}
services:
- name: web
  frontends: [\"192.0.2.10:80/tcp\"]
  mode: l2
  backends: []
";

    #[test]
    fn a_vip_is_announced_in_the_vlans_that_this_host_lives_in() {
        let config = Config::parse(CONFIG, "test").unwrap();
        let mut facts = Facts::default();
        // eth0, eth1 and a VLAN device upon each, and one more.
        for (index, below) in [(2, 0), (3, 0), (4, 2), (5, 3), (6, 2)] {
            let vlan = (below != 0).then(|| Vlan {
                below,
                tag: tag(index as u16, false),
            });
            let link = Link {
                name: format!("if{index}"),
                up: true,
                mac: Some([2, 0, 0, 0, 0, index as u8]),
                vlan,
                ..Link::default()
            };
            facts.apply(Update::Link(index, Some(link)));
        }
        for ifindex in [4, 5] {
            facts.apply(Update::AddAddress(Address {
                ifindex,
                net: format!("10.{ifindex}.0.1/24").parse().unwrap(),
                global: true,
                preferred: true,
            }));
        }
        facts.attached.insert(2);
        let on: Vec<_> = wanted(&config, &facts)
            .into_iter()
            .map(|((ifindex, _), seat)| (ifindex, seat.mac[5]))
            .collect();
        assert_eq!(on, [(2, 2), (4, 4)]);
    }
}
