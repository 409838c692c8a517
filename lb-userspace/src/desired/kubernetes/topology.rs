//! A5: hints, which hold for a port as a whole or not at all.

use super::backends::Candidate;

/// Where this node is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub node: &'a str,
    pub zone: Option<&'a str>,
}

/// Which of the endpoints the hints give to this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Topology {
    All,
    SameNode,
    SameZone,
}

/// The mode for a port with these ready endpoints (A5.2).
pub(super) fn topology(ready: &[&Candidate<'_>], place: Place<'_>) -> Topology {
    let chosen = |topology: Topology, hinted: fn(&Candidate<'_>) -> bool| {
        let all = !ready.is_empty() && ready.iter().all(|one| hinted(one));
        all && ready.iter().any(|one| is_for(one, topology, place))
    };
    if chosen(Topology::SameNode, |one| !one.node_hints.is_empty()) {
        Topology::SameNode
    } else if chosen(Topology::SameZone, |one| !one.zone_hints.is_empty()) {
        Topology::SameZone
    } else {
        Topology::All
    }
}

/// Whether an endpoint is for this node.
pub(super) fn is_for(one: &Candidate<'_>, topology: Topology, place: Place<'_>) -> bool {
    match topology {
        Topology::All => true,
        Topology::SameNode => one.node_hints.iter().any(|node| **node == *place.node),
        Topology::SameZone => place
            .zone
            .is_some_and(|zone| one.zone_hints.iter().any(|hint| **hint == *zone)),
    }
}
