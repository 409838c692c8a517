//! What `kubectl apply -f deploy/millrace.yaml` asks a cluster for: no more than the contract and the promises allow.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

fn file(path: &str) -> Result<String> {
    let whole = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path);
    fs::read_to_string(&whole).with_context(|| whole.display().to_string())
}

/// Objects of the manifest of this kind.
fn objects(kind: &str) -> Result<Vec<Value>> {
    let text = file("millrace.yaml")?;
    let mut found = Vec::new();
    for document in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).context(document.to_owned())?;
        if object["kind"] == kind {
            found.push(object);
        }
    }
    Ok(found)
}

fn only(kind: &str) -> Result<Value> {
    let mut found = objects(kind)?;
    ensure!(found.len() == 1, "{} objects of kind {kind}", found.len());
    found.pop().context("one object")
}

/// A14: services, slices and nodes are read, events are written; no statuses, pods, and no secret but the agents' own.
#[test]
fn a14_the_agent_may_read_what_it_forwards_and_write_events() -> Result<()> {
    let read = ["get", "list", "watch"];
    assert_eq!(
        only("ClusterRole")?["rules"],
        json!([
            {"apiGroups": [""], "resources": ["services", "nodes"], "verbs": read},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
            {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        ])
    );
    let own = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["millrace-keys"], "verbs": read});
    let made = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]});
    assert_eq!(only("Role")?["rules"], json!([own, made]));
    for binding in ["ClusterRoleBinding", "RoleBinding"] {
        assert_eq!(
            only(binding)?["subjects"],
            json!([{"kind": "ServiceAccount", "name": "millrace-agent", "namespace": "millrace-system"}])
        );
    }
    Ok(())
}

/// By their endpoints agents know each other; who detaches a node is none.
#[test]
fn the_service_of_the_agents_has_their_pods() -> Result<()> {
    let (service, set) = (only("Service")?, only("DaemonSet")?);
    assert_eq!(service["metadata"]["name"], "millrace");
    let wanted = service["spec"]["selector"].as_object();
    let labels = |labels: &Value| {
        let has = |(name, value): (&String, &Value)| labels[name] == *value;
        wanted.is_some_and(|wanted| wanted.iter().all(has))
    };
    assert!(labels(&set["spec"]["template"]["metadata"]["labels"]));
    // Which pods that detach get.
    assert!(!labels(&set["spec"]["selector"]["matchLabels"]));
    assert_eq!(service["spec"]["ipFamilyPolicy"], "PreferDualStack");
    let environment = &set["spec"]["template"]["spec"]["containers"][0]["env"];
    assert_eq!(
        environment[1],
        json!({"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}})
    );
    Ok(())
}

/// As interface.md section 5 says:
/// A14.2
#[test]
fn a14_2_the_pod_has_three_capabilities_and_a_root_that_it_cannot_write() -> Result<()> {
    let pod = &only("DaemonSet")?["spec"]["template"]["spec"];
    for name in ["hostPID", "hostIPC"] {
        ensure!(pod[name].is_null(), "{name}");
    }
    let containers = pod["containers"].as_array().context("containers")?;
    ensure!(containers.len() == 1 && pod["initContainers"].is_null());
    assert_eq!(
        containers[0]["securityContext"],
        json!({
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsUser": 0,
            "capabilities": {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"]},
        })
    );
    let folders: Vec<_> = pod["volumes"]
        .as_array()
        .context("volumes")?
        .iter()
        .filter_map(|volume| volume["hostPath"]["path"].as_str())
        .collect();
    assert_eq!(folders, ["/run/millrace", "/sys/fs/bpf"]);
    Ok(())
}

/// A node without its agent is served by kube-proxy, so one at a time is never a gap; two agents would refuse each other.
#[test]
fn nodes_are_updated_one_after_another() -> Result<()> {
    assert_eq!(
        only("DaemonSet")?["spec"]["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}})
    );
    Ok(())
}

#[test]
fn everything_is_in_a_namespace_that_admits_it() -> Result<()> {
    let namespace = only("Namespace")?;
    let labels = &namespace["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
    for kind in [
        "ServiceAccount",
        "ConfigMap",
        "DaemonSet",
        "Role",
        "RoleBinding",
        "Service",
    ] {
        let object = only(kind)?;
        assert_eq!(
            object["metadata"]["namespace"], namespace["metadata"]["name"],
            "{kind}"
        );
    }
    Ok(())
}

/// The base is one file, and the component changes what the file has.
#[test]
fn kustomizations_name_what_is_there() -> Result<()> {
    let base: Value = serde_saphyr::from_str(&file("kustomization.yaml")?)?;
    assert_eq!(base["resources"], json!(["millrace.yaml"]));
    let component: Value = serde_saphyr::from_str(&file("privileged/kustomization.yaml")?)?;
    let target = &component["patches"][0]["target"];
    let set = only("DaemonSet")?;
    assert_eq!(target["kind"], set["kind"]);
    assert_eq!(target["name"], set["metadata"]["name"]);
    Ok(())
}
