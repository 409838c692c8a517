//! Where bytes of others come in, each place as one function without a kernel behind it: what the fuzz targets call, and
//! the tests over their corpus. The config has its own, [`crate::config::Config::parse`].

use std::{io, sync::Arc};

use hyper::StatusCode;
use netlink_packet_route::RouteNetlinkMessage;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::{
    attach::netlink,
    net::{Facts, XdpSend, messages},
    observe::{
        asked::Asked,
        explain::frame,
        http::{self, Answer, Call, Handler, json, refusal},
    },
};

/// Bytes that are under way between the two ends of a conversation.
const UNDER_WAY: usize = 64 * 1024;

/// How often the agent's end gets its turn before the client's is closed: to HTTP/1 that says that no answers are wanted
/// any more.
const TURNS: usize = 64;

/// What the admin socket answers a client that sends `bytes` and ends. What makes sense is not done but told in words,
/// a JSON string.
pub async fn conversation(bytes: &[u8]) -> Vec<u8> {
    let (client, agent) = tokio::io::duplex(UNDER_WAY);
    let server = http::connection(agent, Arc::new(Told), CancellationToken::new());
    let client = async {
        let (mut answers, mut requests) = tokio::io::split(client);
        let send = async {
            // Who has been refused finds nobody who reads on.
            drop(requests.write_all(bytes).await);
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
            drop(requests.shutdown().await);
        };
        let mut answer = Vec::new();
        let (received, ()) = tokio::join!(answers.read_to_end(&mut answer), send);
        drop(received);
        answer
    };
    tokio::join!(server, client).1
}

/// Stands where the agent would.
struct Told;

impl Handler for Told {
    async fn answer(&self, call: Call) -> Answer {
        let asked = match Asked::read(&call) {
            Ok(asked) => asked,
            Err((status, why)) => return refusal(status, &why),
        };
        if let Asked::Explain(question) = &asked
            && let Err(error) = frame::of(&question.packet, [2, 0, 0, 0, 0, 9])
        {
            return refusal(StatusCode::BAD_REQUEST, &error.to_string());
        }
        json(&format!("{asked:?}"))
    }
}

/// Takes in a datagram of rtnetlink's as all readers do: as an answer about interfaces and filters, and as news that
/// change `facts`. True if it changed them.
///
/// # Errors
/// It is not made of messages, or tells of a refusal; what came before that is taken in.
pub fn datagram(bytes: &[u8], xdp_send: XdpSend, facts: &mut Facts) -> io::Result<bool> {
    let mut messages = Vec::new();
    let taken = netlink::take(bytes, &mut messages);
    let mut changed = false;
    for message in messages {
        if let RouteNetlinkMessage::NewTrafficFilter(filter) = &message {
            netlink::filter(filter.clone());
        }
        netlink::link(message.clone());
        if let Some(update) = messages::update(message, xdp_send) {
            changed |= facts.apply(update);
        }
    }
    taken.map(|_| changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_repeated_and_nonsense_is_refused() {
        let answer = conversation(
            b"POST /v1/bypass HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n{\"on\": true}\
              GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n",
        )
        .await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("Told(Bypass { on: true })"), "{answer}");
        assert!(answer.contains("HTTP/1.1 404 Not Found\r\n"), "{answer}");
        assert!(
            answer.ends_with(r#"{"error":"no /nowhere here"}"#),
            "{answer}"
        );
    }

    #[test]
    fn a_truncated_datagram_is_an_error() {
        let mut facts = Facts::default();
        let send: XdpSend = |_, _| crate::net::Sending::Never;
        assert!(datagram(&[20, 0, 0, 0], send, &mut facts).is_err());
        assert_eq!(facts, Facts::default());
    }
}
