//! The contract, line by line: a doc line of numbers above a test says which lines it covers (`cargo xtask contract`
//! reads them).

mod backends;
mod forwarding;
mod frontends;
mod hygiene;
mod order;
mod policies;
mod selection;
mod topology;
mod which;

use std::{collections::BTreeMap, net::IpAddr};

use super::*;
use crate::{
    cluster::facts::{
        Address, Change, Endpoint, Ingress, Kind, Node, Object, ObjectKey, Service, ServicePort,
        Slice, SlicePort,
    },
    config::{Frontend, ServiceName},
    desired,
    net::{self, Update, sample},
};

pub(super) const VIP: &str = "203.0.113.10";
pub(super) const VIP6: &str = "2001:db8:5::10";

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

pub(super) fn name(text: &str) -> ServiceName {
    format!("default/{text}").parse().unwrap()
}

pub(super) fn options() -> Options {
    Options {
        node: "n1".into(),
        external_ips: false,
        node_ports: false,
        cluster_ips: false,
        topology_hints: false,
        vip_only_source_ranges: false,
        allow_node_addresses: false,
        nat_addresses: Vec::new(),
        dsr: false,
        tunnel_port: 16_081,
        agents: Some(name("millrace")),
    }
}

pub(super) fn ingress(ip: &str) -> Ingress {
    Ingress {
        ip: Some(ip.into()),
        ip_mode: None,
    }
}

pub(super) fn port(name: &str, protocol: &str, number: i32, node_port: i32) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol: protocol.into(),
        port: number,
        node_port,
    }
}

/// A `LoadBalancer` Service with [`VIP`] and [`VIP6`], cluster IPs, and port 80/TCP.
pub(super) fn web() -> Service {
    Service {
        uid: "uid-web".into(),
        created: 1000,
        kind: "LoadBalancer".into(),
        cluster_ip: "10.96.0.10".into(),
        cluster_ips: vec!["10.96.0.10".into(), "fd00:96::10".into()],
        families: vec!["IPv4".into(), "IPv6".into()],
        ports: vec![port("http", "TCP", 80, 30_080)],
        ingress: vec![ingress(VIP), ingress(VIP6)],
        ..Service::default()
    }
}

/// Ready, on a node.
pub(super) fn endpoint(address: &str, node: &str) -> Endpoint {
    Endpoint {
        address: Address::read(address),
        node: Some(node.into()),
        ..Endpoint::default()
    }
}

pub(super) fn conditions(
    endpoint: Endpoint,
    ready: bool,
    serving: bool,
    terminating: bool,
) -> Endpoint {
    Endpoint {
        ready: Some(ready),
        serving: Some(serving),
        terminating: Some(terminating),
        ..endpoint
    }
}

/// Terminating, still serving.
pub(super) fn leaving(endpoint: Endpoint) -> Endpoint {
    conditions(endpoint, false, true, true)
}

pub(super) fn slice_port(name: &str, protocol: &str, port: i32) -> SlicePort {
    SlicePort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: Some(port),
    }
}

/// A slice of Service `web`, port `http` at 8080.
pub(super) fn slice(endpoints: Vec<Endpoint>) -> Slice {
    Slice {
        uid: "uid-slice".into(),
        service: "web".into(),
        address_type: "IPv4".into(),
        ports: vec![slice_port("http", "TCP", 8080)],
        endpoints,
        ..Slice::default()
    }
}

pub(super) fn slice6(endpoints: Vec<Endpoint>) -> Slice {
    Slice {
        address_type: "IPv6".into(),
        ..slice(endpoints)
    }
}

pub(super) fn node(addresses: &[&str], zone: Option<&str>) -> Node {
    Node {
        uid: "uid-node".into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        internal: addresses.iter().map(|text| ip(text)).collect(),
        zone: zone.map(Into::into),
        leaving: false,
    }
}

pub(super) fn applied(object: Object) -> Change {
    Change::Applied(Box::new(object))
}

pub(super) fn a_service(named: &str, service: Service) -> Change {
    applied(Object::Service(key(named), service))
}

pub(super) fn a_slice(named: &str, slice: Slice) -> Change {
    applied(Object::EndpointSlice(key(named), slice))
}

pub(super) fn a_node(named: &str, node: Node) -> Change {
    applied(Object::Node(ObjectKey::new("", named), node))
}

/// `eth0` (2) with `192.0.2.1/24` and `2001:db8::1/64`, and default routes by it.
pub(super) fn host() -> net::Facts {
    sample::host(&[("192.0.2.1/24", true), ("2001:db8::1/64", true)])
}

/// A cluster that is made of changes.
#[derive(Debug)]
pub(super) struct World {
    pub objects: Objects,
    pub host: net::Facts,
}

impl World {
    /// With this node, `n1`, in zone `a`.
    pub(super) fn new(options: Options) -> Self {
        let mut world = Self {
            objects: Objects::new(options),
            host: host(),
        };
        world.tell([a_node("n1", node(&["192.0.2.1", "2001:db8::1"], Some("a")))]);
        world
    }

    /// With Service `web` and one slice of it.
    pub(super) fn with(options: Options, service: Service, endpoints: Vec<Endpoint>) -> Self {
        let mut world = Self::new(options);
        world.tell([
            a_service("web", service),
            a_slice("web-1", slice(endpoints)),
        ]);
        world
    }

    /// Gives back the names of what is concerned, without namespace.
    pub(super) fn tell(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<String> {
        let mut concerned = std::collections::BTreeSet::new();
        for change in changes {
            concerned.extend(self.objects.apply(change));
        }
        let bare = |name: &ServiceName| name.as_str().trim_start_matches("default/").to_owned();
        concerned.iter().map(bare).collect()
    }

    pub(super) fn built(&self, of: &str) -> (Option<desired::Service>, Vec<Skip>) {
        self.objects.service(&name(of), &self.host)
    }

    pub(super) fn service(&self, of: &str) -> desired::Service {
        self.built(of).0.unwrap()
    }

    /// Reasons and messages.
    pub(super) fn skips(&self, of: &str) -> Vec<String> {
        let told = |skip: Skip| {
            let (kind, reason) = (skip.kind.name(), skip.reason.name());
            format!("{kind} {} {reason}: {}", skip.object, skip.message)
        };
        self.built(of).1.into_iter().map(told).collect()
    }

    /// All frontends as text, in order.
    pub(super) fn frontends(&self, of: &str) -> Vec<String> {
        let service = self.built(of).0;
        let groups = service.iter().flat_map(|service| &service.groups);
        let frontends = groups.flat_map(|group| &group.frontends);
        let mut frontends: Vec<Frontend> = frontends.map(|one| one.frontend).collect();
        frontends.sort();
        frontends.iter().map(ToString::to_string).collect()
    }

    /// What gets new flows of a frontend, by mode and socket.
    pub(super) fn usable(&self, of: &str, frontend: &str) -> Vec<String> {
        let group = self.group(of, frontend);
        let usable = group.backends.iter().filter(|backend| backend.usable());
        usable
            .map(|backend| format!("{} {}", backend.mode.name(), backend.socket))
            .collect()
    }

    pub(super) fn group(&self, of: &str, frontend: &str) -> desired::Group {
        let wanted: Frontend = frontend.parse().unwrap();
        let service = self.service(of);
        let has =
            |group: &&desired::Group| group.frontends.iter().any(|one| one.frontend == wanted);
        service.groups.iter().find(has).unwrap().clone()
    }

    /// Every service and what is skipped.
    pub(super) fn everything(
        &self,
    ) -> BTreeMap<ServiceName, (Option<desired::Service>, Vec<Skip>)> {
        let names = self.objects.names();
        names
            .map(|name| (name.clone(), self.objects.service(name, &self.host)))
            .collect()
    }
}

/// [`VIP`] with port 80.
pub(super) fn vip() -> String {
    format!("{VIP}:80/tcp")
}

pub(super) fn synced(kind: Kind) -> [Change; 2] {
    [Change::ListBegins(kind), Change::ListEnds(kind)]
}
