//! Which interfaces the config means, and which of them XDP can send on.

use std::{collections::BTreeSet, fs};

use super::{Facts, Sending, ethtool};

/// Names of the interfaces that match one of `patterns` (`*` stands for any characters, `?` for one); without patterns
/// those of the default routes. A pattern without wildcards is in the result even if there is no such interface yet.
pub fn interfaces(facts: &Facts, patterns: &[String]) -> BTreeSet<String> {
    if patterns.is_empty() {
        return default_route_interfaces(facts);
    }
    let mut found = BTreeSet::new();
    for pattern in patterns {
        if !pattern.contains(['*', '?']) {
            found.insert(pattern.clone());
            continue;
        }
        let links = facts.links.values();
        let matching = links.filter(|link| !link.loopback && matches(pattern, &link.name));
        found.extend(matching.map(|link| link.name.clone()));
    }
    found
}

fn default_route_interfaces(facts: &Facts) -> BTreeSet<String> {
    let defaults = facts
        .routes
        .iter()
        .filter(|route| route.destination.prefix_len() == 0);
    let hops = defaults.flat_map(|route| &route.hops);
    let links = hops.filter_map(|hop| facts.links.get(&hop.ifindex));
    links.map(|link| link.name.clone()).collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    let Some(first) = pattern.chars().next() else {
        return name.is_empty();
    };
    let rest = &pattern[first.len_utf8()..];
    let mut tails = name
        .char_indices()
        .map(|(at, _)| &name[at..])
        .chain(std::iter::once(""));
    match first {
        '*' => tails.any(|tail| matches(rest, tail)),
        _ => name
            .chars()
            .next()
            .filter(|c| first == '?' || first == *c)
            .is_some_and(|c| matches(rest, &name[c.len_utf8()..])),
    }
}

/// Whether XDP can send on an interface, by its driver (those with `ndo_xdp_xmit` in Linux 6.12) or kind. Hardware sets
/// up the queues for it with a program of its own, which a bond gives its ports. Other stacked devices cannot: bridge, macvlan;
/// for a VLAN device the one below sends.
pub fn xdp_send(name: &str, kind: &str) -> Sending {
    const DRIVERS: [&str; 23] = [
        "atlantic",
        "bnxt_en",
        "ena",
        "fec",
        "fsl_dpaa2_eth",
        "fsl_enetc",
        "gve",
        "hv_netvsc",
        "i40e",
        "ice",
        "igb",
        "igc",
        "ixgbe",
        "ixgbevf",
        "mana",
        "mlx5_core",
        "mtk_soc_eth",
        "mvneta",
        "mvpp2",
        "qede",
        "sfc",
        "stmmaceth",
        "virtio_net",
    ];
    match kind {
        "veth" | "tun" => Sending::Always,
        "bond" => Sending::WithProgram,
        // A few have other names for ethtool than for the kernel's list of drivers.
        "" if [driver(name), driver_by_sysfs(name)]
            .iter()
            .any(|driver| DRIVERS.contains(&driver.as_str())) =>
        {
            Sending::WithProgram
        }
        _ => Sending::Never,
    }
}

/// The driver of a physical interface; empty if it has none or is unknown. sysfs shows the interfaces of the network namespace
/// that it was mounted in, so it is asked last.
pub fn driver(name: &str) -> String {
    match ethtool::driver(name) {
        Ok(driver) if !driver.is_empty() => driver,
        _ => driver_by_sysfs(name),
    }
}

fn driver_by_sysfs(name: &str) -> String {
    fs::read_link(format!("/sys/class/net/{name}/device/driver"))
        .ok()
        .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::{Hop, Link, Route, Update};
    use super::*;

    #[test]
    fn wildcards_match_whole_names() {
        for (pattern, name, expected) in [
            ("eth*", "eth0", true),
            ("eth*", "eth", true),
            ("eth?", "eth", false),
            ("eth?", "eth12", false),
            ("*0", "enp1s0", true),
            ("e*1*", "enp1s0", true),
            ("eth0", "eth01", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn no_pattern_means_the_default_routes() {
        let mut facts = Facts::default();
        for (index, name) in [(1, "lo"), (2, "eth0"), (3, "eth1")] {
            let link = Link {
                name: name.into(),
                loopback: index == 1,
                ..Link::default()
            };
            facts.apply(Update::Link(index, Some(link)));
        }
        let hop = Hop {
            ifindex: 3,
            gateway: None,
        };
        facts.apply(Update::AddRoute(Route {
            destination: "0.0.0.0/0".parse().unwrap(),
            metric: 0,
            tos: 0,
            hops: vec![hop],
            source: None,
            mtu: None,
        }));
        assert_eq!(interfaces(&facts, &[]), BTreeSet::from(["eth1".into()]));
        let patterns = ["*".into(), "eth9".into()];
        assert_eq!(
            interfaces(&facts, &patterns),
            BTreeSet::from(["eth0".into(), "eth1".into(), "eth9".into()])
        );
    }
}
