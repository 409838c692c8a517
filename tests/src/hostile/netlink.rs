//! Datagrams of rtnetlink.

use std::net::IpAddr;

use lb_userspace::{
    hostile::datagram,
    net::{Facts, Sending, interfaces, path},
};

use super::input::Input;

/// Datagrams, each behind its length (16 bits). Whatever they tell, the facts that are left can be worked with.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut facts = Facts::default();
    while !input.is_empty() {
        let length = input.u16();
        let before = facts.clone();
        let changed = datagram(input.bytes(length.into()), sending, &mut facts);
        if let Ok(false) = changed {
            assert_eq!(before, facts, "said to be the same");
        }
    }
    interfaces(&facts, &[]);
    for pattern in ["eth*", "*0?", ""] {
        interfaces(&facts, &[pattern.to_owned()]);
    }
    let own: Vec<IpAddr> = facts.host_addresses().collect();
    let neighbours = facts.neighbours.keys().map(|(_, ip)| *ip);
    let networks = facts.routes.iter().map(|route| route.destination.addr());
    for ip in own.iter().copied().chain(neighbours).chain(networks) {
        if let Some(path) = path::resolve(&facts, ip) {
            assert!(!own.contains(&ip), "{ip} is our own, and has {path:?}");
            assert_eq!(path.source.is_ipv4(), ip.is_ipv4(), "{ip}: {path:?}");
        }
    }
}

/// By kind alone: the drivers of the machine that the test runs on are none of its business.
fn sending(_name: &str, kind: &str) -> Sending {
    match kind {
        "veth" => Sending::WithProgram,
        "bridge" => Sending::Never,
        _ => Sending::Always,
    }
}
