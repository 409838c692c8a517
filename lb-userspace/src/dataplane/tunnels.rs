//! The tunnels between nodes as the maps have them, for who looks without an agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use lb_common::{
    abi::{
        Backend, Frontend, FrontendKey, Mode, Service, Settings, SourceKey, Tunnel, backend_state,
        service_flag,
    },
    bytes::Address,
};

use super::{Bpf, DumpError, dump};

/// This node's ends of the tunnels, and the others'.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tunnels {
    /// Where packets of others arrive, over UDP, on every node.
    pub port: u16,
    /// Bytes of the largest packet that this node's uplinks carry.
    pub mtu: u32,
    /// Own ports whose packets are taken for replies, if there are any.
    pub nat_ports: Option<RangeInclusive<u16>>,
    pub own: BTreeSet<IpAddr>,
    /// From where packets are taken.
    pub others: BTreeSet<IpAddr>,
    /// Those of them that new flows are sent to, with the own address that they are sent from.
    pub used: BTreeMap<IpAddr, IpAddr>,
}

impl Bpf {
    /// None where this node has no end of any tunnel.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn tunnels(&mut self) -> Result<Option<Tunnels>, DumpError> {
        let settings: Settings = dump::element(&mut self.settings, 0)?;
        let port = Tunnel(settings.tunnel).port();
        let ports = [settings.nat_ports, settings.nat_ports >> 16].map(|port| port as u16);
        let mut found = Tunnels {
            port: port.to_host(),
            mtu: settings.mtu,
            nat_ports: (settings.nat_ports != 0).then(|| ports[0]..=ports[1]),
            own: BTreeSet::new(),
            others: BTreeSet::new(),
            used: BTreeMap::new(),
        };
        let mut ends = at_port(found.port, dump::entries(&self.frontends4)?);
        ends.extend(at_port(found.port, dump::entries(&self.frontends6)?));
        let mut services = BTreeSet::new();
        for (own, index) in ends {
            let service: Service = dump::element(&mut self.services, index)?;
            if service.flags & service_flag::TUNNEL != 0 {
                found.own.insert(own);
                services.insert(index);
            }
        }
        if found.own.is_empty() {
            return Ok(None);
        }
        found.others = hosts(&services, dump::sources(&self.sources4)?);
        let others6 = hosts(&services, dump::sources(&self.sources6)?);
        found.others.extend(others6);
        for id in 0..self.backends.elements() {
            let Backend {
                address,
                source,
                mode,
                state,
                ..
            } = dump::element(&mut self.backends, id)?;
            if mode == Mode::Dsr as u8 && state == backend_state::USABLE {
                found.used.insert(address.to_ip(), source.to_ip());
            }
        }
        Ok(Some(found))
    }
}

/// Addresses that have a UDP frontend at this port, and the service of each.
fn at_port<A: Address>(
    port: u16,
    frontends: Vec<(FrontendKey<A>, Frontend)>,
) -> Vec<(IpAddr, u32)> {
    const UDP: u8 = 17;
    let ends = frontends
        .into_iter()
        .filter(|(key, _)| (key.port.to_host(), key.protocol) == (port, UDP));
    ends.map(|(key, frontend)| (key.address.to_addr().to_ip(), frontend.service))
        .collect()
}

/// Single addresses among the source ranges of these services.
fn hosts<A: Address>(
    services: &BTreeSet<u32>,
    sources: Vec<(SourceKey<A>, u32)>,
) -> BTreeSet<IpAddr> {
    let hosts = sources.into_iter().filter(|(key, bits)| {
        services.contains(&u32::from_be(key.service_be)) && *bits == A::WORDS as u32 * 32
    });
    hosts.map(|(key, _)| key.client.to_addr().to_ip()).collect()
}
