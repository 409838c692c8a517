//! Slices of endpoints written by hand, for Services without selector: what becomes of an endpoint is said at once, and its
//! pod goes on serving whatever is said.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{PORT, Space};

/// A pod with an address of each family.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub node: String,
    pub addresses: [IpAddr; 2],
}

/// What a slice says of a pod.
#[derive(Clone, Copy, Debug)]
pub enum Endpoint<'a> {
    Ready(&'a Pod),
    /// It terminates, and serves still.
    Leaving(&'a Pod),
    /// It terminates and does not serve.
    Dead(&'a Pod),
}

impl Endpoint<'_> {
    fn object(self, family: usize) -> Value {
        let (pod, ready, serving) = match self {
            Self::Ready(pod) => (pod, true, true),
            Self::Leaving(pod) => (pod, false, true),
            Self::Dead(pod) => (pod, false, false),
        };
        json!({
            "addresses": [pod.addresses[family]],
            "nodeName": pod.node,
            "conditions": {"ready": ready, "serving": serving, "terminating": !ready},
        })
    }
}

impl Space<'_> {
    /// The pods of a Deployment, by node.
    pub fn placed(&self, name: &str) -> Result<Vec<Pod>> {
        let pods = self.list_pods(name)?;
        let mut pods = pods.iter().map(pod).collect::<Result<Vec<_>>>()?;
        pods.sort_by(|one, other| (&one.node, &one.name).cmp(&(&other.node, &other.name)));
        Ok(pods)
    }

    /// Says who serves ports of a Service, instead of what was said of the same ports before. `udp` is one of UDP.
    pub fn endpoints(
        &self,
        service: &str,
        ports: &[&str],
        endpoints: &[Endpoint<'_>],
    ) -> Result<()> {
        let port = |name: &&str| {
            let protocol = if *name == "udp" { "UDP" } else { "TCP" };
            json!({"name": name, "protocol": protocol, "port": PORT})
        };
        let ports_said: Vec<_> = ports.iter().map(port).collect();
        let slice = |(family, kind): (usize, &str)| {
            let said: Vec<_> = endpoints.iter().map(|one| one.object(family)).collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{service}-{}-{}", ports.join("-"), kind.to_lowercase()),
                    "namespace": self.name,
                    "labels": {"kubernetes.io/service-name": service},
                },
                "addressType": kind,
                "ports": ports_said,
                "endpoints": said,
            })
        };
        let slices: Vec<_> = [(0, "IPv4"), (1, "IPv6")].into_iter().map(slice).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": slices});
        self.cluster.put(&list)
    }
}

fn pod(pod: &Value) -> Result<Pod> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("text");
    let address = |family: usize| -> Result<IpAddr> {
        Ok(text(&pod["status"]["podIPs"][family]["ip"])?.parse()?)
    };
    Ok(Pod {
        name: text(&pod["metadata"]["name"])?,
        node: text(&pod["spec"]["nodeName"])?,
        addresses: [address(0)?, address(1)?],
    })
}
