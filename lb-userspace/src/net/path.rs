//! Pure: the way to an address, from the facts.

use std::net::IpAddr;

use lb_common::abi::Segment;

use super::{Address, Facts, Link, Route};

/// The way that a packet to one address takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    pub ifindex: u32,
    /// Where XDP sends it: that interface, or the device below and its tags.
    pub segment: Segment,
    /// The next hop; on link, the address itself. May be of the other family.
    pub gateway: IpAddr,
    /// The own address that a packet from this host to there has, of the destination's family.
    pub source: IpAddr,
    pub own_mac: [u8; 6],
    /// Bytes, without the Ethernet header.
    pub mtu: u16,
    /// The next hop's link-layer address, if it is known.
    pub neighbour: Option<[u8; 6]>,
    /// XDP can send on the device.
    pub xdp_send: bool,
}

/// None if there is no route, if it rejects, if `destination` is this host itself, if the link is down or not
/// Ethernet, or if this host has no address of that family.
pub fn resolve(facts: &Facts, destination: IpAddr) -> Option<Path> {
    if destination.is_loopback() || facts.is_host_address(destination) {
        return None;
    }
    let route = facts.routes.find(destination, |route| {
        route.tos == 0 && (route.hops.is_empty() || first_hop(facts, route).is_some())
    })?;
    let (hop, link) = first_hop(facts, route)?;
    let gateway = hop.gateway.unwrap_or(destination);
    let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
    let segment = facts.segment(hop.ifindex);
    Some(Path {
        ifindex: hop.ifindex,
        segment,
        gateway,
        source: match route.source {
            Some(source) => source,
            None => source_address(&facts.addresses, hop.ifindex, gateway, destination)?,
        },
        own_mac: link.mac?,
        mtu: mtu.min(u16::MAX.into()) as u16,
        neighbour: facts.neighbours.get(&(hop.ifindex, gateway)).map(|n| n.mac),
        xdp_send: facts.xdp_sends(segment.ifindex),
    })
}

/// Of a multipath route the first way that is up.
fn first_hop<'a>(facts: &'a Facts, route: &Route) -> Option<(super::Hop, &'a Link)> {
    route.hops.iter().find_map(|hop| {
        let link = facts.links.get(&hop.ifindex).filter(|link| link.up)?;
        Some((*hop, link))
    })
}

/// Like the kernel's own choice: an address of the interface in the gateway's subnet, else (IPv6) the one that shares
/// the most bits with the destination, else the first; else one of another interface. Link-local sources only to
/// link-local destinations.
fn source_address(
    addresses: &[Address],
    ifindex: u32,
    gateway: IpAddr,
    destination: IpAddr,
) -> Option<IpAddr> {
    let link_local = is_link_local(destination);
    addresses
        .iter()
        .filter(|address| {
            address.net.addr().is_ipv4() == destination.is_ipv4()
                && (address.global || (link_local && address.ifindex == ifindex))
        })
        .enumerate()
        .max_by_key(|(order, address)| {
            (
                address.ifindex == ifindex,
                address.preferred,
                address.net.contains(&gateway),
                common_bits(address.net.addr(), destination),
                std::cmp::Reverse(*order),
            )
        })
        .map(|(_, address)| address.net.addr())
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Leading bits in common (RFC 6724, section 5, rule 8). IPv4 has no such rule.
fn common_bits(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    }
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
