//! What the admin API answers. Reading requests join state and counters; the few that change something hand a command to
//! the agent's loop and wait for its answer.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::StatusCode;
use tokio::{sync::oneshot, task, time};

use super::{
    asked::{Asked, Refusal},
    explain::{Explainer, Unexplained},
    http::{Answer, Call, Handler, json, refusal},
    join,
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

#[derive(Debug)]
pub(super) struct Api {
    pub(super) agent: Handle,
    pub(super) maps: Arc<Maps>,
    pub(super) rates: Rates,
}

impl Handler for Api {
    async fn answer(&self, call: Call) -> Answer {
        let done = match Asked::read(&call) {
            Ok(asked) => self.done(asked).await,
            Err(refused) => Err(refused),
        };
        done.unwrap_or_else(|(status, why)| refusal(status, &why))
    }
}

impl Api {
    async fn done(&self, asked: Asked) -> Result<Answer, Refusal> {
        match asked {
            Asked::State => Ok(json(&*self.state())),
            Asked::Status => self.status().await,
            Asked::Services => self.services().await,
            Asked::Backends { service } => self.backends(service).await,
            Asked::Flows { to, from, limit } => {
                let maps = Arc::clone(&self.maps);
                Ok(json(&blocking(move || maps.flows(to, from, limit)).await?))
            }
            Asked::Explain(question) => self.explain(question).await,
            Asked::Told(command) => self.command(command).await,
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

    async fn backends(&self, wanted: Option<String>) -> Result<Answer, Refusal> {
        let state = self.state();
        let (_, backends) = join::id_bounds(&state);
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
