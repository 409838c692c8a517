//! `millrace confirm`: the trial of `run --try` went well, so it does not end.

use super::{Exit, Failure, Global, client, show::print};
use crate::observe::view::Changed;

pub(super) fn run(global: &Global) -> Result<Exit, Failure> {
    let Changed { changed } = client::post(&global.socket, "/v1/confirm", &())?;
    print(if changed {
        "confirmed: it goes on\n"
    } else {
        "nothing to confirm: the agent is not on trial\n"
    })?;
    Ok(Exit::Ok)
}
