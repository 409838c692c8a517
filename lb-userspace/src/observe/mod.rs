//! What the agent shows of itself: the admin API on a unix socket (the CLI's other end) and metrics over HTTP. In:
//! the agent's state, the pinned maps, a way to hand it commands. Nothing is read from the maps unless someone asks.

mod api;
pub(crate) mod asked;
pub mod explain;
mod health_ports;
pub(crate) mod http;
mod join;
mod metrics;
pub mod offline;
mod query;
mod rates;
mod read;
mod socket;
pub mod view;

use std::{path::PathBuf, sync::Arc};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{api::Api, metrics::Metrics, rates::Rates, read::Maps};
pub use self::{
    health_ports::HealthPorts,
    socket::{Socket, SocketError},
};
use crate::{attach::Clock, dataplane::OpenError, state::Handle};

/// What there is to show.
#[derive(Clone, Debug)]
pub struct Sources {
    pub agent: Handle,
    /// Folder of the pinned maps.
    pub maps: PathBuf,
    pub clock: Arc<Clock>,
}

/// Where metrics are served.
#[derive(Debug)]
pub struct MetricsEnd {
    pub listener: TcpListener,
    /// Also counters of each backend: many series.
    pub per_backend: bool,
}

/// Serves both ends until `stop`.
///
/// # Errors
/// A map is not there or not as it must be; nothing is served then.
pub async fn serve(
    sources: Sources,
    socket: Socket,
    metrics: Option<MetricsEnd>,
    stop: CancellationToken,
) -> Result<(), OpenError> {
    let maps = Arc::new(Maps::open(&sources.maps, sources.clock)?);
    let api = Api {
        agent: sources.agent.clone(),
        rates: Rates::new(Arc::clone(&maps)),
        maps: Arc::clone(&maps),
    };
    let api = http::serve(&socket.listener, Arc::new(api), stop.clone());
    let metrics = async {
        if let Some(end) = metrics {
            let handler = Metrics::new(sources.agent.state, maps, end.per_backend);
            http::serve(&end.listener, Arc::new(handler), stop.clone()).await;
        }
    };
    tokio::join!(api, metrics);
    Ok(())
}
