//! What `bpf_fib_lookup` would say, from the network's facts.

use std::{fs, net::IpAddr};

use lb_common::{abi::Hop, tables::Route};

use crate::net::{Facts, path};

/// Facts of the moment.
#[derive(Debug)]
pub(super) struct Routing {
    facts: Facts,
}

impl Routing {
    pub(super) const fn new(facts: Facts) -> Self {
        Self { facts }
    }

    pub(super) const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The way of a packet that XDP meets on `ingress` and that comes in by interface `from`.
    pub(super) fn to(&self, destination: IpAddr, ingress: u32, from: u32) -> Route {
        if !self.forwards(destination, from) {
            return Route::Unknown;
        }
        match path::resolve(&self.facts, destination) {
            Some(path) => match path.neighbour {
                Some(mac) if path.xdp_send || path.segment.ifindex == ingress => Route::Hop {
                    hop: Hop {
                        segment: path.segment,
                        macs: lb_common::bytes::Macs::new(mac, path.own_mac),
                    },
                    mtu: path.mtu,
                    gateway: path.gateway.into(),
                },
                _ => Route::Neighbour {
                    ifindex: path.ifindex,
                    gateway: path.gateway.into(),
                },
            },
            None if self.rejects(destination) => Route::None,
            None => Route::Unknown,
        }
    }

    /// A route that says "no": unreachable, blackhole or prohibit.
    fn rejects(&self, destination: IpAddr) -> bool {
        !self.facts.is_host_address(destination)
            && self
                .facts
                .routes
                .find(destination, |route| route.tos == 0)
                .is_some_and(|route| route.hops.is_empty())
    }

    /// The kernel answers only where forwarding is on: by interface for IPv4, and for IPv6.
    fn forwards(&self, destination: IpAddr, from: u32) -> bool {
        let Some(link) = self.facts.links.get(&from) else {
            return false;
        };
        let family = if destination.is_ipv4() {
            "ipv4"
        } else {
            "ipv6"
        };
        let path = format!("/proc/sys/net/{family}/conf/{}/forwarding", link.name);
        fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
    }
}
