//! `millrace drain` and `undrain`: no new flows for a backend, or new ones again.

use std::net::SocketAddr;

use super::{Exit, Failure, Global, client, show::print};
use crate::observe::view::{Changed, Drain};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Name of the service
    service: String,
    /// Address and port of the backend
    backend: SocketAddr,
}

pub(super) fn run(args: &Args, on: bool, global: &Global) -> Result<Exit, Failure> {
    let body = Drain {
        service: args.service.clone(),
        backend: args.backend,
        on,
    };
    let Changed { changed } = client::post(&global.socket, "/v1/drain", &body)?;
    let now = match (on, changed) {
        (true, true) => "drains: no new flows; its old ones go on",
        (true, false) => "drained already",
        (false, true) => "takes new flows again",
        (false, false) => "was not drained by command (the configuration may say `drain: true`)",
    };
    print(&format!("{} {}: {now}\n", args.service, args.backend))?;
    Ok(Exit::Ok)
}
