//! The admin socket: bytes of a client in, HTTP out.

use std::cell::RefCell;

use lb_userspace::hostile::conversation;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    /// One for all inputs: it costs more than a request.
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        Builder::new_current_thread().enable_time().build().expect("a runtime"),
    );
}

/// Whatever comes in, what goes out is nothing or whole answers: a status of the API's and JSON.
pub(super) fn run(bytes: &[u8]) {
    let answer = RUNTIME.with_borrow(|runtime| runtime.block_on(conversation(bytes)));
    let mut rest = answer.as_slice();
    while !rest.is_empty() {
        rest = one_answer(rest);
    }
}

/// What follows the first answer.
fn one_answer(bytes: &[u8]) -> &[u8] {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, rest) = bytes.split_at(end.expect("the head's end") + 4);
    let head = str::from_utf8(head)
        .expect("a head in ASCII")
        .to_ascii_lowercase();
    let status = head.split(' ').nth(1).expect("a status");
    let field = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        fields.find_map(|(key, value)| (key == name).then(|| value.to_owned()))
    };
    let length: usize = match field("content-length") {
        Some(length) => length.parse().expect("a length"),
        None => 0,
    };
    match status {
        // Told to go on, the client sends its body.
        "100" => return rest,
        "200" | "400" | "404" | "405" | "408" | "413" | "414" | "431" | "501" => {}
        other => panic!("status {other}: {head}"),
    }
    // An answer to HEAD tells the length of what it leaves out, and is the connection's last that can be told from
    // its followers.
    if rest.starts_with(b"HTTP/1.") || rest.is_empty() {
        return rest;
    }
    let (body, rest) = rest.split_at(length);
    serde_json::from_slice::<serde_json::Value>(body).expect("JSON");
    rest
}
