//! From API objects to facts: what the contract reads, and nothing else, so that little is kept of each.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{Node as ApiNode, Secret as ApiSecret, Service as ApiService},
        discovery::v1::EndpointSlice as ApiSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};

use super::{
    facts::{
        Address, Endpoint, Ingress, Kind, Node, Object, ObjectKey, Service, ServicePort, Slice,
        SlicePort,
    },
    keys::Keys,
};

/// Labels of Services and slices that another proxy serves, or nobody; see [`SELECTOR`].
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What the server is to leave out (contract A1.3, A1.4).
pub(super) const SELECTOR: &str =
    "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const FORWARDING_MODE: &str = "millrace.io/forwarding-mode";
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

/// A watched kind.
pub(super) trait Trim {
    const KIND: Kind;

    fn key(&self) -> ObjectKey;

    fn trim(self) -> Object;
}

fn key(meta: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

fn for_another_proxy(meta: &ObjectMeta) -> bool {
    label(meta, PROXY_NAME).is_some() || label(meta, HEADLESS).is_some()
}

impl Trim for ApiService {
    const KIND: Kind = Kind::Service;

    fn key(&self) -> ObjectKey {
        key(&self.metadata)
    }

    fn trim(self) -> Object {
        let meta = &self.metadata;
        let spec = self.spec.unwrap_or_default();
        let ingress = self.status.and_then(|status| status.load_balancer);
        let ingress = ingress.and_then(|balancer| balancer.ingress);
        let affinity = spec
            .session_affinity_config
            .and_then(|config| config.client_ip);
        let ports = spec.ports.unwrap_or_default().into_iter();
        let fact = Service {
            uid: meta.uid.clone().unwrap_or_default(),
            created: meta
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_second()),
            for_another_proxy: for_another_proxy(meta),
            kind: spec.type_.unwrap_or_default(),
            cluster_ip: spec.cluster_ip.unwrap_or_default(),
            cluster_ips: spec.cluster_ips.unwrap_or_default(),
            families: spec.ip_families.unwrap_or_default(),
            ports: ports
                .map(|port| ServicePort {
                    name: port.name.unwrap_or_default(),
                    protocol: port.protocol.unwrap_or_default(),
                    port: port.port,
                    node_port: port.node_port.unwrap_or_default(),
                })
                .collect(),
            external_ips: spec.external_ips.unwrap_or_default(),
            ingress: ingress
                .unwrap_or_default()
                .into_iter()
                .map(|ingress| Ingress {
                    ip: ingress.ip,
                    ip_mode: ingress.ip_mode,
                })
                .collect(),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
            affinity_seconds: affinity.and_then(|client| client.timeout_seconds),
            source_ranges: spec.load_balancer_source_ranges.unwrap_or_default(),
            source_ranges_annotation: annotation(meta, SOURCE_RANGES).map(str::to_owned),
            health_check_port: spec.health_check_node_port.unwrap_or_default(),
            forwarding_mode: annotation(meta, FORWARDING_MODE).map(str::to_owned),
        };
        Object::Service(key(&self.metadata), fact)
    }
}

impl Trim for ApiSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn key(&self) -> ObjectKey {
        key(&self.metadata)
    }

    fn trim(self) -> Object {
        let meta = &self.metadata;
        let triggered = annotation(meta, TRIGGERED).and_then(|text| text.parse::<Timestamp>().ok());
        let ports = self.ports.unwrap_or_default().into_iter();
        // A slice names few nodes and zones over and over.
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut shared = |text: &str| -> Arc<str> {
            if let Some(known) = names.iter().find(|known| ***known == *text) {
                return Arc::clone(known);
            }
            let new: Arc<str> = text.into();
            names.push(Arc::clone(&new));
            new
        };
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for endpoint in self.endpoints {
            let conditions = endpoint.conditions.unwrap_or_default();
            let hints = endpoint.hints.unwrap_or_default();
            let zones = hints.for_zones.unwrap_or_default();
            let nodes = hints.for_nodes.unwrap_or_default();
            let first = endpoint.addresses.first().map(String::as_str);
            endpoints.push(Endpoint {
                address: Address::read(first.unwrap_or_default()),
                ready: conditions.ready,
                serving: conditions.serving,
                terminating: conditions.terminating,
                node: endpoint.node_name.as_deref().map(&mut shared),
                zone: endpoint.zone.as_deref().map(&mut shared),
                zone_hints: zones.iter().map(|zone| shared(&zone.name)).collect(),
                node_hints: nodes.iter().map(|node| shared(&node.name)).collect(),
            });
        }
        let fact = Slice {
            uid: meta.uid.clone().unwrap_or_default(),
            service: label(meta, SERVICE_NAME).unwrap_or_default().into(),
            for_another_proxy: for_another_proxy(meta),
            address_type: self.address_type,
            ports: ports
                .map(|port| SlicePort {
                    name: port.name,
                    protocol: port.protocol,
                    port: port.port,
                })
                .collect(),
            endpoints,
            triggered_ms: triggered.map(Timestamp::as_millisecond),
        };
        Object::EndpointSlice(key(&self.metadata), fact)
    }
}

impl Trim for ApiNode {
    const KIND: Kind = Kind::Node;

    fn key(&self) -> ObjectKey {
        key(&self.metadata)
    }

    fn trim(self) -> Object {
        let meta = &self.metadata;
        let addresses = self.status.and_then(|status| status.addresses);
        let addresses: Vec<(String, IpAddr)> = addresses
            .unwrap_or_default()
            .into_iter()
            // Host names are none.
            .filter_map(|address| Some((address.type_, address.address.parse().ok()?)))
            .collect();
        let taints = self.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let fact = Node {
            uid: meta.uid.clone().unwrap_or_default(),
            addresses: addresses.iter().map(|(_, ip)| *ip).collect(),
            internal: addresses
                .iter()
                .filter(|(kind, _)| kind == "InternalIP")
                .map(|(_, ip)| *ip)
                .collect(),
            zone: label(meta, ZONE).map(Into::into),
            leaving: meta.deletion_timestamp.is_some()
                || taints.iter().any(|taint| taint.key == LEAVING),
        };
        Object::Node(key(&self.metadata), fact)
    }
}

impl Trim for ApiSecret {
    const KIND: Kind = Kind::Secret;

    fn key(&self) -> ObjectKey {
        key(&self.metadata)
    }

    fn trim(self) -> Object {
        let data = self.data.unwrap_or_default();
        let data = data.iter();
        let read = Keys::read(data.map(|(name, value)| (name.as_str(), value.0.as_slice())));
        Object::Secret(key(&self.metadata), read)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(value: Value) -> Service {
        let api: ApiService = serde_json::from_value(value).unwrap();
        match api.trim() {
            Object::Service(_, service) => service,
            other => panic!("{other:?}"),
        }
    }

    fn slice(value: Value) -> Slice {
        let api: ApiSlice = serde_json::from_value(value).unwrap();
        match api.trim() {
            Object::EndpointSlice(_, slice) => slice,
            other => panic!("{other:?}"),
        }
    }

    /// A2.9, A3.7
    #[test]
    fn what_an_application_speaks_and_where_pods_listen_is_not_read() {
        let with = |app: &str, target: Value| {
            service(json!({
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {"ports": [{"port": 80, "appProtocol": app, "targetPort": target}]},
            }))
        };
        let plain = with("http", json!(8080));
        assert_eq!(with("example.org/of-its-own", json!("named")), plain);
        assert_eq!(plain.ports[0].port, 80);
    }

    /// A5.1, A5.5
    #[test]
    fn traffic_distribution_is_read_from_hints_alone() {
        let with = |spec: Value, annotations: Value| {
            service(json!({
                "metadata": {"name": "web", "namespace": "default", "annotations": annotations},
                "spec": spec,
            }))
        };
        let plain = with(json!({}), json!({}));
        for distribution in ["PreferSameZone", "PreferSameNode", "PreferClose"] {
            let annotations = json!({"service.kubernetes.io/topology-mode": "Auto"});
            assert_eq!(
                with(json!({"trafficDistribution": distribution}), annotations),
                plain
            );
        }
    }

    /// A1.5
    #[test]
    fn the_class_of_a_load_balancer_is_not_asked_for_when_forwarding() {
        let with = |class: Value| {
            service(json!({
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {"type": "LoadBalancer", "loadBalancerClass": class},
                "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.10", "ipMode": "VIP"}]}},
            }))
        };
        assert_eq!(with(json!("example.org/other")), with(Value::Null));
        assert_eq!(
            with(Value::Null).ingress[0].ip.as_deref(),
            Some("203.0.113.10")
        );
    }

    /// A1.3, A1.4
    #[test]
    fn labels_of_other_proxies_are_seen_whatever_their_value() {
        for name in [PROXY_NAME, HEADLESS] {
            assert!(SELECTOR.split(',').any(|part| part == format!("!{name}")));
            for value in ["", "other"] {
                let labels = json!({name: value});
                let of = service(json!({"metadata": {"name": "web", "labels": labels}}));
                assert!(of.for_another_proxy);
                let labels = json!({name: value, SERVICE_NAME: "web"});
                let of = slice(json!({
                    "metadata": {"name": "web-1", "labels": labels},
                    "addressType": "IPv4", "endpoints": [],
                }));
                assert!(of.for_another_proxy);
            }
        }
        assert!(!service(json!({"metadata": {"name": "web"}})).for_another_proxy);
    }

    /// A3.4, A3.9, A3.12
    #[test]
    fn an_endpoint_is_its_first_address_and_what_is_said_of_it() {
        let read = slice(json!({
            "metadata": {
                "name": "web-1", "namespace": "default",
                "labels": {SERVICE_NAME: "web"},
                "annotations": {TRIGGERED: "2026-11-21T10:00:00.250Z"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}, {}],
            "endpoints": [
                {
                    "addresses": ["10.1.0.1", "10.1.0.2"],
                    "deprecatedTopology": {"kubernetes.io/hostname": "n9"},
                },
                {
                    "addresses": ["10.1.0.3"],
                    "conditions": {"ready": false, "serving": true, "terminating": true},
                    "nodeName": "n1",
                    "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]},
                },
            ],
        }));
        assert_eq!(&*read.service, "web");
        assert_eq!(read.triggered_ms, Some(1_795_255_200_250));
        assert_eq!(read.ports[0].port, Some(8080));
        assert_eq!(read.ports[1], SlicePort::default());
        let [first, second] = &read.endpoints[..] else {
            panic!("{read:?}");
        };
        let expected = Endpoint {
            address: Address::read("10.1.0.1"),
            ..Endpoint::default()
        };
        assert_eq!(*first, expected);
        assert_eq!(
            (second.ready, second.serving, second.terminating),
            (Some(false), Some(true), Some(true))
        );
        assert_eq!(second.node.as_deref(), Some("n1"));
        assert_eq!(
            (&*second.zone_hints[0], &*second.node_hints[0]),
            ("a", "n1")
        );
    }

    /// A5.4, A11.5
    #[test]
    fn a_node_is_its_addresses_its_zone_and_whether_it_leaves() {
        let node = |value: Value| {
            let api: ApiNode = serde_json::from_value(value).unwrap();
            match api.trim() {
                Object::Node(_, node) => node,
                other => panic!("{other:?}"),
            }
        };
        let read = node(json!({
            "metadata": {"name": "n1", "labels": {ZONE: "a"}},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "ExternalIP", "address": "198.51.100.1"},
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "2001:db8::1"},
            ]},
        }));
        assert_eq!(
            (read.addresses.len(), read.zone.as_deref(), read.leaving),
            (3, Some("a"), false)
        );
        assert_eq!(read.internal, read.addresses[1..]);
        let deleted =
            json!({"metadata": {"name": "n1", "deletionTimestamp": "2026-11-21T10:00:00Z"}});
        assert!(node(deleted).leaving);
        let tainted = json!({
            "metadata": {"name": "n1"},
            "spec": {"taints": [{"key": LEAVING, "effect": "NoSchedule"}]},
        });
        assert!(node(tainted).leaving);
    }
}
