//! Who is where: names, addresses and folders of a cluster, as pure functions of its folder and size.
//!
//! ```text
//! client ── router (bridge `lan`) ── control   etcd, kube-apiserver, controllers, scheduler, CoreDNS
//!                                 ├─ node1     kubelet, containerd, kube-proxy, pods
//!                                 └─ node2     …
//! ```
//!
//! Each place is a network namespace with `eth0`. The client's subnet is not the nodes'. Nothing is connected to the
//! machine's own network, so addresses collide with nobody's.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// Nodes have one digit.
pub(crate) const MOST_NODES: u8 = 9;

pub(super) const ROUTER: Pair = Pair {
    v4: "10.89.0.1",
    v6: "fd00:89::1",
};
pub(super) const CONTROL: Pair = Pair {
    v4: "10.89.0.2",
    v6: "fd00:89::2",
};
pub(super) const CLIENTS_ROUTER: Pair = Pair {
    v4: "10.90.0.1",
    v6: "fd00:90::1",
};
pub(super) const CLIENT: Pair = Pair {
    v4: "10.90.0.2",
    v6: "fd00:90::2",
};

/// Of each `eth0`, in bytes.
pub(super) const MTU: u16 = 1500;

/// IPv4 first: it is the cluster's first family.
pub(super) const SERVICES: &str = "10.96.0.0/16,fd00:96::/112";
pub(super) const PODS: &str = "10.244.0.0/16,fd00:244::/48";

/// Of the service `kubernetes`: the first address of [`SERVICES`].
pub(super) const API_SERVICE: &str = "10.96.0.1";

/// An address of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair<T = &'static str> {
    pub(super) v4: T,
    pub(super) v6: T,
}

impl From<Pair> for Pair<String> {
    fn from(pair: Pair) -> Self {
        Self {
            v4: pair.v4.to_owned(),
            v6: pair.v6.to_owned(),
        }
    }
}

/// A cluster's names and places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    folder: PathBuf,
    key: String,
    nodes: u8,
}

impl Layout {
    /// `folder` holds all its files; its path makes the names of namespaces and cgroups, so that clusters of two
    /// checkouts do not meet.
    pub(crate) fn new(folder: &Path, nodes: u8) -> Self {
        // FNV-1a, 24 bits of it: names of namespaces stay readable.
        let hash = folder
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
            });
        Self {
            folder: folder.to_owned(),
            key: format!("mlc-{:06x}", hash >> 8),
            nodes,
        }
    }

    /// A file or folder of the cluster.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// The network namespace of `client`, `router`, `control` or a node.
    pub(crate) fn namespace(&self, place: &str) -> String {
        format!("{}-{place}", self.key)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (1..=self.nodes).map(Node)
    }

    /// Names of all places, the router first.
    pub(super) fn places(&self) -> impl Iterator<Item = String> + use<> {
        let nodes = self.nodes().map(Node::name);
        ["router", "client", "control"]
            .map(str::to_owned)
            .into_iter()
            .chain(nodes)
    }

    /// Of a place's `eth0`; the router's are those that nodes know it by.
    pub(super) fn addresses(&self, place: &str) -> Pair<String> {
        let fixed = match place {
            "router" => ROUTER,
            "client" => CLIENT,
            "control" => CONTROL,
            _ => {
                let node = self.nodes().find(|node| node.name() == place);
                return node.map_or_else(|| CONTROL.into(), Node::addresses);
            }
        };
        fixed.into()
    }

    /// The cgroup above all pods of a node, from the controllers' roots.
    pub(super) fn cgroup(&self, node: Node) -> String {
        self.namespace(&node.name())
    }
}

/// A node, by its number from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node(u8);

impl Node {
    pub(crate) fn name(self) -> String {
        format!("node{}", self.0)
    }

    pub(super) fn addresses(self) -> Pair<String> {
        Pair {
            v4: format!("10.89.0.1{}", self.0),
            v6: format!("fd00:89::1{}", self.0),
        }
    }

    /// The networks of its pods.
    pub(super) fn pods(self) -> Pair<String> {
        Pair {
            v4: format!("10.244.{}.0/24", self.0),
            v6: format!("fd00:244:0:{}::/64", self.0),
        }
    }
}

/// Commands for `ip -batch`, by place; the router's come first, as they make everybody's `eth0`.
///
/// The CNI plugin finds its bridge there. One that it makes has the lowest address of its ports: that changes when a pod
/// goes, and the others do not find their gateway for a moment.
pub(super) fn links(layout: &Layout) -> Vec<(String, String)> {
    let mut router = format!(
        "link set lo up\n\
         link add lan type bridge mcast_snooping 0\n\
         link set lan up\n\
         address add {}/24 dev lan\n\
         address add {}/64 dev lan nodad\n",
        ROUTER.v4, ROUTER.v6
    );
    for place in layout.places().skip(1) {
        let namespace = layout.namespace(&place);
        _ = writeln!(
            router,
            "link add {place} type veth peer name eth0 netns {namespace}"
        );
        _ = match place.as_str() {
            "client" => writeln!(
                router,
                "address add {}/24 dev client\naddress add {}/64 dev client nodad",
                CLIENTS_ROUTER.v4, CLIENTS_ROUTER.v6
            ),
            _ => writeln!(router, "link set {place} master lan"),
        };
        _ = writeln!(router, "link set {place} up");
    }

    let host = |addresses: Pair<&str>, router: Pair| {
        format!(
            "link set lo up\n\
             link set eth0 up\n\
             address add {}/24 dev eth0\n\
             address add {}/64 dev eth0 nodad\n\
             route add default via {}\n\
             route add default via {}\n",
            addresses.v4, addresses.v6, router.v4, router.v6
        )
    };
    let mut commands = vec![
        ("router".to_owned(), router),
        ("client".to_owned(), host(CLIENT, CLIENTS_ROUTER)),
        ("control".to_owned(), host(CONTROL, ROUTER)),
    ];
    for node in layout.nodes() {
        let own = node.addresses();
        let own = Pair {
            v4: own.v4.as_str(),
            v6: own.v6.as_str(),
        };
        let bridge = format!(
            "link add cni0 address 02:00:00:00:00:0{} type bridge\n",
            node.0
        );
        commands.push((node.name(), host(own, ROUTER) + &bridge));
    }
    commands
}

/// Who shall know the way to pods where no overlay hides it: router, control plane, and each node for the others'.
pub(super) fn routes_without_overlay(layout: &Layout) -> Vec<(String, String)> {
    let every = routes_to_pods(layout.nodes());
    let nodes = layout.nodes().map(|node| {
        let others = layout.nodes().filter(|other| *other != node);
        (node.name(), routes_to_pods(others))
    });
    ["router", "control"]
        .map(|place| (place.to_owned(), every.clone()))
        .into_iter()
        .chain(nodes)
        .collect()
}

/// Without a kube-proxy nobody translates the address of the service `kubernetes`: the API server has it itself then.
pub(super) fn api_without_proxy(layout: &Layout) -> Vec<(String, String)> {
    let own = format!("address add {API_SERVICE}/32 dev lo\n");
    let route = format!("route add {API_SERVICE} via {}\n", CONTROL.v4);
    let nodes = layout.nodes().map(|node| (node.name(), route.clone()));
    std::iter::once(("control".to_owned(), own))
        .chain(nodes)
        .collect()
}

fn routes_to_pods(nodes: impl Iterator<Item = Node>) -> String {
    let mut routes = String::new();
    for node in nodes {
        let (pods, node) = (node.pods(), node.addresses());
        _ = writeln!(
            routes,
            "route add {} via {}\nroute add {} via {}",
            pods.v4, node.v4, pods.v6, node.v6
        );
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_two_folders_share_no_name() {
        let one = Layout::new(Path::new("/a/target/cluster"), 2);
        let other = Layout::new(Path::new("/b/target/cluster"), 2);
        assert_ne!(one.namespace("node1"), other.namespace("node1"));
        assert_eq!(
            one.namespace("node1"),
            Layout::new(Path::new("/a/target/cluster"), 3).namespace("node1")
        );
    }

    #[test]
    fn each_place_is_wired_and_knows_the_way_to_other_nodes_pods() {
        let layout = Layout::new(Path::new("/x"), 2);
        let links = links(&layout);
        let places: Vec<_> = links.iter().map(|(place, _)| place.clone()).collect();
        assert_eq!(places, layout.places().collect::<Vec<_>>());
        let router = &links[0].1;
        for place in &places[1..] {
            let veth = format!("link add {place} type veth peer name eth0 netns mlc-");
            assert!(router.contains(&veth), "{router}");
        }
        assert!(!router.contains("set client master"), "{router}");
        let routes = routes_without_overlay(&layout);
        let node2 = &routes[3].1;
        assert!(
            node2.contains("route add 10.244.1.0/24 via 10.89.0.11\n"),
            "{node2}"
        );
        assert!(
            node2.contains("route add fd00:244:0:1::/64 via fd00:89::11\n"),
            "{node2}"
        );
        assert!(!node2.contains("10.244.2.0"), "{node2}");
    }
}
