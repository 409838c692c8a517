//! The network of a host, for tests without one.

use super::{Address, Facts, Hop, Link, Route, Update};

/// `eth0` (2) with these addresses, each with whether it is preferred, and a default route by it for each family that they
/// are of: to `192.0.2.254` and `2001:db8::ff`.
pub(crate) fn host(nets: &[(&str, bool)]) -> Facts {
    let mut facts = Facts::default();
    let link = Link {
        name: "eth0".into(),
        up: true,
        mtu: 1500,
        mac: Some([2, 0, 0, 0, 0, 1]),
        xdp_send: true,
        ..Link::default()
    };
    facts.apply(Update::Link(2, Some(link)));
    for (net, preferred) in nets {
        facts.apply(Update::AddAddress(Address {
            ifindex: 2,
            net: net.parse().unwrap(),
            global: true,
            preferred: *preferred,
        }));
    }
    for (destination, gateway) in [("0.0.0.0/0", "192.0.2.254"), ("::/0", "2001:db8::ff")] {
        let v6 = destination == "::/0";
        if !nets.iter().any(|(net, _)| net.contains(':') == v6) {
            continue;
        }
        facts.apply(Update::AddRoute(Route {
            destination: destination.parse().unwrap(),
            metric: 0,
            tos: 0,
            hops: vec![Hop {
                ifindex: 2,
                gateway: Some(gateway.parse().unwrap()),
            }],
            source: None,
            mtu: None,
        }));
    }
    facts
}
