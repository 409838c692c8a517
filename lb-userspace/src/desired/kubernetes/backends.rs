//! A3: what may serve one port in one family, joined from all slices of a Service.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use super::skip::{Reason, Skips};
use crate::cluster::facts::{Address, Endpoint, ObjectKey, Slice, SlicePort};

/// An endpoint for one port: address and port are what makes it (A3.7).
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, as the API has them"
)]
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Candidate<'a> {
    pub address: IpAddr,
    pub port: u16,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// `nodeName` (A3.12).
    pub node: Option<&'a Arc<str>>,
    /// On this node, by `nodeName` alone (A3.13).
    pub local: bool,
    pub zone: Option<&'a Arc<str>>,
    pub zone_hints: &'a [Arc<str>],
    pub node_hints: &'a [Arc<str>],
}

/// The port of a Service that is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub name: &'a str,
    /// `TCP`, `UDP`.
    pub protocol: &'a str,
    pub v4: bool,
    /// This node.
    pub node: &'a str,
}

/// Each address and port once, in their order. `is_vip`: an address that frontends have.
pub(super) fn candidates<'a>(
    slices: impl IntoIterator<Item = (&'a ObjectKey, &'a Slice)>,
    wanted: Wanted<'_>,
    is_vip: impl Fn(IpAddr) -> bool,
    skips: &mut Skips,
) -> Vec<Candidate<'a>> {
    let mut joined: BTreeMap<(IpAddr, u16), Candidate<'a>> = BTreeMap::new();
    for (key, slice) in slices {
        let v4 = match slice.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            // Names are not resolved here.
            _ => continue,
        };
        if v4 != wanted.v4 {
            continue;
        }
        for port in slice.ports.iter().filter_map(|port| number(port, wanted)) {
            for endpoint in &slice.endpoints {
                let Some(address) = address(key, endpoint, v4, &is_vip, skips) else {
                    continue;
                };
                let new = candidate(endpoint, address, port, wanted.node);
                match joined.entry((address, port)) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(new);
                    }
                    Entry::Occupied(mut known) => {
                        let merged = merged(known.get(), new);
                        known.insert(merged);
                    }
                }
            }
        }
    }
    joined.into_values().collect()
}

/// The slice's own number for the port (A3.7); none where it has no such port (A3.8).
fn number(port: &SlicePort, wanted: Wanted<'_>) -> Option<u16> {
    let named = port.name.as_deref() == Some(wanted.name);
    let protocol = port.protocol.as_deref().unwrap_or("TCP") == wanted.protocol;
    let number = u16::try_from(port.port?).ok()?;
    (named && protocol && number > 0).then_some(number)
}

fn address(
    slice: &ObjectKey,
    endpoint: &Endpoint,
    v4: bool,
    is_vip: &impl Fn(IpAddr) -> bool,
    skips: &mut Skips,
) -> Option<IpAddr> {
    let ip = match &endpoint.address {
        Address::Ip(ip) => *ip,
        Address::Text(text) => {
            let told = format!("endpoint \"{text}\" is not an IP address");
            skips.slice(slice, Reason::InvalidEndpoint, told);
            return None;
        }
    };
    if ip.is_ipv4() != v4 {
        let family = if v4 { "IPv4" } else { "IPv6" };
        let told = format!("endpoint {ip} in a slice of addressType {family}");
        skips.slice(slice, Reason::IncorrectIpVersion, told);
        return None;
    }
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if link_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
        let told = format!("endpoint {ip}: nothing is forwarded to such an address");
        skips.slice(slice, Reason::InvalidEndpoint, told);
        return None;
    }
    if is_vip(ip) {
        let told = format!("endpoint {ip} is a VIP: packets would go round in circles");
        skips.slice(slice, Reason::InvalidEndpoint, told);
        return None;
    }
    Some(ip)
}

fn candidate<'a>(endpoint: &'a Endpoint, address: IpAddr, port: u16, node: &str) -> Candidate<'a> {
    Candidate {
        address,
        port,
        ready: endpoint.ready.unwrap_or(true),
        serving: endpoint.serving.unwrap_or(true),
        terminating: endpoint.terminating.unwrap_or(false),
        node: endpoint.node.as_ref(),
        local: endpoint.node.as_deref() == Some(node),
        zone: endpoint.zone.as_ref(),
        zone_hints: &endpoint.zone_hints,
        node_hints: &endpoint.node_hints,
    }
}

/// Two copies, as while an endpoint moves from slice to slice (A3.6): the readier one, on this node if either says so.
fn merged<'a>(known: &Candidate<'a>, new: Candidate<'a>) -> Candidate<'a> {
    let rank = |one: &Candidate<'_>| (one.ready, one.serving, !one.terminating, one.local);
    let place = if new.local || known.node.is_none() {
        &new
    } else {
        known
    };
    let (local, node, zone) = (place.local, place.node, place.zone);
    let better = if rank(&new) > rank(known) {
        new
    } else {
        known.clone()
    };
    Candidate {
        node,
        local,
        zone,
        ..better
    }
}
