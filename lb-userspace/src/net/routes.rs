//! Routes of the main table, by prefix.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

/// A route of the main table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    pub destination: IpNet,
    /// The lower one wins.
    pub metric: u32,
    /// IPv4's type of service; a route with one is for marked packets only.
    pub tos: u8,
    /// Empty for a route that rejects (unreachable, blackhole, prohibit).
    pub hops: Vec<Hop>,
    /// `src`: own address for packets that begin here.
    pub source: Option<IpAddr>,
    /// Bytes; from the route's metrics.
    pub mtu: Option<u32>,
}

/// One way of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    pub ifindex: u32,
    /// None: the destination is on link. May be of the other family (`via inet6`).
    pub gateway: Option<IpAddr>,
}

/// All routes, found by longest prefix, then lowest metric.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Routes {
    /// Prefix length to the prefixes of that length; each list is in order of metric.
    v4: BTreeMap<u8, HashMap<IpNet, Vec<Route>>>,
    v6: BTreeMap<u8, HashMap<IpNet, Vec<Route>>>,
}

impl Routes {
    /// The route that a packet to `ip` takes. `usable` says which may be taken.
    pub fn find(&self, ip: IpAddr, usable: impl Fn(&Route) -> bool) -> Option<&Route> {
        let family = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        family.iter().rev().find_map(|(length, prefixes)| {
            let prefix = IpNet::new(ip, *length).ok()?.trunc();
            prefixes.get(&prefix)?.iter().find(|route| usable(route))
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        let lists = self.v4.values().chain(self.v6.values());
        lists.flat_map(HashMap::values).flatten()
    }

    /// Whether anything became different. IPv6 announces each hop of a multipath route as a route of its own.
    pub fn insert(&mut self, route: Route) -> bool {
        let list = self.list(route.destination);
        if list.contains(&route) {
            return false;
        }
        if route.destination.addr().is_ipv4() {
            // `ip route replace`: one route a prefix, metric and type of service.
            list.retain(|known| (known.metric, known.tos) != (route.metric, route.tos));
        }
        let at = list.partition_point(|known| known.metric <= route.metric);
        list.insert(at, route);
        true
    }

    pub fn remove(&mut self, route: &Route) -> bool {
        let list = self.list(route.destination);
        let before = list.len();
        let v4 = route.destination.addr().is_ipv4();
        list.retain(|known| {
            (known.metric, known.tos) != (route.metric, route.tos)
                || (!v4 && known.hops != route.hops)
        });
        let changed = list.len() != before;
        self.drop_empty();
        changed
    }

    /// Forgets every hop over an interface that is gone.
    pub fn remove_link(&mut self, ifindex: u32) {
        for list in self.lists() {
            for route in list.iter_mut() {
                route.hops.retain(|hop| hop.ifindex != ifindex);
            }
            list.retain(|route| !route.hops.is_empty());
        }
        self.drop_empty();
    }

    fn list(&mut self, prefix: IpNet) -> &mut Vec<Route> {
        let prefix = prefix.trunc();
        let family = if prefix.addr().is_ipv4() {
            &mut self.v4
        } else {
            &mut self.v6
        };
        let prefixes = family.entry(prefix.prefix_len()).or_default();
        prefixes.entry(prefix).or_default()
    }

    fn lists(&mut self) -> impl Iterator<Item = &mut Vec<Route>> {
        let lists = self.v4.values_mut().chain(self.v6.values_mut());
        lists.flat_map(HashMap::values_mut)
    }

    fn drop_empty(&mut self) {
        for family in [&mut self.v4, &mut self.v6] {
            family.retain(|_, prefixes| {
                prefixes.retain(|_, routes| !routes.is_empty());
                !prefixes.is_empty()
            });
        }
    }
}
