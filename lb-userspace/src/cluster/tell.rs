//! Pure: from a kind's watch events to changes, and from its errors to words.

use kube::runtime::watcher::{self, Event};

use super::{
    facts::{Change, Kind},
    trim::Trim,
};

/// Makes changes of a kind's events.
#[derive(Debug)]
pub(super) struct Teller {
    kind: Kind,
    /// A list was told whole.
    listed: bool,
    /// Why the watch does not go on.
    lost: Option<String>,
}

impl Teller {
    pub(super) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            listed: false,
            lost: None,
        }
    }

    /// The watch stands still after a list: it may go on without a word.
    pub(super) const fn is_resuming(&self) -> bool {
        self.listed && self.lost.is_some()
    }

    pub(super) fn found(&mut self) -> Vec<Change> {
        let found = self.lost.take().map(|_| Change::Found(self.kind));
        if found.is_some() {
            tracing::info!(kind = self.kind.name(), "the watch goes on");
        }
        found.into_iter().collect()
    }

    pub(super) fn tell<K: Trim>(&mut self, event: Result<Event<K>, watcher::Error>) -> Vec<Change> {
        let change = match event {
            Err(error) => return self.lose(&error),
            // A plain list is begun before the server has said a word.
            Ok(Event::Init) => return vec![Change::ListBegins(self.kind)],
            Ok(Event::InitDone) => {
                self.listed = true;
                Change::ListEnds(self.kind)
            }
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                Change::Applied(Box::new(object.trim()))
            }
            Ok(Event::Delete(object)) => Change::Deleted(self.kind, object.key()),
        };
        let mut told = self.found();
        told.push(change);
        told
    }

    fn lose(&mut self, error: &watcher::Error) -> Vec<Change> {
        if code(error) == Some(410) {
            tracing::debug!(
                kind = self.kind.name(),
                "the server forgot where we were: listing"
            );
            return Vec::new();
        }
        let why = why(self.kind, error);
        if self.lost.as_ref() == Some(&why) {
            return Vec::new();
        }
        tracing::warn!(kind = self.kind.name(), "the watch stands still: {why}");
        self.lost = Some(why.clone());
        vec![Change::Lost(self.kind, why)]
    }
}

/// Before Kubernetes 1.32, and where the gate is off, the server calls a streamed list invalid.
pub(super) fn is_refusal(error: Option<&watcher::Error>) -> bool {
    let streamed = |error: &&watcher::Error| {
        !matches!(
            error,
            watcher::Error::InitialListFailed(_) | watcher::Error::WatchFailed(_)
        )
    };
    matches!(error.filter(streamed).and_then(code), Some(400 | 422))
}

/// HTTP status that the server gave.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

fn why(kind: Kind, error: &watcher::Error) -> String {
    let (verb, cause) = match error {
        watcher::Error::InitialListFailed(cause) => ("list", cause),
        watcher::Error::WatchStartFailed(cause) | watcher::Error::WatchFailed(cause) => {
            ("watch", cause)
        }
        other => return chain(other),
    };
    match cause {
        kube::Error::Api(status) if status.code == 403 => format!(
            "no permission to {verb} {}: apply the {} of deploy/millrace.yaml ({})",
            kind.resource(),
            match kind {
                Kind::Secret => "Role",
                _ => "ClusterRole",
            },
            status.message
        ),
        kube::Error::Api(status) if status.code == 401 => {
            format!("the server does not know who we are: {}", status.message)
        }
        kube::Error::Service(cause) => {
            format!("the API server does not answer: {}", chain(&**cause))
        }
        cause => chain(cause),
    }
}

/// The error and what is behind it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        next = cause.source();
    }
    text
}
