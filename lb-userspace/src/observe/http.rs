//! HTTP/1 for both ends the agent offers: the admin API and metrics. In: a listener and a handler. What is too large,
//! too slow or no HTTP ends with a 4xx or a closed connection; the handler sees complete requests only.

use std::{convert::Infallible, future::Future, io, pin::pin, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Largest request body, in bytes: a frame of 9,000 bytes in hex fits with room.
const BODY_LIMIT: usize = 64 * 1024;
/// Largest request head, in bytes (hyper's floor is 8 KiB).
const HEAD_LIMIT: usize = 16 * 1024;
/// Connections served at once; more wait in the listener's queue.
const CONNECTIONS: usize = 32;
/// For a request's head and body to arrive, and for an idle connection to say something.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection ends then, between two answers if it can: clients come again.
const LIFETIME: Duration = Duration::from_mins(5);

/// A request that has arrived whole.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) body: Bytes,
}

pub(crate) type Answer = Response<Full<Bytes>>;

/// What answers requests.
pub(crate) trait Handler: Send + Sync + 'static {
    fn answer(&self, call: Call) -> impl Future<Output = Answer> + Send;
}

/// Where connections come from.
pub(crate) trait Listener: Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn connection(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn connection(&self) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn connection(&self) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

/// Serves until `stop`; answers that are being made are finished.
pub(crate) async fn serve<H: Handler>(
    listener: &impl Listener,
    handler: Arc<H>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            break;
        };
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            stream = listener.connection() => stream,
        };
        match stream {
            Ok(stream) => {
                let (handler, stop) = (Arc::clone(&handler), stop.clone());
                connections.spawn(async move {
                    connection(stream, handler, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: trying again at once would spin.
                tracing::warn!(%error, "no connection accepted");
                time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// Serves one connection until it ends, or until `stop`.
pub(crate) async fn connection<H: Handler>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: Arc<H>,
    stop: CancellationToken,
) {
    let service = service_fn(|request| {
        let handler = Arc::clone(&handler);
        async move {
            Ok::<_, Infallible>(match whole(request).await {
                Ok(call) => handler.answer(call).await,
                Err(refusal) => refusal,
            })
        }
    });
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(READ_TIMEOUT)
            .max_buf_size(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let outcome = tokio::select! {
        outcome = &mut served => outcome,
        _ = time::timeout(LIFETIME, stop.cancelled()) => {
            served.as_mut().graceful_shutdown();
            // Who does not take the answer loses it: places are few.
            match time::timeout(READ_TIMEOUT, served).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended early");
    }
}

/// The request with its body, or the refusal.
async fn whole(request: Request<Incoming>) -> Result<Call, Answer> {
    let (parts, body) = request.into_parts();
    let body = time::timeout(READ_TIMEOUT, Limited::new(body, BODY_LIMIT).collect())
        .await
        .map_err(|_| {
            refusal(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in 10 s",
            )
        })?
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                refusal(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "the body is longer than 65536 bytes",
                )
            } else {
                refusal(StatusCode::BAD_REQUEST, &format!("body: {error}"))
            }
        })?
        .to_bytes();
    Ok(Call {
        method: parts.method,
        uri: parts.uri,
        body,
    })
}

pub(crate) fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => text(StatusCode::OK, "application/json", bytes),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// `{"error": why}`.
pub(crate) fn refusal(status: StatusCode, why: &str) -> Answer {
    let body = serde_json::json!({ "error": why }).to_string();
    text(status, "application/json", body)
}

pub(crate) fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    struct Length;

    impl Handler for Length {
        async fn answer(&self, call: Call) -> Answer {
            json(&(call.uri.path(), call.body.len()))
        }
    }

    /// Status line and last line of what comes back for `request`.
    async fn ask(request: &[u8]) -> (String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = serve(&listener, Arc::new(Length), stop.clone());
        let client = async {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(request).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            // A server that has said no may close while the request still comes in.
            drop(stream.read_to_end(&mut answer).await);
            stop.cancel();
            String::from_utf8(answer).unwrap()
        };
        let (answer, ()) = tokio::join!(client, server);
        let first = answer.lines().next().unwrap_or_default();
        let last = answer.lines().last().unwrap_or_default();
        (first.to_owned(), last.to_owned())
    }

    #[tokio::test]
    async fn good_requests_are_answered() {
        let (status, body) =
            ask(b"POST /v1/drain HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc").await;
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("HTTP/1.1 200 OK", r#"["/v1/drain",3]"#)
        );
    }

    #[tokio::test]
    async fn long_bodies_are_refused() {
        let mut request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 65537\r\n\r\n".to_vec();
        request.resize(request.len() + 65_537, b'x');
        let (status, body) = ask(&request).await;
        assert_eq!(status, "HTTP/1.1 413 Payload Too Large");
        assert_eq!(body, r#"{"error":"the body is longer than 65536 bytes"}"#);
    }

    #[tokio::test]
    async fn what_is_no_http_is_refused() {
        let long_head = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(40_000)).into_bytes();
        for (request, status) in [
            (
                b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n".as_slice(),
                "HTTP/1.1 400 Bad Request",
            ),
            (&long_head, "HTTP/1.1 431 Request Header Fields Too Large"),
            (b"GET / HTTP/1.1\r\nhost", ""),
        ] {
            let (answered, _) = ask(request).await;
            assert_eq!(answered, status);
        }
    }
}
