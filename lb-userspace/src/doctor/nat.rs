//! Checks of what `nat` shares with the host: ports and addresses.

use super::{Facts, Line};
use crate::{
    attach::Mend,
    config::Config,
    desired,
    net::{LocalPorts, Masquerade},
};

const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";

pub(super) fn lines(facts: &Facts) -> Vec<Line> {
    vec![ports(facts), masquerading(facts)]
}

/// Ports of `nat` that sockets of the host may take by themselves. Without a configuration the defaults are judged.
fn ports(facts: &Facts) -> Line {
    const NAME: &str = "nat ports";
    let local = &facts.network.local_ports;
    let config = config(facts);
    let default = 61_000..=65_535;
    let ports = config.map_or(&default, |config| &config.nat.ports);
    let shown = format!("{}-{}", ports.start(), ports.end());
    let Some(port) = local.overlap(ports.clone()) else {
        return Line::ok(NAME, format!("{shown} are free"));
    };
    let found = format!(
        "the host may take {port} of {shown} for its own connections (ip_local_port_range {}-{})",
        local.range.start(),
        local.range.end()
    );
    let mend = Mend::Sysctl {
        key: RESERVED.to_owned(),
        value: reserved(local, &shown),
    };
    // With an address that sockets do not take, or without any `nat`, it does not matter.
    let refused = shares_address(facts);
    match config {
        Some(_) if refused => Line::unfit(NAME, found, "").mended_by(mend),
        Some(_) => Line::ok(
            NAME,
            format!("{found}, but not of the addresses that `nat` uses"),
        ),
        None => Line::limit(NAME, found, "").mended_by(mend),
    }
}

/// Whether `nat` would use an address that the host's own sockets use.
fn shares_address(facts: &Facts) -> bool {
    config(facts)
        .is_some_and(|config| desired::shared_nat_address(config, &facts.network).is_some())
}

fn config(facts: &Facts) -> Option<&Config> {
    facts.config.as_ref()?.as_ref().ok()
}

/// What is reserved already, and `more`.
fn reserved(local: &LocalPorts, more: &str) -> String {
    let mut all: Vec<String> = local
        .reserved
        .iter()
        .map(|range| match (range.start(), range.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        })
        .collect();
    all.push(more.to_owned());
    all.join(",")
}

/// Rules that give packets of others the host's address, and a port of it.
fn masquerading(facts: &Facts) -> Line {
    const NAME: &str = "masquerade";
    const FIX: &str =
        "give nat.addresses an address of its own: `ip address add ADDRESS/32 dev IF`";
    let rules = match &facts.masquerades {
        Ok(rules) if rules.is_empty() => return Line::ok(NAME, "no rules"),
        Ok(rules) => rules,
        Err(why) => {
            return Line::limit(
                NAME,
                format!("rules cannot be read: {why}"),
                "sudo millrace doctor",
            );
        }
    };
    let shown: Vec<_> = rules
        .iter()
        .map(|rule| format!("table {}, chain {}", rule.table, rule.chain))
        .collect();
    let shown = shown.join("; ");
    let config = config(facts);
    if !config.is_none_or(desired::uses_nat) {
        return Line::ok(NAME, format!("{shown}; nothing uses `nat`"));
    }
    let kube_proxy = rules.iter().any(Masquerade::is_kube_proxy);
    if kube_proxy && shares_address(facts) {
        return Line::unfit(
            NAME,
            format!("kube-proxy takes ports of the address that `nat` uses ({shown})"),
            FIX,
        );
    }
    if kube_proxy {
        return match config {
            Some(_) => Line::ok(NAME, format!("{shown}; `nat` has an address of its own")),
            None => Line::limit(NAME, format!("{shown}: `nat` beside kube-proxy"), FIX),
        };
    }
    Line::limit(
        NAME,
        format!("{shown}: replies to the same backends may be taken for ours"),
        FIX,
    )
}
