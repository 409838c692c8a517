//! The admin API's paths. Reading ones join state and counters; the few that change something hand a command to the
//! agent's loop and wait for its answer.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use tokio::{sync::oneshot, task, time};

use super::{
    explain::{Explainer, Unexplained},
    http::{Answer, Call, Handler, json, refusal},
    join, query,
    rates::Rates,
    read::Maps,
    view,
};
use crate::{
    net,
    state::{Command, Handle, Refused, Request, Service, State},
};

/// For the agent's loop to do as told; it may be waiting for the kernel.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// Flows in one answer, unless fewer are asked for.
const FLOW_LIMIT: usize = 100_000;

#[derive(Debug)]
pub(super) struct Api {
    pub(super) agent: Handle,
    pub(super) maps: Arc<Maps>,
    pub(super) rates: Rates,
}

/// A request that is not answered as asked.
type Refusal = (StatusCode, String);

impl Handler for Api {
    async fn answer(&self, call: Call) -> Answer {
        self.route(&call)
            .await
            .unwrap_or_else(|(status, why)| refusal(status, &why))
    }
}

impl Api {
    async fn route(&self, call: &Call) -> Result<Answer, Refusal> {
        match (call.uri.path(), call.method == Method::POST) {
            ("/v1/state", false) => Ok(json(&*self.state())),
            ("/v1/status", false) => self.status().await,
            ("/v1/services", false) => self.services().await,
            ("/v1/backends", false) => self.backends(call).await,
            ("/v1/flows", false) => self.flows(call).await,
            ("/v1/drain", true) => {
                let view::Drain {
                    service,
                    backend,
                    on,
                } = body(call)?;
                self.command(Command::Drain {
                    service,
                    backend,
                    on,
                })
                .await
            }
            ("/v1/bypass", true) => {
                let view::Bypass { on } = body(call)?;
                self.command(Command::Bypass { on }).await
            }
            ("/v1/explain", true) => self.explain(body(call)?).await,
            (
                "/v1/state" | "/v1/status" | "/v1/services" | "/v1/backends" | "/v1/flows"
                | "/v1/drain" | "/v1/bypass" | "/v1/explain",
                _,
            ) => Err((
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} is not for {}", call.method, call.uri.path()),
            )),
            (path, _) => Err((StatusCode::NOT_FOUND, format!("no {path} here"))),
        }
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.agent.state.borrow())
    }

    async fn status(&self) -> Result<Answer, Refusal> {
        let state = self.state();
        let (frontends, backends) = join::id_bounds(&state);
        let pair = self
            .rates
            .pair(frontends, backends)
            .await
            .map_err(|error| broken(&error))?;
        let maps = Arc::clone(&self.maps);
        let shown = Arc::clone(&state);
        let maps = blocking(move || maps.usage(&shown)).await?;
        Ok(json(&join::status(&state, maps, &pair, now())))
    }

    async fn services(&self) -> Result<Answer, Refusal> {
        let state = self.state();
        let (frontends, _) = join::id_bounds(&state);
        let pair = self
            .rates
            .pair(frontends, 0)
            .await
            .map_err(|error| broken(&error))?;
        Ok(json(&join::services(&state, &pair)))
    }

    async fn backends(&self, call: &Call) -> Result<Answer, Refusal> {
        let state = self.state();
        let (_, backends) = join::id_bounds(&state);
        let wanted = query::value(call.uri.query(), "service");
        let services: Vec<&Service> = match &wanted {
            None => state.services.values().map(AsRef::as_ref).collect(),
            Some(name) => vec![state.services.get(name).map(AsRef::as_ref).ok_or_else(|| {
                let why = Refused::NoService(name.clone()).to_string();
                (StatusCode::NOT_FOUND, why)
            })?],
        };
        let pair = self
            .rates
            .pair(0, backends)
            .await
            .map_err(|error| broken(&error))?;
        Ok(json(&join::backends(services, &pair, now())))
    }

    async fn flows(&self, call: &Call) -> Result<Answer, Refusal> {
        let end = |name: &str| {
            match query::value(call.uri.query(), name) {
            None => Ok(None),
            Some(text) => view::Endpoint::parse(&text).map(Some).ok_or_else(|| {
                let why = format!(
                    "--{name} {text}: not an address, nor an address and port such as 192.0.2.10:443"
                );
                (StatusCode::BAD_REQUEST, why)
            }),
        }
        };
        let (to, from) = (end("to")?, end("from")?);
        let limit = match query::value(call.uri.query(), "limit") {
            None => FLOW_LIMIT,
            Some(text) => text
                .parse::<usize>()
                .map_err(|e| (StatusCode::BAD_REQUEST, format!("--limit {text}: {e}")))?
                .min(FLOW_LIMIT),
        };
        let maps = Arc::clone(&self.maps);
        Ok(json(&blocking(move || maps.flows(to, from, limit)).await?))
    }

    async fn explain(&self, question: view::Question) -> Result<Answer, Refusal> {
        let facts = net::snapshot(net::xdp_send).await.map_err(|error| {
            let why = error.to_string();
            (StatusCode::INTERNAL_SERVER_ERROR, why)
        })?;
        let (state, maps) = (self.state(), Arc::clone(&self.maps));
        let explained = blocking(move || {
            let explainer = Explainer::open(maps.folder(), maps.clock(), facts);
            Ok(explainer
                .map_err(io::Error::other)?
                .explain(&question, &state))
        });
        match explained.await? {
            Ok(explanation) => Ok(json(&explanation)),
            Err(Unexplained::Maps(error)) => Err(broken(&error)),
            Err(unexplained) => Err((StatusCode::BAD_REQUEST, unexplained.to_string())),
        }
    }

    async fn command(&self, command: Command) -> Result<Answer, Refusal> {
        let gone = || {
            let why = "the agent is stopping".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, why)
        };
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let request = Request { command, reply };
            self.agent
                .commands
                .send(request)
                .await
                .map_err(|_| gone())?;
            answer.await.map_err(|_| gone())
        };
        let slow = |_| {
            let why = "the agent has not done it in 20 s; it may do it yet".to_owned();
            (StatusCode::GATEWAY_TIMEOUT, why)
        };
        match time::timeout(COMMAND_TIMEOUT, exchange)
            .await
            .map_err(slow)??
        {
            Ok(changed) => Ok(json(&view::Changed { changed })),
            Err(refused) => Err((
                match refused {
                    Refused::NoService(_) | Refused::NoBackend(_) => StatusCode::NOT_FOUND,
                    Refused::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
                },
                refused.to_string(),
            )),
        }
    }
}

fn body<T: DeserializeOwned>(call: &Call) -> Result<T, Refusal> {
    serde_json::from_slice(&call.body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("body: {error}")))
}

/// Reads of many map entries, off the threads that serve.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    let read = task::spawn_blocking(read).await;
    read.map_err(io::Error::from)
        .and_then(|read| read)
        .map_err(|error| broken(&error))
}

fn broken(error: &io::Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("maps: {error}"))
}

/// Seconds since the Unix epoch.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
