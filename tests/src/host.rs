//! The host of tests that need no kernel: `eth0` (2) with 10.0.0.2/24 and `fd00::2/64`, default routes by .1 and `::1`.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_userspace::net::{Address, Facts, Hop, Link, Route, Update};

/// Index of its one interface.
pub const ETH0: u32 = 2;

/// Its default gateways.
pub const GATEWAYS: [&str; 2] = ["10.0.0.1", "fd00::1"];

/// What the agent knows of it. No neighbour has answered yet.
///
/// # Panics
/// Never: the addresses above are addresses.
pub fn facts() -> Facts {
    let mut facts = Facts::default();
    let link = Link {
        name: "eth0".into(),
        up: true,
        mtu: 1500,
        mac: Some([2, 0, 0, 0, 0, 2]),
        xdp_send: true,
        ..Link::default()
    };
    facts.apply(Update::Link(ETH0, Some(link)));
    let nets = [("10.0.0.2/24", "0.0.0.0/0"), ("fd00::2/64", "::/0")];
    for ((own, everything), gateway) in nets.into_iter().zip(GATEWAYS) {
        let net: IpNet = own.parse().expect("a network");
        facts.apply(Update::AddAddress(Address {
            ifindex: ETH0,
            net,
            global: true,
            preferred: true,
        }));
        let everything = everything.parse().expect("a network");
        let gateway = gateway.parse().expect("an address");
        facts.apply(Update::AddRoute(route(net.trunc(), None)));
        facts.apply(Update::AddRoute(route(everything, Some(gateway))));
    }
    facts
}

/// A route of it; without gateway, what is on link.
pub fn route(destination: IpNet, gateway: Option<IpAddr>) -> Route {
    Route {
        destination,
        metric: 0,
        tos: 0,
        hops: vec![Hop {
            ifindex: ETH0,
            gateway,
        }],
        source: None,
        mtu: None,
    }
}
