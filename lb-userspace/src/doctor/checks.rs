//! All checks, in the order in which they are told.

use super::{Facts, Line, Tunnels, interface, nat, proxies, system};

/// Judges the facts.
pub fn check(facts: &Facts) -> Vec<Line> {
    let mut lines = vec![
        system::kernel(facts),
        system::privileges(facts),
        system::lockdown(facts),
        system::bpf_filesystem(facts),
        system::jit(facts),
        system::type_information(facts),
    ];
    lines.extend(system::configuration(facts));
    if facts.interfaces.is_empty() {
        lines.push(Line::unfit(
            "interfaces",
            "none is named, and there is no default route",
            "millrace doctor --interface IF",
        ));
    }
    for (name, found) in &facts.interfaces {
        lines.extend(interface::lines(name, found.as_ref(), facts));
    }
    lines.extend(nat::lines(facts));
    lines.extend(proxies::lines(facts));
    lines.extend(facts.tunnels.iter().flat_map(Tunnels::lines));
    lines.push(system::heartbeat(facts));
    lines
}
