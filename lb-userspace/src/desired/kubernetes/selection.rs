//! A4 and A6: which endpoints get new flows, by the traffic policies; and what becomes of packets when none does.

use super::{
    backends::Candidate,
    frontends::Class,
    rule::Rule,
    topology::{Place, Topology, is_for, topology},
};

/// Who sends. The packet path of this node's interfaces meets the last kind only; the others stay with kube-proxy.
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "the contract's table has all clients, the packet path meets one"
    )
)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Client {
    PodOnNode,
    HostProcess,
    OffCluster,
}

/// One of the two sets of A4.1 and A4.2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Set {
    Cluster,
    Local,
}

/// `spec.externalTrafficPolicy: Local` and `spec.internalTrafficPolicy: Local`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Policies {
    pub external_local: bool,
    pub internal_local: bool,
}

/// What a frontend's packets meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Forward,
    /// No endpoint anywhere (A6.1).
    Reject,
    /// None here, but some elsewhere (A6.2).
    Drop,
}

impl Outcome {
    pub(super) const fn rule(self) -> Option<Rule> {
        match self {
            Self::Forward => None,
            Self::Reject => Some(Rule::NoneAnywhere),
            Self::Drop => Some(Rule::NoneHere),
        }
    }
}

/// A4.5 to A4.7.
pub(super) const fn set(client: Client, class: Class, policies: Policies) -> Set {
    let local = match class {
        Class::ClusterIp => policies.internal_local,
        Class::NodePort => policies.external_local,
        // From inside, the way to the VIP is cut short.
        Class::LoadBalancer | Class::ExternalIp => {
            policies.external_local && matches!(client, Client::OffCluster)
        }
    };
    if local { Set::Local } else { Set::Cluster }
}

/// The endpoints that get new flows.
#[derive(Debug)]
pub(super) struct Selection {
    /// In their order.
    pub indexes: Vec<usize>,
    /// Why these.
    pub rule: Rule,
    set: Set,
}

impl Selection {
    /// Why an endpoint gets new flows, or none.
    pub(super) fn rule_of(&self, at: usize, endpoint: &Candidate<'_>) -> Rule {
        if self.has(at) {
            self.rule
        } else if self.set == Set::Local && !endpoint.local {
            Rule::NotHere
        } else if endpoint.ready {
            Rule::ForOthers
        } else if endpoint.terminating {
            Rule::Terminating
        } else {
            Rule::NotReady
        }
    }

    pub(super) fn has(&self, at: usize) -> bool {
        self.indexes.binary_search(&at).is_ok()
    }
}

/// Selects from the endpoints of a port. `hints`: where this node is, if hints are to be followed.
pub(super) fn select(endpoints: &[Candidate<'_>], set: Set, hints: Option<Place<'_>>) -> Selection {
    let indexes = |good: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<usize> {
        let all = endpoints.iter().enumerate();
        all.filter(|(_, one)| good(one)).map(|(at, _)| at).collect()
    };
    let in_set = |one: &Candidate<'_>| set == Set::Cluster || one.local;
    // Topology is never combined with a Local policy.
    let (topology, place) = match (set, hints) {
        (Set::Cluster, Some(place)) => {
            let ready: Vec<_> = endpoints.iter().filter(|one| one.ready).collect();
            (topology(&ready, place), place)
        }
        _ => (
            Topology::All,
            Place {
                node: "",
                zone: None,
            },
        ),
    };
    let ready = indexes(&|one| one.ready && in_set(one) && is_for(one, topology, place));
    let (indexes, rule) = if ready.is_empty() {
        let serving = indexes(&|one| one.serving && one.terminating && in_set(one));
        let rule = match set {
            Set::Cluster => Rule::ServingInCluster,
            Set::Local => Rule::ServingHere,
        };
        (serving, rule)
    } else {
        let rule = match (set, topology) {
            (Set::Local, _) => Rule::ReadyHere,
            (Set::Cluster, Topology::All) => Rule::ReadyInCluster,
            (Set::Cluster, Topology::SameNode) => Rule::ReadyForNode,
            (Set::Cluster, Topology::SameZone) => Rule::ReadyForZone,
        };
        (ready, rule)
    };
    Selection { indexes, rule, set }
}

/// What becomes of a packet, given how many the frontend's set and the whole cluster have.
pub(super) const fn outcome(selected: usize, anywhere: usize) -> Outcome {
    match (selected, anywhere) {
        (0, 0) => Outcome::Reject,
        (0, _) => Outcome::Drop,
        _ => Outcome::Forward,
    }
}
