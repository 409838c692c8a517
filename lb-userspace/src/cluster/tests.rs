//! The watches against a server that does what no real one does on demand.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame},
};
use k8s_openapi::ByteString;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    facts::{Change, Kind, Object},
    follow, keep,
    keys::{self, Keys},
};

const SERVICES: &str = "/api/v1/services";
const SECRETS: &str = "/api/v1/namespaces/millrace-system/secrets";
const ONE_SECRET: &str = "/api/v1/namespaces/millrace-system/secrets/millrace-keys";

/// What the server does with one request for a path.
enum Answer {
    /// A document.
    Whole(u16, Value),
    /// Lines, and then nothing for ever.
    Watch(Vec<Value>),
    /// No connection.
    Away,
}

/// Answers by path, in order; a path without any more has a watch without events.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<HashMap<&'static str, VecDeque<Answer>>>>,
    asked: Arc<Mutex<Vec<String>>>,
    /// Bodies of the requests.
    sent: Arc<Mutex<Vec<Bytes>>>,
}

type Stream = UnsyncBoxBody<Bytes, Infallible>;

impl Server {
    fn with(path: &'static str, answers: Vec<Answer>) -> Self {
        let server = Self::default();
        server.answers.lock().unwrap().insert(path, answers.into());
        server
    }

    fn answer(&self, request: &Request<Body>) -> io::Result<Response<Stream>> {
        let uri = request.uri();
        let asked = format!("{} {uri}", request.method());
        self.asked.lock().unwrap().push(asked);
        let mut answers = self.answers.lock().unwrap();
        let answer = answers.get_mut(uri.path()).and_then(VecDeque::pop_front);
        let (code, lines, ends) = match answer.unwrap_or(Answer::Watch(Vec::new())) {
            Answer::Whole(code, value) => (code, vec![value], true),
            Answer::Watch(lines) => (200, lines, false),
            Answer::Away => return Err(io::ErrorKind::ConnectionRefused.into()),
        };
        let frames = lines
            .into_iter()
            .map(|line| Ok(Frame::data(format!("{line}\n").into())));
        let frames = stream::iter(frames);
        let body = if ends {
            StreamBody::new(frames).boxed_unsync()
        } else {
            StreamBody::new(frames.chain(stream::pending())).boxed_unsync()
        };
        Ok(Response::builder().status(code).body(body).unwrap())
    }

    /// What it was asked for, of a path.
    fn asked(&self, path: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let of_path = asked.iter().filter(|uri| uri.contains(path));
        of_path.cloned().collect()
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let answer = server.answer(&request);
                let whole = request.into_body().collect().await.unwrap().to_bytes();
                server.sent.lock().unwrap().push(whole);
                answer
            }
        });
        Client::new(service, "default")
    }

    fn follow(&self) -> mpsc::Receiver<Vec<Change>> {
        self.follow_with(None)
    }

    /// With the keys in a namespace.
    fn follow_with(&self, namespace: Option<&str>) -> mpsc::Receiver<Vec<Change>> {
        let (changes_in, changes) = mpsc::channel(64);
        let namespace = namespace.map(str::to_owned);
        tokio::spawn(follow(self.client(), namespace, changes_in));
        changes
    }
}

fn service(name: &str, version: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": version.to_string()},
        "spec": {"clusterIP": "10.96.0.1"},
    })
}

fn event(kind: &str, object: impl Into<Value>) -> Value {
    let object = object.into();
    json!({"type": kind, "object": object})
}

/// The end of a streamed list.
fn listed(version: u32) -> Value {
    event(
        "BOOKMARK",
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "resourceVersion": version.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"},
            },
        }),
    )
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

/// The next changes of Services, as words.
async fn next(changes: &mut mpsc::Receiver<Vec<Change>>, count: usize) -> Vec<String> {
    let mut told = Vec::new();
    while told.len() < count {
        let some = timeout(Duration::from_mins(1), changes.recv()).await;
        let some = some.expect("a change in time").expect("somebody tells");
        told.extend(some.iter().filter_map(word));
    }
    told
}

fn word(change: &Change) -> Option<String> {
    match change {
        Change::Applied(object) => match &**object {
            Object::Service(key, _) => Some(format!("+{}", key.name)),
            _ => None,
        },
        Change::Deleted(Kind::Service, key) => Some(format!("-{}", key.name)),
        Change::ListBegins(Kind::Service) => Some("(".to_owned()),
        Change::ListEnds(Kind::Service) => Some(")".to_owned()),
        Change::Lost(Kind::Service, why) => Some(format!("lost: {why}")),
        Change::Found(Kind::Service) => Some("found".to_owned()),
        _ => None,
    }
}

/// A1.3, A1.4
#[tokio::test(start_paused = true)]
async fn a_streamed_list_is_told_whole_and_then_each_change() {
    let server = Server::with(
        SERVICES,
        vec![Answer::Watch(vec![
            event("ADDED", service("a", 1)),
            event("ADDED", service("b", 2)),
            listed(2),
            event("MODIFIED", service("a", 3)),
            event("BOOKMARK", service("", 9)),
            event("DELETED", service("b", 10)),
        ])],
    );
    let told = next(&mut server.follow(), 6).await;
    assert_eq!(told, ["(", "+a", "+b", ")", "+a", "-b"]);
    for path in [SERVICES, "/apis/discovery.k8s.io/v1/endpointslices"] {
        let asked = server.asked(path);
        assert!(asked[0].contains("sendInitialEvents=true"), "{asked:?}");
        // What others serve is not sent at all.
        let selector = "labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name";
        assert!(asked[0].contains(selector), "{asked:?}");
    }
    assert!(!server.asked("/api/v1/nodes")[0].contains("labelSelector"));
}

/// A3.15, A14.1
#[tokio::test(start_paused = true)]
async fn nothing_but_services_slices_nodes_and_one_secret_is_asked_for() {
    let server = Server::default();
    let mut changes = server.follow_with(Some("millrace-system"));
    assert!(
        timeout(Duration::from_mins(20), changes.recv())
            .await
            .is_ok()
    );
    let paths: Vec<String> = server
        .asked("/")
        .iter()
        .map(|uri| {
            let path = uri.split('?').next().unwrap_or_default();
            path[path.rfind('/').unwrap_or_default()..].to_owned()
        })
        .collect();
    assert!(paths.len() >= 3);
    assert!(
        paths.iter().all(
            |path| ["/services", "/endpointslices", "/nodes", "/secrets"].contains(&path.as_str())
        ),
        "{paths:?}"
    );
    let secrets = server.asked("/secrets");
    assert!(!secrets.is_empty());
    for uri in secrets {
        let one = "fieldSelector=metadata.name%3Dmillrace-keys";
        assert!(uri.starts_with(&format!("GET {SECRETS}?")), "{uri}");
        assert!(uri.contains(one), "{uri}");
    }
    // Who does not know where it is asks for no Secret.
    let server = Server::default();
    let mut changes = server.follow();
    let told = timeout(Duration::from_mins(20), changes.recv()).await;
    assert!(told.is_ok());
    assert_eq!(server.asked("/secrets"), [""; 0]);
}

fn secret(keys: &Keys) -> Value {
    let data = keys.data().into_iter();
    let data = data.map(|(name, value)| (name, ByteString(value)));
    let data: BTreeMap<String, ByteString> = data.collect();
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": keys::NAME, "namespace": "millrace-system", "resourceVersion": "1"},
        "data": data,
    })
}

#[tokio::test(start_paused = true)]
async fn keys_are_read_from_the_secret() {
    let keys = Keys::new([1, 2], [3, 4]);
    let server = Server::with(
        SECRETS,
        vec![Answer::Watch(vec![
            event("ADDED", secret(&keys)),
            listed(1),
        ])],
    );
    let mut changes = server.follow_with(Some("millrace-system"));
    let mut told = Vec::new();
    while !told.contains(&Change::ListEnds(Kind::Secret)) {
        told.extend(changes.recv().await.unwrap());
    }
    let read = told.iter().find_map(|change| match change {
        Change::Applied(object) => match &**object {
            Object::Secret(key, keys) => Some((key.to_string(), keys.clone())),
            _ => None,
        },
        _ => None,
    });
    let name = "millrace-system/millrace-keys".to_owned();
    assert_eq!(read, Some((name, Ok(keys))));
}

/// What a server is asked for by who keeps the keys there, once they are wanted.
async fn kept(answers: Vec<Answer>) -> (Vec<String>, Vec<Bytes>) {
    let server = Server::default();
    for (path, answer) in [ONE_SECRET, SECRETS].into_iter().zip(answers) {
        server.answers.lock().unwrap().insert(path, [answer].into());
    }
    let (wanted_in, wanted) = watch::channel(false);
    let keeping = tokio::spawn(keep(server.client(), "millrace-system".to_owned(), wanted));
    tokio::task::yield_now().await;
    assert_eq!(server.asked("/"), [""; 0], "nobody wants them");
    wanted_in.send_replace(true);
    timeout(Duration::from_mins(1), keeping)
        .await
        .unwrap()
        .unwrap();
    let sent = server.sent.lock().unwrap().clone();
    (server.asked("/"), sent)
}

#[tokio::test(start_paused = true)]
async fn keys_are_made_by_the_first_who_wants_them() {
    let none = || Answer::Whole(404, status(404, "NotFound", "no such secret"));
    let made = Answer::Whole(201, secret(&Keys::new([1, 2], [3, 4])));
    let (asked, sent) = kept(vec![none(), made]).await;
    assert_eq!(
        asked,
        [format!("GET {ONE_SECRET}"), format!("POST {SECRETS}?")]
    );
    let body: Value = serde_json::from_slice(&sent[1]).unwrap();
    let data: BTreeMap<String, ByteString> = serde_json::from_value(body["data"].clone()).unwrap();
    let keys = Keys::read(
        data.iter()
            .map(|(name, value)| (name.as_str(), value.0.as_slice())),
    );
    assert_eq!(keys.unwrap().data().len(), 3);

    let there = Answer::Whole(200, secret(&Keys::new([1, 2], [3, 4])));
    assert_eq!(kept(vec![there]).await.0, [format!("GET {ONE_SECRET}")]);
    let faster = Answer::Whole(409, status(409, "AlreadyExists", "it is there"));
    assert_eq!(kept(vec![none(), faster]).await.0.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_without_streamed_lists_gives_plain_ones() {
    let list = json!({
        "apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": "7"},
        "items": [service("a", 1)],
    });
    let server = Server::with(
        SERVICES,
        vec![
            Answer::Whole(422, status(422, "Invalid", "sendInitialEvents: Forbidden")),
            Answer::Whole(200, list),
            Answer::Watch(vec![event("ADDED", service("b", 8))]),
        ],
    );
    let told = next(&mut server.follow(), 4).await;
    assert_eq!(told, ["(", "+a", ")", "+b"]);
    let asked = server.asked(SERVICES);
    assert!(!asked[1].contains("watch"), "{asked:?}");
    assert!(asked[2].contains("resourceVersion=7"), "{asked:?}");
}

/// A3.11
#[tokio::test(start_paused = true)]
async fn a_watch_that_expired_is_a_list_again_without_a_word_of_loss() {
    let gone = event("ERROR", status(410, "Expired", "too old resource version"));
    let server = Server::with(
        SERVICES,
        vec![
            Answer::Watch(vec![event("ADDED", service("a", 1)), listed(1), gone]),
            Answer::Watch(vec![event("ADDED", service("b", 5)), listed(5)]),
        ],
    );
    let told = next(&mut server.follow(), 6).await;
    assert_eq!(told, ["(", "+a", ")", "(", "+b", ")"]);
}

/// A14.1
#[tokio::test(start_paused = true)]
async fn a_missing_permission_names_verb_and_resource() {
    let forbidden = || {
        let message = "services is forbidden: User \"x\" cannot watch resource \"services\"";
        Answer::Whole(403, status(403, "Forbidden", message))
    };
    let server = Server::with(
        SERVICES,
        vec![forbidden(), forbidden(), Answer::Watch(vec![listed(1)])],
    );
    let told = next(&mut server.follow(), 4).await;
    assert!(
        told[0].starts_with("lost: no permission to watch services: apply the ClusterRole"),
        "{told:?}"
    );
    assert_eq!(told[1..], ["(", "found", ")"], "told of once");
}

/// A11.6
#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_is_found_without_a_change() {
    let mut answers = vec![Answer::Watch(vec![
        event("ADDED", service("a", 1)),
        listed(1),
        event("ERROR", status(500, "InternalError", "etcd is away")),
    ])];
    answers.push(Answer::Away);
    let server = Server::with(SERVICES, answers);
    let told = next(&mut server.follow(), 5).await;
    assert_eq!(told[..3], ["(", "+a", ")"]);
    assert!(told[3].starts_with("lost: "), "{told:?}");
    assert!(told[3].contains("etcd is away"), "{told:?}");
    assert_eq!(told[4], "found");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_from_the_start_is_asked_again() {
    let server = Server::with(
        SERVICES,
        vec![
            Answer::Away,
            Answer::Away,
            Answer::Watch(vec![event("ADDED", service("a", 1)), listed(1)]),
        ],
    );
    let told = next(&mut server.follow(), 5).await;
    let why = "lost: the API server does not answer: connection refused";
    assert_eq!(told, [why, "(", "found", "+a", ")"]);
}
