//! A pod that detaches on one node: the agent's own, with another command. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ContainerStatus, Node, Pod, PodSpec},
};
use kube::core::ObjectMeta;

use super::installed::NAMESPACE;

/// Of these pods, and of no agent's.
pub(super) const SELECTOR: &str = "app.kubernetes.io/name=millrace,millrace.io/work=detach";

/// How long a try waits for the agent to end.
const WAIT: &str = "--wait=1m";

/// Whether the agent is to run on this node.
pub(super) fn wants(set: &DaemonSet, node: &Node) -> bool {
    let wanted = template(set).and_then(|pod| pod.node_selector);
    let labels = node.metadata.labels.as_ref();
    wanted
        .unwrap_or_default()
        .iter()
        .all(|(name, value)| labels.and_then(|labels| labels.get(name)) == Some(value))
}

pub(super) fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn template(set: &DaemonSet) -> Option<PodSpec> {
    set.spec.as_ref()?.template.spec.clone()
}

/// By which the `DaemonSet` knows its pods.
pub(super) fn agents_labels(set: &DaemonSet) -> BTreeMap<String, String> {
    let selector = set.spec.as_ref().map(|spec| &spec.selector);
    let labels = selector.and_then(|selector| selector.match_labels.clone());
    labels.unwrap_or_default()
}

/// None without a container to take it from.
pub(super) fn detacher(set: &DaemonSet, node: &str) -> Option<Pod> {
    let mut pod = template(set)?;
    pod.node_name = Some(node.to_owned());
    // It goes where it is sent; who schedules, and by what, is of no matter.
    pod.node_selector = None;
    pod.affinity = None;
    pod.restart_policy = Some("OnFailure".to_owned());
    pod.automount_service_account_token = Some(false);
    pod.containers.truncate(1);
    let container = pod.containers.first_mut()?;
    container.args = Some(vec!["detach".to_owned(), WAIT.to_owned()]);
    container.liveness_probe = None;
    container.readiness_probe = None;
    container.startup_probe = None;
    // What it says when it fails stands in its status then.
    container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());
    let labels = SELECTOR
        .split(',')
        .filter_map(|label| label.split_once('='));
    let labels: BTreeMap<_, _> = labels
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    Some(Pod {
        metadata: ObjectMeta {
            generate_name: Some("millrace-detach-".to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(pod),
        status: None,
    })
}

/// How far a node is.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Progress {
    Done,
    /// Why not yet.
    Open(String),
}

pub(super) fn progress(pod: Option<&Pod>) -> Progress {
    let Some(status) = pod.and_then(|pod| pod.status.as_ref()) else {
        return Progress::Open("its pod is not there".to_owned());
    };
    let phase = status.phase.as_deref().unwrap_or("Pending");
    if phase == "Succeeded" {
        return Progress::Done;
    }
    let mut containers = status.container_statuses.iter().flatten();
    let told = containers.find_map(trouble);
    Progress::Open(told.unwrap_or_else(|| format!("its pod is {}", phase.to_lowercase())))
}

/// What the last try said, else what keeps it from a first one.
fn trouble(container: &ContainerStatus) -> Option<String> {
    let states = [container.state.as_ref(), container.last_state.as_ref()];
    let ended = states.into_iter().flatten().find_map(|state| {
        let ended = state.terminated.as_ref()?;
        let said = ended.message.as_deref().unwrap_or_default().trim();
        let said = said.trim_start_matches("error: ");
        Some(match said {
            "" => format!("exit code {}", ended.exit_code),
            said => said.to_owned(),
        })
    });
    ended.or_else(|| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let said = waiting.message.as_deref().or(waiting.reason.as_deref());
        said.map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    fn set() -> DaemonSet {
        let manifest = include_str!("../../../deploy/millrace.yaml");
        let document = manifest.split("\n---\n").last().expect("documents");
        of(serde_saphyr::from_str(document).expect("YAML"))
    }

    #[test]
    fn it_is_the_agents_pod_with_another_command_for_one_node() {
        let set = set();
        let pod = serde_json::to_value(detacher(&set, "n1").expect("a pod")).expect("JSON");
        let (spec, agent) = (&pod["spec"], serde_json::to_value(&set).expect("JSON"));
        let agent = &agent["spec"]["template"];
        assert_eq!(spec["nodeName"], "n1");
        assert_eq!(spec["containers"][0]["args"], json!(["detach", WAIT]));
        assert!(spec["containers"][0]["livenessProbe"].is_null());
        for field in ["securityContext", "image", "volumeMounts"] {
            let agents = &agent["spec"]["containers"][0][field];
            assert!(
                !agents.is_null() && spec["containers"][0][field] == *agents,
                "{field}"
            );
        }
        assert_eq!(spec["volumes"], agent["spec"]["volumes"]);
    }

    #[test]
    fn it_is_none_of_the_agents_before_it_is_labelled_so() {
        let set = set();
        let agents = agents_labels(&set);
        assert!(!agents.is_empty());
        let mut labels = detacher(&set, "n1").expect("a pod").metadata.labels;
        let labels = labels.get_or_insert_default();
        let is_agents = |labels: &BTreeMap<String, String>| {
            agents
                .iter()
                .all(|(name, value)| labels.get(name) == Some(value))
        };
        assert!(!is_agents(labels));
        let before = labels.clone();
        labels.extend(agents.clone());
        let kept = before
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value));
        assert!(is_agents(labels) && kept, "{labels:?}");
    }

    #[test]
    fn nodes_are_those_that_the_agents_run_on() {
        let node = |system: &str| -> Node {
            let labels = json!({"kubernetes.io/os": system, "kubernetes.io/arch": "amd64"});
            of(
                json!({"metadata": {"labels": labels}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
            )
        };
        assert!(wants(&set(), &node("linux")));
        assert!(!wants(&set(), &node("windows")));
        assert!(!is_ready(&node("linux")));
    }

    #[test]
    fn what_a_pod_says_is_told() {
        let pod = |status: Value| -> Pod { of(json!({"metadata": {}, "status": status})) };
        let container = |state: Value, last: Value| {
            json!({"phase": "Running", "containerStatuses": [{
                "name": "agent", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": state, "lastState": last,
            }]})
        };
        let open = |text: &str| Progress::Open(text.to_owned());
        let ended = json!({"terminated": {"exitCode": 9, "message": "error: the agent runs\n"}});
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}});
        for (status, expected) in [
            (json!({"phase": "Succeeded"}), Progress::Done),
            (json!({"phase": "Pending"}), open("its pod is pending")),
            (container(waiting.clone(), ended), open("the agent runs")),
            (container(waiting, json!({})), open("back-off")),
        ] {
            assert_eq!(progress(Some(&pod(status))), expected);
        }
        assert_eq!(progress(None), open("its pod is not there"));
    }
}
