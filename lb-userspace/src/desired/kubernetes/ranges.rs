//! A9: who may be a client.

use ipnet::IpNet;

use super::skip::{Reason, Skips};
use crate::cluster::facts::Service;

/// The prefixes that may reach the Service; none: everyone may. Where every entry is wrong, nobody may (A9.6).
pub(super) fn source_ranges(service: &Service, skips: &mut Skips) -> Option<Vec<IpNet>> {
    let (entries, place): (Vec<&str>, _) = if service.source_ranges.is_empty() {
        let annotation = service.source_ranges_annotation.as_deref()?.trim();
        if annotation.is_empty() {
            return None;
        }
        let entries = annotation.split(',').collect();
        (
            entries,
            "annotation service.beta.kubernetes.io/load-balancer-source-ranges",
        )
    } else {
        let entries = service.source_ranges.iter().map(String::as_str).collect();
        (entries, "spec.loadBalancerSourceRanges[]")
    };
    let mut ranges = Vec::new();
    for entry in entries {
        match entry.trim().parse::<IpNet>() {
            // `10.1.2.3/8` means `10.0.0.0/8`, as kube-proxy reads it.
            Ok(net) => ranges.push(net.trunc()),
            Err(_) => skips.service(
                Reason::InvalidSourceRange,
                format!("{place} \"{entry}\" is not a prefix and allows nobody; write 198.51.100.0/24 or 2001:db8::/32"),
            ),
        }
    }
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges)
}

/// Says that the VIPs of a family are closed, where ranges name the other family only (A9.4).
pub(super) fn tell_of_closed_family(
    ranges: &[IpNet],
    families: impl IntoIterator<Item = bool>,
    skips: &mut Skips,
) {
    for v4 in families {
        let named = ranges.iter().any(|net| net.addr().is_ipv4() == v4);
        if !named && !ranges.is_empty() {
            let family = if v4 { "IPv4" } else { "IPv6" };
            skips.service(
                Reason::SourceRangesLackFamily,
                format!(
                    "no source range is {family}, so no {family} client is allowed; add one, as {}",
                    everyone(v4)
                ),
            );
        }
    }
}

const fn everyone(v4: bool) -> &'static str {
    if v4 { "0.0.0.0/0" } else { "::/0" }
}
