//! `millrace bypass on|off`: the off switch. Everything passes to the kernel's stack; the maps stay. It needs no agent: who
//! has none to ask tells the maps.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use lb_common::abi::{Settings, setting_flag};

use super::{Exit, Failure, Global, client, show::print};
use crate::{
    attach::{self, DEFAULT_PIN_ROOT},
    dataplane::{self, Bpf, Dataplane as _},
    observe::view::{Bypass, Changed},
    plan::Op,
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    switch: Switch,
    /// Folder of the pins, for when no agent runs
    #[arg(long, value_name = "PATH", env = "MILLRACE_PIN_ROOT", default_value = DEFAULT_PIN_ROOT)]
    pin_root: PathBuf,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Switch {
    On,
    Off,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let on = matches!(args.switch, Switch::On);
    let answer: Result<Changed, _> = client::post(&global.socket, "/v1/bypass", &Bypass { on });
    let (changed, whom) = match answer {
        Ok(Changed { changed }) => (changed, ""),
        Err(failure) if failure.exit == Exit::NoAgent => match tell_maps(&args.pin_root, on)? {
            Some(changed) => (changed, ", by the maps alone: no agent runs"),
            None => return Err(failure),
        },
        Err(failure) => return Err(failure),
    };
    let now = if on { "on: everything passes" } else { "off" };
    let already = if changed { "" } else { " (it was already)" };
    print(&format!("bypass {now}{already}{whom}\n"))?;
    Ok(Exit::Ok)
}

/// Whether it is a change; None if nothing is pinned. An agent that comes up takes it over.
fn tell_maps(pin_root: &Path, on: bool) -> Result<Option<bool>, Failure> {
    let Some(seen) = attach::look(pin_root)? else {
        return Ok(None);
    };
    let before = dataplane::settings(&seen.maps).context("pinned maps")?;
    let flags = if on {
        before.flags | setting_flag::BYPASS
    } else {
        before.flags & !setting_flag::BYPASS
    };
    let settings = Settings { flags, ..before };
    Bpf::open(&seen.maps)
        .context("pinned maps")?
        .apply(&[Op::Lease(settings)])
        .context("pinned maps")?;
    if on {
        // An agent that comes up makes it again.
        attach::replies::remove(&mut attach::Nft::default()).context("nftables")?;
    }
    Ok(Some(flags != before.flags))
}
