//! `millrace bypass on|off`: the off switch. Everything passes to the kernel's stack; the maps stay.

use clap::ValueEnum;

use super::{Exit, Failure, Global, client, show::print};
use crate::observe::view::{Bypass, Changed};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    switch: Switch,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Switch {
    On,
    Off,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let on = matches!(args.switch, Switch::On);
    let Changed { changed } = client::post(&global.socket, "/v1/bypass", &Bypass { on })?;
    let now = if on { "on: everything passes" } else { "off" };
    let already = if changed { "" } else { " (it was already)" };
    print(&format!("bypass {now}{already}\n"))?;
    Ok(Exit::Ok)
}
