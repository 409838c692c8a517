//! The snapshot, and how one netlink message changes it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{LocalPorts, Masquerade, Route, Routes};

/// What is known of this host's network.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Facts {
    /// By interface index.
    pub links: BTreeMap<u32, Link>,
    pub addresses: Vec<Address>,
    pub routes: Routes,
    /// By interface index and address. Only neighbours whose link-layer address is known and valid.
    pub neighbours: HashMap<(u32, IpAddr), Neighbour>,
    pub local_ports: LocalPorts,
    /// Interfaces that have an XDP program of ours. Not from netlink: no update touches it.
    pub attached: BTreeSet<u32>,
    /// Rules that give packets another source. Likewise; read when a config is judged.
    pub masquerades: Vec<Masquerade>,
}

/// An interface.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, as the kernel tells them"
)]
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Link {
    pub name: String,
    pub up: bool,
    /// The other end of the wire is there.
    pub carrier: bool,
    pub loopback: bool,
    /// Bytes, without the Ethernet header.
    pub mtu: u32,
    /// None where the link layer is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// The kind of a virtual device, as `ip -d link` calls it; empty for a physical one.
    pub kind: String,
    /// Of a VLAN device.
    pub vlan: Option<Vlan>,
    /// Index of the device that this one is a port of.
    pub controller: Option<u32>,
    /// XDP can send on this device, if `needs_program` is met.
    pub xdp_send: bool,
    /// Its driver sends for XDP only while it has an XDP program itself.
    pub needs_program: bool,
}

/// What a VLAN device stands upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vlan {
    /// Index of the device below.
    pub below: u32,
    /// As [`lb_common::abi::tag`] has it.
    pub tag: u32,
}

/// An own address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Address {
    pub ifindex: u32,
    /// The address and the prefix of its subnet.
    pub net: IpNet,
    /// Valid beyond its link.
    pub global: bool,
    /// May be the source of new flows: not tentative, duplicate, deprecated or secondary.
    pub preferred: bool,
}

/// A neighbour with a valid link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    pub mac: [u8; 6],
    /// Set by hand: it never ages.
    pub permanent: bool,
    /// Confirmed not long ago, or permanent; the kernel checks others when they are used.
    pub fresh: bool,
}

/// One change. A gone neighbour and one that no longer resolves are the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Update {
    /// Everything anew: at the start, and after messages were lost.
    All(Box<Facts>),
    Link(u32, Option<Link>),
    AddAddress(Address),
    RemoveAddress(Address),
    AddRoute(Route),
    RemoveRoute(Route),
    Neighbour(u32, IpAddr, Option<Neighbour>),
    LocalPorts(LocalPorts),
}

impl Facts {
    /// This host's own addresses, those of the loopback interface included.
    pub fn host_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(|address| address.net.addr())
    }

    pub fn is_host_address(&self, ip: IpAddr) -> bool {
        self.host_addresses().any(|own| own == ip)
    }

    /// Whether XDP can send on an interface as it is now.
    pub fn xdp_sends(&self, ifindex: u32) -> bool {
        let can = |link: &Link| {
            link.up && link.xdp_send && (!link.needs_program || self.attached.contains(&ifindex))
        };
        self.links.get(&ifindex).is_some_and(can)
    }

    /// The smallest MTU of the interfaces with our program, in bytes; 0 if there are none.
    pub fn uplink_mtu(&self) -> u32 {
        let links = self
            .attached
            .iter()
            .filter_map(|index| self.links.get(index));
        links.map(|link| link.mtu).min().unwrap_or(0)
    }

    /// Neighbours that are known here or there and not alike.
    pub fn neighbours_that_differ(&self, other: &Self) -> Vec<(u32, IpAddr)> {
        let gone = self
            .neighbours
            .keys()
            .filter(|key| !other.neighbours.contains_key(key));
        let new = other
            .neighbours
            .iter()
            .filter(|(key, known)| self.neighbours.get(key) != Some(known));
        gone.chain(new.map(|(key, _)| key)).copied().collect()
    }

    /// Whether links, addresses, routes or ports are not alike.
    pub fn differs_beyond_neighbours(&self, other: &Self) -> bool {
        self.links != other.links
            || self.addresses != other.addresses
            || self.routes != other.routes
            || self.local_ports != other.local_ports
    }

    /// Whether anything became different.
    pub fn apply(&mut self, update: Update) -> bool {
        match update {
            Update::All(mut facts) => {
                facts.attached = std::mem::take(&mut self.attached);
                facts.masquerades = std::mem::take(&mut self.masquerades);
                let changed =
                    self.differs_beyond_neighbours(&facts) || self.neighbours != facts.neighbours;
                *self = *facts;
                changed
            }
            Update::Link(index, Some(link)) => self.links.insert(index, link.clone()) != Some(link),
            Update::Link(index, None) => {
                // The kernel announces neither the routes nor the neighbours that go with a link.
                self.neighbours.retain(|(on, _), _| *on != index);
                self.addresses.retain(|address| address.ifindex != index);
                self.routes.remove_link(index);
                self.links.remove(&index).is_some()
            }
            Update::AddAddress(address) => {
                let same = |known: &&mut Address| {
                    known.ifindex == address.ifindex && known.net == address.net
                };
                if let Some(known) = self.addresses.iter_mut().find(same) {
                    return std::mem::replace(known, address) != address;
                }
                self.addresses.push(address);
                true
            }
            Update::RemoveAddress(address) => {
                let before = self.addresses.len();
                self.addresses
                    .retain(|known| known.ifindex != address.ifindex || known.net != address.net);
                self.addresses.len() != before
            }
            Update::AddRoute(route) => self.routes.insert(route),
            Update::RemoveRoute(route) => self.routes.remove(&route),
            Update::Neighbour(index, ip, Some(neighbour)) => {
                self.neighbours.insert((index, ip), neighbour) != Some(neighbour)
            }
            Update::Neighbour(index, ip, None) => self.neighbours.remove(&(index, ip)).is_some(),
            Update::LocalPorts(ports) => {
                let changed = self.local_ports != ports;
                self.local_ports = ports;
                changed
            }
        }
    }
}
