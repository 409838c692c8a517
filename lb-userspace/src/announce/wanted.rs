//! Pure: which VIPs are to be announced on which interface.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use super::Seat;
use crate::{config::Config, net::Facts};

/// By interface index and VIP.
pub type Wanted = BTreeMap<(u32, IpAddr), Seat>;

/// Every VIP on every interface that has our program and an Ethernet address. An address of this host is the kernel's to
/// announce.
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
    for ifindex in &facts.attached {
        let Some(link) = facts.links.get(ifindex).filter(|link| link.up) else {
            continue;
        };
        let Some(mac) = link.mac else { continue };
        let seat = Seat {
            mac,
            carrier: link.carrier,
            link_local: link_local(facts, *ifindex),
        };
        wanted.extend(vips.iter().map(|vip| ((*ifindex, *vip), seat)));
    }
    wanted
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
