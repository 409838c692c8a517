//! What those ask who restart the agent or send traffic to it (contract A11.5).

use hyper::StatusCode;

use super::super::http::{Answer, text};
use crate::state::{Attached, NO_UPLINK, Source, SourceState, State};

/// The answer at a path; none where there is nothing.
pub(super) fn answer(path: &str, state: &State) -> Option<Answer> {
    let why = match path {
        // Whoever answers is alive. An API server that is away is no reason to be started anew (A11.6).
        "/livez" => None,
        "/healthz" => unhealthy(state),
        "/readyz" => unready(state),
        _ => return None,
    };
    let kind = "text/plain; charset=utf-8";
    Some(match why {
        None => text(StatusCode::OK, kind, "ok\n".to_owned()),
        Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, kind, format!("{why}\n")),
    })
}

/// Why traffic should leave this node: it goes, or the maps are not what they should be.
fn unhealthy(state: &State) -> Option<String> {
    if state.node_leaves {
        return Some("the node is being deleted".to_owned());
    }
    let error = state.apply.error.as_ref();
    error.map(|error| format!("not in the maps: {error}"))
}

/// Why traffic should not be sent here yet.
fn unready(state: &State) -> Option<String> {
    let waiting = |source: &&Source| source.state == SourceState::Waiting;
    if let Some(source) = state.sources.iter().find(waiting) {
        let error = source.error.iter().map(|error| format!(": {error}"));
        return Some(format!(
            "{} is not read yet{}",
            source.name,
            error.collect::<String>()
        ));
    }
    if !state.apply.whole {
        return Some("the maps do not hold all services yet".to_owned());
    }
    for interface in &state.interfaces {
        if let Attached::Refused { why } = &interface.attached {
            return Some(format!("{}: {why}", interface.name));
        }
    }
    let on = |attached: &Attached| matches!(attached, Attached::Native | Attached::Generic);
    let attached = state
        .interfaces
        .iter()
        .any(|interface| on(&interface.attached));
    let none = state.interfaces.is_empty();
    let why = if none { NO_UPLINK } else { "on no interface" };
    (!attached).then(|| why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Apply, Interface};

    fn source(name: &str, state: SourceState) -> Source {
        Source {
            name: name.into(),
            state,
            since: 0,
            objects: 0,
            skipped: 0,
            error: None,
        }
    }

    fn good() -> State {
        State {
            sources: vec![
                source("lb.yaml", SourceState::Synced),
                source("nodes", SourceState::Synced),
            ],
            interfaces: vec![Interface {
                name: "eth0".into(),
                index: Some(2),
                driver: String::new(),
                mtu: 1500,
                attached: Attached::Native,
            }],
            apply: Apply {
                whole: true,
                ..Apply::default()
            },
            ..State::default()
        }
    }

    fn codes(state: &State) -> [u16; 3] {
        ["/livez", "/healthz", "/readyz"].map(|path| answer(path, state).unwrap().status().as_u16())
    }

    /// A11.5
    #[test]
    fn a_node_that_leaves_is_alive_but_not_healthy() {
        assert_eq!(codes(&good()), [200, 200, 200]);
        let leaves = State {
            node_leaves: true,
            ..good()
        };
        assert_eq!(codes(&leaves), [200, 503, 200]);
        assert!(answer("/else", &leaves).is_none());
    }

    /// A13.4
    #[test]
    fn ready_means_that_the_maps_hold_the_synced_cluster() {
        let mut state = good();
        state.sources[1] = source("nodes", SourceState::Waiting);
        assert_eq!(codes(&state), [200, 200, 503]);
        state.sources[1] = source("nodes", SourceState::Synced);
        state.apply.whole = false;
        assert_eq!(codes(&state), [200, 200, 503]);
    }

    #[test]
    fn on_no_interface_is_not_ready() {
        let mut state = good();
        state.interfaces[0].attached = Attached::Missing;
        assert_eq!(codes(&state), [200, 200, 503]);
        state.interfaces.clear();
        assert_eq!(codes(&state), [200, 200, 503]);
        assert_eq!(unready(&state).as_deref(), Some(NO_UPLINK));
    }

    /// A11.6
    #[test]
    fn an_api_server_that_is_away_changes_nothing() {
        let mut state = good();
        state.sources[1] = source("nodes", SourceState::Stale);
        state.sources[1].error = Some("connection refused".into());
        assert_eq!(codes(&state), [200, 200, 200]);
    }

    /// A13.5
    #[test]
    fn what_does_not_fit_is_not_healthy() {
        let mut state = good();
        state.apply.error = Some("service default/web: backends: 9 of 8".into());
        assert_eq!(codes(&state), [200, 503, 200]);
    }
}
