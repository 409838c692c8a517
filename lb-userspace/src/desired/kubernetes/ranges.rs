//! A9: who may be a client.

use ipnet::IpNet;

use super::{
    rule::Rule,
    skip::{Reason, Skips},
};
use crate::cluster::facts::Service;

/// The prefixes that may reach a Service.
#[derive(Debug)]
pub(super) struct Ranges {
    pub nets: Vec<IpNet>,
    /// Where they stand.
    rule: Rule,
}

impl Ranges {
    /// By which rule clients of a family are let in, or none of them.
    pub(super) fn rule(&self, v4: bool) -> Rule {
        if self.nets.is_empty() {
            Rule::NoValidRange
        } else if self.name(v4) {
            self.rule
        } else {
            Rule::RangesOfOtherFamily
        }
    }

    fn name(&self, v4: bool) -> bool {
        self.nets.iter().any(|net| net.addr().is_ipv4() == v4)
    }

    /// Says that the VIPs of a family are closed, where ranges name the other family only (A9.4).
    pub(super) fn tell_of_closed_family(
        &self,
        families: impl IntoIterator<Item = bool>,
        skips: &mut Skips,
    ) {
        for v4 in families {
            if self.rule(v4) == Rule::RangesOfOtherFamily {
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
}

/// None: everyone may. Where every entry is wrong, nobody may (A9.6).
pub(super) fn source_ranges(service: &Service, skips: &mut Skips) -> Option<Ranges> {
    let (entries, place, rule): (Vec<&str>, _, _) = if service.source_ranges.is_empty() {
        let annotation = service.source_ranges_annotation.as_deref()?.trim();
        if annotation.is_empty() {
            return None;
        }
        let entries = annotation.split(',').collect();
        (
            entries,
            "annotation service.beta.kubernetes.io/load-balancer-source-ranges",
            Rule::RangesOfAnnotation,
        )
    } else {
        let entries = service.source_ranges.iter().map(String::as_str).collect();
        (entries, "spec.loadBalancerSourceRanges[]", Rule::Ranges)
    };
    let mut nets = Vec::new();
    for entry in entries {
        match entry.trim().parse::<IpNet>() {
            // `10.1.2.3/8` means `10.0.0.0/8`, as kube-proxy reads it.
            Ok(net) => nets.push(net.trunc()),
            Err(_) => skips.service(
                Reason::InvalidSourceRange,
                format!("{place} \"{entry}\" is not a prefix and allows nobody; write 198.51.100.0/24 or 2001:db8::/32"),
            ),
        }
    }
    nets.sort_unstable();
    nets.dedup();
    Some(Ranges { nets, rule })
}

const fn everyone(v4: bool) -> &'static str {
    if v4 { "0.0.0.0/0" } else { "::/0" }
}
