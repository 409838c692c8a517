//! Warning events on objects. One who says the same again makes a series of it; nobody says much: a burst, then one in
//! five seconds.

use std::{collections::HashSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    core::Status,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::facts::{Kind, ObjectKey};

/// As events name us.
const REPORTER: &str = "millrace.io/agent";

/// Events at once, and the time after which another one may follow.
const BURST: u32 = 25;
const PAUSE: Duration = Duration::from_secs(5);

/// What the API server takes in a note.
const NOTE: usize = 1024;

/// What is wrong with an object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Warning {
    pub kind: Kind,
    pub object: ObjectKey,
    pub uid: Arc<str>,
    /// `CamelCase`.
    pub reason: &'static str,
    pub message: String,
}

/// Tells of warnings that are new; one that was gone and is back is new again.
#[derive(Debug)]
pub struct Warnings {
    known: HashSet<Warning>,
    out: mpsc::Sender<Warning>,
}

impl Warnings {
    pub fn new(out: mpsc::Sender<Warning>) -> Self {
        Self {
            known: HashSet::new(),
            out,
        }
    }

    /// All that there are now. Where the queue is full, the rest is told another time.
    pub fn set(&mut self, now: HashSet<Warning>) {
        self.known.retain(|known| now.contains(known));
        for warning in now {
            if !self.known.contains(&warning) && self.out.try_send(warning.clone()).is_ok() {
                self.known.insert(warning);
            }
        }
    }
}

/// Makes events of warnings until nobody sends any more. One that the server does not take is logged and left.
pub async fn record(client: Client, node: String, mut warnings: mpsc::Receiver<Warning>) {
    let reporter = Reporter {
        controller: REPORTER.to_owned(),
        instance: Some(node),
    };
    let recorder = Recorder::new(client, reporter);
    let mut budget = Budget::full(Instant::now());
    while let Some(warning) = warnings.recv().await {
        sleep_until(budget.take(Instant::now())).await;
        let event = Event {
            type_: EventType::Warning,
            reason: warning.reason.to_owned(),
            note: Some(cut(&warning.message)),
            action: "Skipped".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &reference(&warning)).await {
            let kube::Error::Api(status) = &error else {
                tracing::warn!(%error, object = %warning.object, "no event");
                continue;
            };
            if is_dying(status) {
                continue;
            }
            let what = if status.code == 403 {
                "no permission to create and patch events.events.k8s.io: apply the ClusterRole of deploy/millrace.yaml"
            } else {
                "no event"
            };
            tracing::warn!(message = status.message, object = %warning.object, "{what}");
        }
    }
}

/// The object's namespace is being deleted, and the object with it: who has every right is refused then, too.
fn is_dying(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}

fn reference(warning: &Warning) -> ObjectReference {
    let api = match warning.kind {
        Kind::Service | Kind::Node | Kind::Secret => "v1",
        Kind::EndpointSlice => "discovery.k8s.io/v1",
    };
    let namespace = &warning.object.namespace;
    ObjectReference {
        api_version: Some(api.to_owned()),
        kind: Some(warning.kind.name().to_owned()),
        name: Some(warning.object.name.to_string()),
        namespace: (!namespace.is_empty()).then(|| namespace.to_string()),
        uid: (!warning.uid.is_empty()).then(|| warning.uid.to_string()),
        ..ObjectReference::default()
    }
}

fn cut(message: &str) -> String {
    let end = message.floor_char_boundary(NOTE);
    message[..end].to_owned()
}

/// A bucket of [`BURST`] that fills by one each [`PAUSE`].
#[derive(Debug)]
struct Budget {
    /// When the bucket is full again.
    full: Instant,
}

impl Budget {
    const fn full(now: Instant) -> Self {
        Self { full: now }
    }

    /// When the next one may go.
    fn take(&mut self, now: Instant) -> Instant {
        self.full = self.full.max(now) + PAUSE;
        let most = PAUSE * BURST;
        self.full.checked_sub(most).map_or(now, |due| due.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(name: &str, message: &str) -> Warning {
        Warning {
            kind: Kind::Service,
            object: ObjectKey::new("default", name),
            uid: "uid".into(),
            reason: "FrontendConflict",
            message: message.to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_one_by_one() {
        // The clock of a test begins at zero.
        tokio::time::advance(Duration::from_hours(1)).await;
        let now = Instant::now();
        let mut budget = Budget::full(now);
        for at in 0..BURST {
            assert_eq!(budget.take(now), now, "{at}");
        }
        assert_eq!(budget.take(now), now + PAUSE);
        assert_eq!(budget.take(now), now + PAUSE * 2);
        let later = now + PAUSE * 100;
        assert_eq!(budget.take(later), later);
    }

    /// As the API server says it.
    #[test]
    fn a_namespace_that_is_being_deleted_lacks_no_permission() {
        let status = |reason: &str| -> Status {
            serde_json::from_value(serde_json::json!({
                "status": "Failure", "reason": "Forbidden", "code": 403, "message": "",
                "details": {"causes": [{"reason": reason, "field": "metadata.namespace", "message": ""}]},
            }))
            .expect("a status")
        };
        assert!(is_dying(&status("NamespaceTerminating")));
        assert!(!is_dying(&status("Other")));
    }

    #[tokio::test]
    async fn a_warning_is_told_once_until_it_is_gone() {
        let (out, mut told) = mpsc::channel(2);
        let mut warnings = Warnings::new(out);
        let (one, two) = (warning("a", "one"), warning("b", "two"));
        warnings.set([one.clone()].into());
        warnings.set([one.clone(), two.clone()].into());
        assert_eq!(
            [told.recv().await, told.recv().await],
            [Some(one.clone()), Some(two)]
        );
        warnings.set([one.clone()].into());
        assert!(told.try_recv().is_err());
        warnings.set(HashSet::new());
        warnings.set([one.clone()].into());
        assert_eq!(told.recv().await, Some(one));
        // What finds the queue full comes when there is room.
        let many: HashSet<Warning> = (0..3).map(|at| warning("c", &at.to_string())).collect();
        warnings.set(many.clone());
        let first = [told.recv().await.unwrap(), told.recv().await.unwrap()];
        assert!(told.try_recv().is_err());
        warnings.set(many.clone());
        let last = told.recv().await.unwrap();
        let seen: HashSet<Warning> = first.into_iter().chain([last]).collect();
        assert_eq!(seen, many);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "ü".repeat(NOTE);
        assert_eq!(cut(&long).len(), NOTE);
        assert_eq!(cut(&format!("a{long}")).len(), NOTE - 1);
    }
}
