//! A place for one test's objects: servers in pods, Services with addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::{Cluster, PATIENCE, PORT};
use crate::netns::until;

/// How long a server that is told to end goes on serving: until whoever sends to it has heard of it.
const LAST_SECONDS: u8 = 5;

/// Where else TCP port 80 of a Service may be entered than at its VIPs; an address of each family.
#[derive(Debug)]
pub struct Entries {
    pub cluster_ips: [SocketAddr; 2],
    /// Of node 1.
    pub node_ports: [SocketAddr; 2],
    pub external_ips: [SocketAddr; 2],
}

/// A Kubernetes namespace, deleted on drop.
#[derive(Debug)]
pub struct Space<'a> {
    pub(super) cluster: &'a Cluster,
    pub name: String,
}

impl Space<'_> {
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let own = ["--namespace", &self.name];
        let whole: Vec<_> = own.iter().chain(arguments).copied().collect();
        self.cluster.kubectl(&whole)
    }

    /// So many servers on each node.
    pub fn spread(&self, name: &str, each: usize) -> Result<()> {
        self.servers(name, each * self.cluster.nodes()?.len())
    }

    /// A Deployment of servers, spread over the nodes, all of them ready. Each answers `/hostname` with its pod's name
    /// and `/clientip` with the address that it sees.
    pub fn servers(&self, name: &str, replicas: usize) -> Result<()> {
        let labels = json!({"app": name});
        let deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": self.name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "terminationGracePeriodSeconds": LAST_SECONDS + 5,
                        "topologySpreadConstraints": [{
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "DoNotSchedule",
                            "labelSelector": {"matchLabels": labels},
                        }],
                        "containers": [{
                            "name": "server",
                            "image": self.cluster.fact("server image")?,
                            "imagePullPolicy": "Never",
                            "args": [
                                "netexec",
                                format!("--http-port={PORT}"),
                                format!("--udp-port={PORT}"),
                                format!("--delay-shutdown={LAST_SECONDS}"),
                            ],
                            "readinessProbe": {
                                "httpGet": {"path": "/healthz", "port": PORT},
                                "periodSeconds": 1,
                            },
                        }],
                    },
                },
            },
        });
        self.cluster.put(&deployment)?;
        self.settled(name)
    }

    /// Waits until all pods of a Deployment are as it says, and ready.
    pub fn settled(&self, name: &str) -> Result<()> {
        let rollout = format!("deployment/{name}");
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["rollout", "status", &rollout, &timeout])?;
        Ok(())
    }

    pub(super) fn list_pods(&self, name: &str) -> Result<Vec<Value>> {
        let selector = format!("--selector=app={name}");
        let own = ["pods", "--namespace", &self.name, &selector];
        self.cluster.list(&own)
    }

    /// Names of the pods of a Deployment; on one node, or on all.
    pub fn pods(&self, name: &str, node: Option<&str>) -> Result<BTreeSet<String>> {
        let pods = self.list_pods(name)?;
        let wanted = |pod: &&Value| node.is_none_or(|node| pod["spec"]["nodeName"] == node);
        let name = |pod: &Value| {
            let name = pod["metadata"]["name"].as_str().context("a name")?;
            Ok(name.to_owned())
        };
        pods.iter().filter(wanted).map(name).collect()
    }

    /// Names of the pods of a Deployment by each of their addresses.
    pub fn pods_by_address(&self, name: &str) -> Result<BTreeMap<IpAddr, String>> {
        let mut found = BTreeMap::new();
        for pod in &self.list_pods(name)? {
            let name = pod["metadata"]["name"].as_str().context("a name")?;
            for address in pod["status"]["podIPs"].as_array().context("podIPs")? {
                let address = address["ip"].as_str().context("an address")?;
                found.insert(address.parse()?, name.to_owned());
            }
        }
        Ok(found)
    }

    /// Where a pod of a node's listens itself, by each family.
    pub fn own_servers(&self, name: &str, node: &str) -> Result<[SocketAddr; 2]> {
        let pod = self.pods(name, Some(node))?.pop_first().context("a pod")?;
        let mut addresses = self.pods_by_address(name)?;
        addresses.retain(|_, name| *name == pod);
        // IPv4 is first in the order of addresses.
        let servers: Vec<_> = addresses
            .into_keys()
            .map(|address| SocketAddr::new(address, PORT))
            .collect();
        let two = <[SocketAddr; 2]>::try_from(servers);
        two.map_err(|servers| anyhow!("{pod}: {servers:?}"))
    }

    /// Those that are not on a node.
    pub fn pods_elsewhere(&self, name: &str, node: &str) -> Result<BTreeSet<String>> {
        let there = self.pods(name, Some(node))?;
        Ok(self.pods(name, None)?.difference(&there).cloned().collect())
    }

    /// Waits until a Deployment has as many pods, all ready: those that were told to end are gone.
    pub fn scale(&self, name: &str, replicas: usize) -> Result<()> {
        let deployment = format!("deployment/{name}");
        let wanted = format!("--replicas={replicas}");
        self.kubectl(&["scale", &deployment, &wanted])?;
        self.settled(name)?;
        until(PATIENCE, || {
            let pods = self.pods(name, None)?;
            ensure!(pods.len() == replicas, "{name}: {pods:?}");
            Ok(())
        })
    }

    /// Waits for a Warning event about an object.
    pub fn warned(&self, reason: &str, object: &str) -> Result<()> {
        let fields =
            format!("--field-selector=type=Warning,reason={reason},involvedObject.name={object}");
        until(PATIENCE, || {
            let events = self
                .cluster
                .list(&["events", "--namespace", &self.name, &fields])?;
            ensure!(!events.is_empty(), "no event {reason} on {object}");
            Ok(())
        })
    }

    /// An object's spec.
    pub fn spec(&self, kind: &str, name: &str) -> Result<Value> {
        let answer = self.kubectl(&["get", kind, name, "--output=json"])?;
        let mut object: Value = serde_json::from_str(&answer)?;
        Ok(object["spec"].take())
    }

    /// Entries of a Service that has all of them; packets for its addresses come to node 1.
    pub fn entries(&self, name: &str) -> Result<Entries> {
        let spec = self.spec("service", name)?;
        let port = spec["ports"][0]["nodePort"].as_u64().context("nodePort")?;
        let node = |v6| {
            let address = self.cluster.address("node1", v6)?;
            Ok::<_, anyhow::Error>(SocketAddr::new(address, port.try_into()?))
        };
        let routed = |list: &str, at: usize| {
            let text = spec[list][at]
                .as_str()
                .context("an address of each family")?;
            let address = text.parse()?;
            self.cluster.route(address, "node1")?;
            Ok::<_, anyhow::Error>(SocketAddr::new(address, 80))
        };
        Ok(Entries {
            cluster_ips: [routed("clusterIPs", 0)?, routed("clusterIPs", 1)?],
            node_ports: [node(false)?, node(true)?],
            external_ips: [routed("externalIPs", 0)?, routed("externalIPs", 1)?],
        })
    }

    /// Merges `fields` into the spec of an object.
    pub fn edit(&self, kind: &str, name: &str, fields: &Value) -> Result<()> {
        let patch = json!({"spec": fields}).to_string();
        self.kubectl(&["patch", kind, name, "--type=merge", "--patch", &patch])?;
        Ok(())
    }

    /// A Service of type `LoadBalancer` for a Deployment of the same name, TCP and UDP 80 on these addresses, which are
    /// put into its status as an allocator would. `more` are further fields of its spec.
    pub fn service(&self, name: &str, vips: &[IpAddr], more: &Value) -> Result<()> {
        let port = |protocol: &str| {
            json!({
                "name": protocol.to_lowercase(),
                "protocol": protocol,
                "port": 80,
                "targetPort": PORT,
            })
        };
        let mut spec = json!({
            "type": "LoadBalancer",
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": name},
            "ports": [port("TCP"), port("UDP")],
        });
        let fields = spec.as_object_mut().context("a spec")?;
        fields.extend(more.as_object().context("fields")?.clone());
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": self.name},
            "spec": spec,
        });
        self.cluster.put(&service)?;
        self.addresses(name, vips)
    }

    /// Puts addresses into a Service's status, instead of those that are there.
    pub fn addresses(&self, name: &str, vips: &[IpAddr]) -> Result<()> {
        let ingress = vips.iter().map(|vip| json!({"ip": vip})).collect();
        self.ingress(name, &ingress)
    }

    /// Elements of `status.loadBalancer.ingress`, as an allocator would write them.
    pub fn ingress(&self, name: &str, ingress: &Value) -> Result<()> {
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
        let patch = ["patch", "service", name, "--subresource=status"];
        self.kubectl(&[&patch[..], &["--type=merge", "--patch", &status]].concat())?;
        Ok(())
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", &self.name, "--wait=false"];
        if let Err(error) = self.cluster.kubectl(&delete) {
            eprintln!("{error:#}");
        }
    }
}
