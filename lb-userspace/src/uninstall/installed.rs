//! What was installed: the objects of the manifest that this build was made with.

use std::fmt;

use kube::core::{ApiResource, GroupVersionKind};
use serde::Deserialize;

const MANIFEST: &str = include_str!("../../../deploy/millrace.yaml");

/// Where the manifest's objects live, and the agents' own object.
pub(super) const NAMESPACE: &str = "millrace-system";
pub(super) const DAEMON_SET: &str = "millrace";

/// An object of the manifest, as far as its deletion needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

impl Object {
    pub(super) fn resource(&self) -> ApiResource {
        let (group, version) = self
            .api_version
            .rsplit_once('/')
            .unwrap_or(("", &self.api_version));
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &self.kind))
    }
}

/// `configmap millrace-system/millrace`
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.to_lowercase())?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

/// In the order of their deletion: the other way round than they are made.
pub(super) fn objects() -> Vec<Object> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        api_version: String,
        kind: String,
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
        namespace: Option<String>,
    }
    let heads = MANIFEST
        .split("\n---\n")
        .filter_map(|text| serde_saphyr::from_str::<Head>(text).ok());
    let mut objects: Vec<_> = heads
        .map(|head| Object {
            api_version: head.api_version,
            kind: head.kind,
            namespace: head.metadata.namespace,
            name: head.metadata.name,
        })
        .collect();
    objects.reverse();
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_of_the_manifest_is_known_and_its_namespace_goes_last() {
        let objects = objects();
        assert_eq!(objects.len(), MANIFEST.matches("\nkind: ").count());
        let shown: Vec<_> = objects.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "daemonset millrace-system/millrace",
                "service millrace-system/millrace",
                "configmap millrace-system/millrace",
                "rolebinding millrace-system/millrace-agent",
                "role millrace-system/millrace-agent",
                "clusterrolebinding millrace-agent",
                "clusterrole millrace-agent",
                "serviceaccount millrace-system/millrace-agent",
                "namespace millrace-system",
            ]
        );
        let plurals: Vec<_> = objects.iter().map(|one| one.resource().plural).collect();
        assert_eq!(plurals[0], "daemonsets");
        assert_eq!(plurals[8], "namespaces");
        assert_eq!(objects[0].resource().group, "apps");
    }
}
