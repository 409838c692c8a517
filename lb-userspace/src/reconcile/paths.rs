//! Which services a change of the network concerns: the paths of all backends, by address and by next hop.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use crate::{
    config::ServiceName,
    net::{Facts, Path, path::resolve},
};

/// An interface and the address to resolve on it.
pub(super) type NextHop = (u32, IpAddr);

/// Paths of the backends of all services.
#[derive(Default, Debug)]
pub(super) struct Paths {
    backends: HashMap<IpAddr, Known>,
    next_hops: HashMap<NextHop, HashSet<IpAddr>>,
    /// Addresses of each service's backends.
    services: HashMap<ServiceName, HashSet<IpAddr>>,
}

#[derive(Debug)]
struct Known {
    path: Option<Path>,
    services: BTreeSet<ServiceName>,
}

/// Next hops that are used for the first time, or no longer.
#[derive(Default, Debug)]
pub(super) struct Moved {
    pub(super) gained: Vec<NextHop>,
    pub(super) lost: Vec<NextHop>,
}

impl Paths {
    /// Takes note of a service's backends; without any it is forgotten.
    pub(super) fn assign(
        &mut self,
        service: &ServiceName,
        backends: HashSet<IpAddr>,
        facts: &Facts,
        moved: &mut Moved,
    ) {
        let before = self.services.remove(service).unwrap_or_default();
        for gone in before.difference(&backends) {
            let Some(known) = self.backends.get_mut(gone) else {
                continue;
            };
            known.services.remove(service);
            if known.services.is_empty() {
                let path = known.path.take();
                self.backends.remove(gone);
                self.unlink(*gone, path.as_ref(), moved);
            }
        }
        for new in backends.difference(&before) {
            if let Some(known) = self.backends.get_mut(new) {
                known.services.insert(service.clone());
                continue;
            }
            let path = resolve(facts, *new);
            self.link(*new, path.as_ref(), moved);
            let services = BTreeSet::from([service.clone()]);
            self.backends.insert(*new, Known { path, services });
        }
        if !backends.is_empty() {
            self.services.insert(service.clone(), backends);
        }
    }

    /// Services whose path to a backend is another one since a neighbour changed.
    pub(super) fn neighbour_changed(
        &mut self,
        next_hop: NextHop,
        facts: &Facts,
        moved: &mut Moved,
    ) -> BTreeSet<ServiceName> {
        let Some(backends) = self.next_hops.get(&next_hop) else {
            return BTreeSet::new();
        };
        let backends: Vec<_> = backends.iter().copied().collect();
        self.resolve_again(backends, facts, moved)
    }

    /// Services whose path to a backend is another one since links, addresses or routes changed.
    pub(super) fn network_changed(
        &mut self,
        facts: &Facts,
        moved: &mut Moved,
    ) -> BTreeSet<ServiceName> {
        let backends: Vec<_> = self.backends.keys().copied().collect();
        self.resolve_again(backends, facts, moved)
    }

    fn resolve_again(
        &mut self,
        backends: Vec<IpAddr>,
        facts: &Facts,
        moved: &mut Moved,
    ) -> BTreeSet<ServiceName> {
        let mut concerned = BTreeSet::new();
        for backend in backends {
            let Some(known) = self.backends.get_mut(&backend) else {
                continue;
            };
            let path = resolve(facts, backend);
            if path == known.path {
                continue;
            }
            concerned.extend(known.services.iter().cloned());
            let before = std::mem::replace(&mut known.path, path.clone());
            if before.as_ref().map(next_hop) != path.as_ref().map(next_hop) {
                self.unlink(backend, before.as_ref(), moved);
                self.link(backend, path.as_ref(), moved);
            }
        }
        concerned
    }

    fn link(&mut self, backend: IpAddr, path: Option<&Path>, moved: &mut Moved) {
        let Some(path) = path else { return };
        let next_hop = next_hop(path);
        let backends = self.next_hops.entry(next_hop).or_default();
        if backends.is_empty() {
            moved.gained.push(next_hop);
        }
        backends.insert(backend);
    }

    fn unlink(&mut self, backend: IpAddr, path: Option<&Path>, moved: &mut Moved) {
        let Some(path) = path else { return };
        let next_hop = next_hop(path);
        let Some(backends) = self.next_hops.get_mut(&next_hop) else {
            return;
        };
        backends.remove(&backend);
        if backends.is_empty() {
            self.next_hops.remove(&next_hop);
            moved.lost.push(next_hop);
        }
    }
}

const fn next_hop(path: &Path) -> NextHop {
    (path.ifindex, path.gateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Address, Hop, Link, Neighbour, Route, Update};

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(destination: &str, gateway: Option<&str>) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            metric: 0,
            tos: 0,
            hops: vec![Hop {
                ifindex: 2,
                gateway: gateway.map(ip),
            }],
            source: None,
            mtu: None,
        }
    }

    /// 192.0.2.0/24 on link, the rest by 192.0.2.254.
    fn facts() -> Facts {
        let mut facts = Facts::default();
        let link = Link {
            up: true,
            mac: Some([2; 6]),
            mtu: 1500,
            ..Link::default()
        };
        facts.apply(Update::Link(2, Some(link)));
        facts.apply(Update::AddAddress(Address {
            ifindex: 2,
            net: "192.0.2.1/24".parse().unwrap(),
            global: true,
            preferred: true,
        }));
        facts.apply(Update::AddRoute(route("192.0.2.0/24", None)));
        facts.apply(Update::AddRoute(route("0.0.0.0/0", Some("192.0.2.254"))));
        facts
    }

    fn sorted(mut hops: Vec<NextHop>) -> Vec<NextHop> {
        hops.sort();
        hops
    }

    #[test]
    fn only_the_services_behind_a_neighbour_are_concerned() {
        let mut facts = facts();
        let (mut paths, mut moved) = (Paths::default(), Moved::default());
        let (near, far) = (ip("192.0.2.7"), ip("10.0.0.1"));
        paths.assign(&name("a"), [near, far].into(), &facts, &mut moved);
        paths.assign(&name("b"), [far].into(), &facts, &mut moved);
        let gateway = (2, ip("192.0.2.254"));
        assert_eq!(sorted(moved.gained), [(2, near), gateway]);

        let mut moved = Moved::default();
        let neighbour = Neighbour {
            mac: [4; 6],
            permanent: false,
            fresh: true,
        };
        facts.apply(Update::Neighbour(2, near, Some(neighbour)));
        let near_only = paths.neighbour_changed((2, near), &facts, &mut moved);
        assert_eq!(near_only, [name("a")].into());
        let again = paths.neighbour_changed((2, near), &facts, &mut moved);
        assert!(again.is_empty(), "nothing is different any more");
        facts.apply(Update::Neighbour(2, gateway.1, Some(neighbour)));
        let both = paths.neighbour_changed(gateway, &facts, &mut moved);
        assert_eq!(both, [name("a"), name("b")].into());
        assert!(moved.gained.is_empty() && moved.lost.is_empty());
    }

    #[test]
    fn a_new_route_concerns_who_takes_it_and_moves_the_next_hop() {
        let mut facts = facts();
        let (mut paths, mut moved) = (Paths::default(), Moved::default());
        paths.assign(&name("a"), [ip("10.0.0.1")].into(), &facts, &mut moved);
        paths.assign(&name("b"), [ip("10.9.0.1")].into(), &facts, &mut moved);
        facts.apply(Update::AddRoute(route("10.9.0.0/16", Some("192.0.2.9"))));
        let mut moved = Moved::default();
        assert_eq!(
            paths.network_changed(&facts, &mut moved),
            [name("b")].into()
        );
        assert_eq!(
            (moved.gained, moved.lost),
            (vec![(2, ip("192.0.2.9"))], vec![])
        );

        let mut moved = Moved::default();
        paths.assign(&name("b"), HashSet::new(), &facts, &mut moved);
        assert_eq!(
            (moved.gained, moved.lost),
            (vec![], vec![(2, ip("192.0.2.9"))])
        );
    }
}
