//! VIPs on the LAN: whether they are announced, and how often neighbours asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
};

use prometheus_client::encoding::DescriptorEncoder;

use super::{Labels, Scrape, Series, counter, gauge};
use crate::{
    dataplane::{Asked, Counters},
    state::Announced,
};

/// By VIP, over all interfaces.
pub(super) fn asked(counters: &Counters) -> io::Result<BTreeMap<IpAddr, Asked>> {
    let mut sums: BTreeMap<IpAddr, Asked> = BTreeMap::new();
    for ((_, ip), (_, asked)) in counters.announced().map_err(io::Error::other)? {
        let sum = sums.entry(ip).or_default();
        sum.requests += asked.requests;
        sum.responses += asked.responses;
    }
    Ok(sums)
}

impl Scrape {
    pub(super) fn announced(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut names: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        for service in self.state.services.values() {
            for frontend in &service.frontends {
                let of_vip = names.entry(frontend.address.ip()).or_default();
                of_vip.insert(&service.name);
            }
        }
        let (mut announced, mut conflicts) = (Vec::new(), Vec::new());
        let mut told: BTreeMap<IpAddr, u64> = BTreeMap::new();
        for one in &self.state.announcements {
            *told.entry(one.address).or_default() += one.announcements;
            let ip = ("ip", one.address.to_string());
            let interface = ("interface", one.interface.clone());
            let (here, disputed) = match &one.state {
                Announced::Probing => (0, 0),
                Announced::Announced { claimed_by } => (1, i64::from(claimed_by.is_some())),
                Announced::Conflict { .. } => (0, 1),
            };
            conflicts.push((vec![ip.clone(), interface.clone()], disputed));
            let protocol = if one.address.is_ipv4() { "arp" } else { "ndp" };
            for service in names.get(&one.address).into_iter().flatten() {
                let labels = vec![
                    ("service", (*service).to_owned()),
                    ip.clone(),
                    interface.clone(),
                    ("protocol", protocol.to_owned()),
                ];
                announced.push((labels, here));
            }
        }
        let help = "1 where neighbours are told that the VIP is here";
        gauge(encoder, "announced", help, announced)?;
        let help = "1 while another host says that it has the VIP";
        gauge(encoder, "address_conflict", help, conflicts)?;
        let series = |value: fn(&Asked) -> u64| -> Series<u64> {
            let asked = self.asked.iter();
            asked.map(|(ip, asked)| (of(ip), value(asked))).collect()
        };
        let help = "ARP requests and neighbour solicitations for the VIP";
        counter(encoder, "l2_requests", help, series(|asked| asked.requests))?;
        let help = "Those that were answered";
        counter(
            encoder,
            "l2_responses",
            help,
            series(|asked| asked.responses),
        )?;
        let help = "Announcements made unasked";
        let told = told.iter().map(|(ip, count)| (of(ip), *count));
        counter(encoder, "l2_gratuitous", help, told.collect())
    }
}

fn of(ip: &IpAddr) -> Labels {
    vec![("ip", ip.to_string())]
}
