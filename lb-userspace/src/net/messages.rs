//! Netlink messages as updates of the facts.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::abi::tag;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{
        InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
        VlanProtocol,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
        RouteNextHopFlags, RouteType, RouteVia,
    },
};

use super::{Address, Hop, Link, Neighbour, Route, Update, Vlan};

/// Says whether XDP can send on an interface, given its name and kind.
pub type XdpSend = fn(name: &str, kind: &str) -> Sending;

/// Whether XDP can send on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sending {
    Never,
    /// While it has an XDP program itself.
    WithProgram,
    Always,
}

/// What a multicast message changes; None if it is nothing that we keep.
pub(crate) fn update(message: RouteNetlinkMessage, xdp_send: XdpSend) -> Option<Update> {
    Some(match message {
        RouteNetlinkMessage::NewLink(message) => {
            let (index, link) = link(message, xdp_send)?;
            Update::Link(index, Some(link))
        }
        // A port that leaves its bridge is announced as a deletion, too, with the bridge's family.
        RouteNetlinkMessage::DelLink(message) => match message.header.interface_family {
            AddressFamily::Unspec => Update::Link(message.header.index, None),
            _ => return None,
        },
        RouteNetlinkMessage::NewAddress(message) => Update::AddAddress(address(&message)?),
        RouteNetlinkMessage::DelAddress(message) => Update::RemoveAddress(address(&message)?),
        RouteNetlinkMessage::NewRoute(message) => Update::AddRoute(route(message)?),
        RouteNetlinkMessage::DelRoute(message) => Update::RemoveRoute(route(message)?),
        RouteNetlinkMessage::NewNeighbour(message) => {
            let (index, ip, neighbour) = neighbour(&message)?;
            Update::Neighbour(index, ip, neighbour)
        }
        RouteNetlinkMessage::DelNeighbour(message) => {
            let (index, ip, _) = neighbour(&message)?;
            Update::Neighbour(index, ip, None)
        }
        _ => return None,
    })
}

pub(super) fn link(message: LinkMessage, xdp_send: XdpSend) -> Option<(u32, Link)> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let (mut below, mut elsewhere, mut tag) = (None, false, None);
    let mut link = Link {
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac)
                if message.header.link_layer_type == LinkLayerType::Ether =>
            {
                link.mac = mac.try_into().ok();
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                        LinkInfo::Data(InfoData::Vlan(infos)) => tag = vlan_tag(&infos),
                        _ => {}
                    }
                }
            }
            LinkAttribute::Link(index) => below = Some(index),
            // The device below is in another namespace.
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            _ => {}
        }
    }
    if let (Some(below), false, Some(tag)) = (below, elsewhere, tag) {
        link.vlan = Some(Vlan { below, tag });
    }
    if link.mac.is_some() {
        let sending = xdp_send(&link.name, &link.kind);
        link.xdp_send = sending != Sending::Never;
        link.needs_program = sending == Sending::WithProgram;
    }
    Some((message.header.index, link))
}

fn vlan_tag(infos: &[InfoVlan]) -> Option<u32> {
    let service = infos.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
    infos.iter().find_map(|info| match info {
        InfoVlan::Id(number) => Some(tag(*number, service)),
        _ => None,
    })
}

pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            // The full set: the header holds the first eight only.
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let unfit = AddressFlags::Tentative
        | AddressFlags::Dadfailed
        | AddressFlags::Deprecated
        | AddressFlags::Secondary;
    Some(Address {
        ifindex: message.header.index,
        // IPv6 without a peer has no IFA_LOCAL.
        net: IpNet::new(local.or(peer)?, message.header.prefix_len).ok()?,
        global: message.header.scope == AddressScope::Universe,
        preferred: !flags.intersects(unfit),
    })
}

pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(u32, IpAddr, Option<Neighbour>)> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                ip = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                ip = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
            }
            _ => {}
        }
    }
    let state = message.header.state;
    let valid = matches!(
        state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    let lasting = matches!(state, NeighbourState::Permanent | NeighbourState::Noarp);
    let neighbour = mac.filter(|_| valid).map(|mac| Neighbour {
        mac,
        permanent: lasting,
        // What is being checked needs no push.
        fresh: state != NeighbourState::Stale,
    });
    Some((message.header.ifindex, ip?, neighbour))
}

/// None for routes of other tables and for kinds that forward nothing.
pub(super) fn route(message: RouteMessage) -> Option<Route> {
    let v4 = message.header.address_family == AddressFamily::Inet;
    let everything: IpAddr = if v4 {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let mut table = u32::from(message.header.table);
    let mut destination = everything;
    let mut single = (None, None);
    let mut route = Route {
        destination: IpNet::new(everything, 0).ok()?,
        metric: 0,
        tos: message.header.tos,
        hops: Vec::new(),
        source: None,
        mtu: None,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = number,
            RouteAttribute::Destination(address) => destination = ip(&address)?,
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::PrefSource(address) => route.source = ip(&address),
            RouteAttribute::Oif(index) => single.0 = Some(index),
            RouteAttribute::MultiPath(hops) => {
                route.hops = hops.iter().filter_map(way).collect();
            }
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            other => single.1 = gateway(&other).or(single.1),
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    route.destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    match message.header.kind {
        RouteType::Unicast => {
            if let (Some(ifindex), gateway) = single {
                route.hops.push(Hop { ifindex, gateway });
            }
            (!route.hops.is_empty()).then_some(route)
        }
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => {
            route.hops.clear();
            Some(route)
        }
        _ => None,
    }
}

fn way(hop: &RouteNextHop) -> Option<Hop> {
    let unfit = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    (!hop.flags.intersects(unfit)).then(|| Hop {
        ifindex: hop.interface_index,
        gateway: hop.attributes.iter().find_map(gateway),
    })
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
