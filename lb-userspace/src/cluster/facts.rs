//! What the cluster's objects say, as far as the contract reads it: plain values, no decisions. Texts that may be wrong
//! stay texts; who decides judges them.

use std::{fmt, net::IpAddr, sync::Arc};

use super::keys::Keys;

/// Namespace and name of an object. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    /// Empty for objects of the whole cluster.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The kinds that are watched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    Service,
    EndpointSlice,
    Node,
    /// The one of [`super::keys`].
    Secret,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::Node, Self::Secret];

    /// Those without which nothing is known to be gone.
    pub const SERVED: [Self; 3] = [Self::Service, Self::EndpointSlice, Self::Node];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Secret => "Secret",
        }
    }

    /// As `millrace status` calls the source.
    pub const fn source(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Node => "nodes",
            Self::Secret => "keys",
        }
    }

    /// As RBAC and URLs call it.
    pub const fn resource(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices.discovery.k8s.io",
            Self::Node => "nodes",
            Self::Secret => "secrets",
        }
    }
}

/// One object as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    Service(ObjectKey, Service),
    EndpointSlice(ObjectKey, Slice),
    Node(ObjectKey, Node),
    /// The keys, or why it has none.
    Secret(ObjectKey, Result<Keys, String>),
}

/// What a watch tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    Applied(Box<Object>),
    Deleted(Kind, ObjectKey),
    /// A list begins: what is not in it is gone by its end.
    ListBegins(Kind),
    ListEnds(Kind),
    /// Why the watch of a kind does not go on; what was told before holds.
    Lost(Kind, String),
    /// It goes on again.
    Found(Kind),
}

/// `core/v1` Service.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, as the API has them"
)]
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Service {
    pub uid: String,
    /// Seconds since the Unix epoch.
    pub created: i64,
    /// Labels `service.kubernetes.io/service-proxy-name` or `service.kubernetes.io/headless` are there. The watch leaves
    /// such Services out.
    pub for_another_proxy: bool,
    /// `spec.type`; empty: `ClusterIP`.
    pub kind: String,
    /// `spec.clusterIP`.
    pub cluster_ip: String,
    pub cluster_ips: Vec<String>,
    /// `spec.ipFamilies`.
    pub families: Vec<String>,
    pub ports: Vec<ServicePort>,
    pub external_ips: Vec<String>,
    /// `status.loadBalancer.ingress`.
    pub ingress: Vec<Ingress>,
    /// `spec.externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `spec.sessionAffinity: ClientIP`.
    pub affinity: bool,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`.
    pub affinity_seconds: Option<i32>,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Vec<String>,
    /// Annotation `service.beta.kubernetes.io/load-balancer-source-ranges`.
    pub source_ranges_annotation: Option<String>,
    /// 0: none.
    pub health_check_port: i32,
    /// Annotation `millrace.io/forwarding-mode`.
    pub forwarding_mode: Option<String>,
}

/// `spec.ports[]` of a Service. The target port is not ours to read (contract A3.7).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ServicePort {
    pub name: String,
    /// Empty: TCP.
    pub protocol: String,
    pub port: i32,
    /// 0: none.
    pub node_port: i32,
}

/// `status.loadBalancer.ingress[]`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ingress {
    pub ip: Option<String>,
    pub ip_mode: Option<String>,
}

/// `discovery.k8s.io/v1` `EndpointSlice`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Slice {
    pub uid: String,
    /// Label `kubernetes.io/service-name`; empty: of no Service.
    pub service: Arc<str>,
    /// Labels as in [`Service::for_another_proxy`].
    pub for_another_proxy: bool,
    /// `addressType`.
    pub address_type: String,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`, milliseconds since the Unix epoch.
    pub triggered_ms: Option<i64>,
}

/// `ports[]` of a slice.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SlicePort {
    pub name: Option<String>,
    /// None: TCP.
    pub protocol: Option<String>,
    /// None: all ports.
    pub port: Option<i32>,
}

/// `endpoints[]` of a slice.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Endpoint {
    /// The first of `addresses`; the others mean nothing (contract A3.4).
    pub address: Address,
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
    pub node: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub zone_hints: Vec<Arc<str>>,
    /// `hints.forNodes[].name`.
    pub node_hints: Vec<Arc<str>>,
}

/// An endpoint's address, or its text where that is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    Ip(IpAddr),
    Text(Arc<str>),
}

impl Address {
    pub fn read(text: &str) -> Self {
        text.parse()
            .map_or_else(|_| Self::Text(text.into()), Self::Ip)
    }
}

impl Default for Address {
    fn default() -> Self {
        Self::Text(Arc::default())
    }
}

/// `core/v1` Node.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Node {
    pub uid: String,
    /// `status.addresses[]` that are addresses.
    pub addresses: Vec<IpAddr>,
    /// Of these, those of type `InternalIP`: where other nodes reach it.
    pub internal: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// It is being deleted, or has the taint `ToBeDeletedByClusterAutoscaler`.
    pub leaving: bool,
}
