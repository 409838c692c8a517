//! One line an entry, for golden tests.

use std::{fmt, net::SocketAddr};

use lb_common::abi::Settings;

use super::{Fake, FrontendName, SourceName};

impl fmt::Display for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.settings != Settings::default() {
            writeln!(f, "settings {:?}", self.settings)?;
        }
        for (key, value) in &self.frontends {
            let FrontendName {
                address,
                port,
                protocol,
            } = key;
            writeln!(
                f,
                "frontend {address} port {port} protocol {protocol}: service {} id {}",
                value.service, value.id
            )?;
        }
        for (index, word) in &self.addresses {
            writeln!(f, "address word {index}: {word:016x}")?;
        }
        for SourceName {
            service,
            client,
            bits,
        } in &self.sources
        {
            writeln!(f, "source of service {service}: {client}/{bits}")?;
        }
        for (index, value) in &self.services {
            writeln!(
                f,
                "service {index}: table {:x} members {:x} flags {:x}",
                value.table, value.members, value.flags
            )?;
        }
        for (index, word) in &self.slots {
            writeln!(f, "slot {index}: {word:016x}")?;
        }
        for (index, word) in &self.members {
            writeln!(f, "member {index}: {word}")?;
        }
        for (id, value) in &self.backends {
            writeln!(f, "backend {id}: {value:?}")?;
        }
        for (id, value) in &self.next_hops {
            writeln!(f, "next hop {id}: {value:?}")?;
        }
        for ((service, address, port), id) in &self.targets {
            let socket = SocketAddr::new(*address, *port);
            writeln!(f, "target {socket} of service {service}: backend {id}")?;
        }
        for ifindex in &self.devices {
            writeln!(f, "device {ifindex}")?;
        }
        for (segment, ifindex) in &self.segments.interfaces {
            writeln!(f, "interface {ifindex}: {segment:?}")?;
        }
        for (ifindex, segment) in &self.segments.below {
            writeln!(f, "below {ifindex}: {segment:?}")?;
        }
        for ((ifindex, address), mac) in &self.announced {
            writeln!(f, "announced {address} on {ifindex}: {mac:02x?}")?;
        }
        Ok(())
    }
}
