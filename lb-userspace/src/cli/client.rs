//! The CLI's end of the admin API.

use std::{io, path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, runtime, time};

use super::{Exit, Failure};

/// Longer than any answer takes: rates need a second, a full flow table some more.
const TIMEOUT: Duration = Duration::from_secs(30);

/// `GET path` from the agent behind `socket`.
pub(super) fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    ask(socket, Method::GET, path, Bytes::new())
}

/// `POST path` with `body` as JSON.
pub(super) fn post<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> Result<T, Failure> {
    let body = serde_json::to_vec(body).context("request")?;
    ask(socket, Method::POST, path, body.into())
}

/// `text` as a part of a query.
pub(super) fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/:[]".contains(&byte) {
            out.push(char::from(byte));
        } else if write!(out, "%{byte:02x}").is_err() {
            unreachable!("writing to a string");
        }
        out
    })
}

fn ask<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<T, Failure> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime")?;
    let (status, body) = runtime.block_on(async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| unreachable_agent(socket, error))?;
        time::timeout(TIMEOUT, exchange(stream, method, path, body))
            .await
            .map_err(|_| anyhow!("the agent on {} does not answer", socket.display()))?
            .with_context(|| format!("agent on {}", socket.display()))
            .map_err(Failure::from)
    })?;
    if status.is_success() {
        return serde_json::from_slice(&body)
            .context("the agent's answer is of another version: use its own `millrace`")
            .map_err(Failure::from);
    }
    let why = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|value| Some(value.get("error")?.as_str()?.to_owned()))
        .unwrap_or_else(|| format!("the agent answers {status}"));
    let exit = match status {
        StatusCode::BAD_REQUEST => Exit::Usage,
        StatusCode::NOT_FOUND => Exit::NotFound,
        _ => Exit::Failed,
    };
    Err(Failure::new(exit, anyhow!(why)))
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "millrace")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        drop(sender);
        Ok((status, body))
    };
    let (answer, connection) = tokio::join!(answer, connection);
    connection?;
    answer
}

fn unreachable_agent(socket: &Path, error: io::Error) -> Failure {
    let at = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::new(
            Exit::NoAgent,
            anyhow!(
                "no agent answers on {at}: start one with `millrace run --config FILE`, \
                 or name its socket with --socket"
            ),
        ),
        io::ErrorKind::PermissionDenied => Failure::new(
            Exit::Privileges,
            anyhow!("socket {at} is for root alone: run this with sudo"),
        ),
        _ => Failure::new(
            Exit::NoAgent,
            anyhow::Error::new(error).context(format!("socket {at}")),
        ),
    }
}
