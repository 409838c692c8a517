//! A2: the frontends that a Service asks for, by port and family.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Options,
    rule::Rule,
    skip::{Reason, Skips},
};
use crate::{
    cluster::facts::{Node, Service, ServicePort},
    config::{Frontend, Protocol},
};

/// Where in the Service a frontend's address stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Class {
    LoadBalancer,
    ExternalIp,
    ClusterIp,
    NodePort,
}

impl Class {
    /// For clients outside the cluster by its nature.
    pub(super) const fn is_external(self) -> bool {
        !matches!(self, Self::ClusterIp)
    }

    pub(super) const fn rule(self) -> Rule {
        match self {
            Self::LoadBalancer => Rule::InStatus,
            Self::ExternalIp => Rule::InExternalIps,
            Self::ClusterIp => Rule::OfClusterIp,
            Self::NodePort => Rule::OfNodePort,
        }
    }

    /// The whole address is a VIP.
    pub(super) const fn is_vip(self) -> bool {
        !matches!(self, Self::NodePort)
    }
}

/// A frontend that a Service asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Asked {
    pub frontend: Frontend,
    pub class: Class,
    /// Index in `spec.ports`.
    pub port: usize,
}

/// All of them, each once: where one address stands in two places, the first of [`Class`] counts.
pub(super) fn frontends(
    service: &Service,
    options: &Options,
    own: Option<&Node>,
    skips: &mut Skips,
) -> Vec<Asked> {
    let mut addresses = vip_addresses(service, options, skips);
    // The address comes first: one that stands twice is taken by its first class.
    addresses.sort_by_key(|(class, _)| *class);
    let (mut asked, mut seen) = (Vec::new(), BTreeSet::new());
    for (index, port) in service.ports.iter().enumerate() {
        // Of a Service that has no frontend of ours, nobody wants to know.
        let node_port = if options.node_ports {
            port.node_port
        } else {
            0
        };
        if addresses.is_empty() && node_port == 0 {
            continue;
        }
        let Some(protocol) = protocol(port, skips) else {
            continue;
        };
        let vips = addresses
            .iter()
            .map(|(class, address)| (*class, *address, port.port));
        let nodes = primary(own).map(|address| (Class::NodePort, address, node_port));
        for (class, address, number) in vips.chain(nodes) {
            let Some(number) = u16::try_from(number).ok().filter(|number| *number > 0) else {
                continue;
            };
            let frontend = Frontend {
                address,
                port: number,
                protocol,
            };
            if seen.insert(frontend) {
                asked.push(Asked {
                    frontend,
                    class,
                    port: index,
                });
            }
        }
    }
    asked
}

/// Families as `IPv4` (true) and IPv6 (false).
fn vip_addresses(service: &Service, options: &Options, skips: &mut Skips) -> Vec<(Class, IpAddr)> {
    let mut addresses = Vec::new();
    if service.kind == "LoadBalancer" {
        for ingress in &service.ingress {
            // `Proxy` is to leave the node, to a balancer that speaks the PROXY protocol or ends TLS (A2.4).
            let vip = ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
            let Some(ip) = ingress.ip.as_deref().filter(|_| vip) else {
                continue;
            };
            let place = "status.loadBalancer.ingress[].ip";
            addresses.extend(vip_address(ip, place, skips).map(|ip| (Class::LoadBalancer, ip)));
        }
    }
    if options.external_ips {
        for ip in &service.external_ips {
            let read = vip_address(ip, "spec.externalIPs[]", skips);
            addresses.extend(read.map(|ip| (Class::ExternalIp, ip)));
        }
    }
    if options.cluster_ips {
        let first = std::slice::from_ref(&service.cluster_ip);
        let all: &[String] = if service.families.is_empty() || service.cluster_ips.is_empty() {
            first
        } else {
            // One for each family; more would be nobody's.
            &service.cluster_ips[..service.cluster_ips.len().min(service.families.len())]
        };
        for ip in all {
            let read = vip_address(ip, "spec.clusterIPs[]", skips);
            addresses.extend(read.map(|ip| (Class::ClusterIp, ip)));
        }
    }
    addresses
}

fn vip_address(text: &str, place: &str, skips: &mut Skips) -> Option<IpAddr> {
    let good = |ip: &IpAddr| !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast());
    let ip = text.parse().ok().filter(good);
    if ip.is_none() {
        skips.service(
            Reason::InvalidAddress,
            format!("{place} \"{text}\" cannot be a VIP; use a unicast address that clients reach by a network"),
        );
    }
    ip
}

fn protocol(port: &ServicePort, skips: &mut Skips) -> Option<Protocol> {
    match port.protocol.as_str() {
        "" | "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        other => {
            skips.service(
                Reason::UnsupportedProtocol,
                format!(
                    "port {} is {other}, which is left to kube-proxy; TCP and UDP are served",
                    port.port
                ),
            );
            None
        }
    }
}

/// The first address of each family (A2.2).
fn primary(own: Option<&Node>) -> impl Iterator<Item = IpAddr> {
    let addresses = own.map_or(&[][..], |node| &node.addresses);
    let first = |v4: bool| addresses.iter().find(|ip| ip.is_ipv4() == v4).copied();
    [first(true), first(false)].into_iter().flatten()
}
