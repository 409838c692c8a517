//! The admin API's paths: a request as it came in, what it asks for out. Pure, so that what is wrong with a request is
//! found before anything is read or done.

use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::{http::Call, query, view};
use crate::state::Command;

/// Flows in one answer, unless fewer are asked for.
const FLOW_LIMIT: usize = 100_000;

/// A request that is not answered as asked.
pub(crate) type Refusal = (StatusCode, String);

/// A request that makes sense.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Asked {
    State,
    Status,
    Services,
    Backends {
        service: Option<String>,
    },
    Flows {
        to: Option<view::Endpoint>,
        from: Option<view::Endpoint>,
        limit: usize,
    },
    Explain(view::Question),
    /// Something to change.
    Told(Command),
}

impl Asked {
    /// # Errors
    /// What is wrong with the request, and the status that says so.
    pub(crate) fn read(call: &Call) -> Result<Self, Refusal> {
        Ok(match (call.uri.path(), call.method == Method::POST) {
            ("/v1/state", false) => Self::State,
            ("/v1/status", false) => Self::Status,
            ("/v1/services", false) => Self::Services,
            ("/v1/backends", false) => Self::Backends {
                service: query::value(call.uri.query(), "service"),
            },
            ("/v1/flows", false) => Self::Flows {
                to: end(call, "to")?,
                from: end(call, "from")?,
                limit: limit(call)?,
            },
            ("/v1/drain", true) => {
                let view::Drain {
                    service,
                    backend,
                    on,
                } = body(call)?;
                Self::Told(Command::Drain {
                    service,
                    backend,
                    on,
                })
            }
            ("/v1/bypass", true) => {
                let view::Bypass { on } = body(call)?;
                Self::Told(Command::Bypass { on })
            }
            ("/v1/confirm", true) => Self::Told(Command::Confirm),
            ("/v1/explain", true) => Self::Explain(body(call)?),
            (
                "/v1/state" | "/v1/status" | "/v1/services" | "/v1/backends" | "/v1/flows"
                | "/v1/drain" | "/v1/bypass" | "/v1/confirm" | "/v1/explain",
                _,
            ) => {
                return Err((
                    StatusCode::METHOD_NOT_ALLOWED,
                    format!("{} is not for {}", call.method, call.uri.path()),
                ));
            }
            (path, _) => return Err((StatusCode::NOT_FOUND, format!("no {path} here"))),
        })
    }
}

fn end(call: &Call, name: &str) -> Result<Option<view::Endpoint>, Refusal> {
    let Some(text) = query::value(call.uri.query(), name) else {
        return Ok(None);
    };
    view::Endpoint::parse(&text).map(Some).ok_or_else(|| {
        let why = format!(
            "--{name} {text}: not an address, nor an address and port such as 192.0.2.10:443"
        );
        (StatusCode::BAD_REQUEST, why)
    })
}

fn limit(call: &Call) -> Result<usize, Refusal> {
    let Some(text) = query::value(call.uri.query(), "limit") else {
        return Ok(FLOW_LIMIT);
    };
    text.parse()
        .map(|limit: usize| limit.min(FLOW_LIMIT))
        .map_err(|error| {
            let why = format!("--limit {text}: {error}");
            (StatusCode::BAD_REQUEST, why)
        })
}

fn body<T: DeserializeOwned>(call: &Call) -> Result<T, Refusal> {
    serde_json::from_slice(&call.body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("body: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, uri: &str, body: &'static str) -> Result<Asked, Refusal> {
        Asked::read(&Call {
            method,
            uri: uri.parse().unwrap(),
            body: body.into(),
        })
    }

    #[test]
    fn requests_are_read_whole_or_refused() {
        let flows = asked(Method::GET, "/v1/flows?to=192.0.2.10:443&limit=7", "");
        let to = view::Endpoint::parse("192.0.2.10:443");
        assert_eq!(
            flows,
            Ok(Asked::Flows {
                to,
                from: None,
                limit: 7
            })
        );
        let bypass = asked(Method::POST, "/v1/bypass", r#"{"on": true}"#);
        assert_eq!(bypass, Ok(Asked::Told(Command::Bypass { on: true })));
        for (method, uri, body, status) in [
            (Method::GET, "/v1/flows?from=here", "", 400),
            (Method::GET, "/v1/flows?limit=-1", "", 400),
            (Method::POST, "/v1/drain", "{}", 400),
            (Method::GET, "/v1/drain", "", 405),
            (Method::POST, "/v1/state", "", 405),
            (Method::GET, "/v2/state", "", 404),
        ] {
            let refused = asked(method, uri, body).unwrap_err();
            assert_eq!(refused.0.as_u16(), status, "{uri}: {}", refused.1);
        }
    }
}
