//! `millrace detach`: the host as it was. Needs no agent, and wants none: it would put everything back.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::anyhow;

use super::{Exit, Failure, duration, show::print};
use crate::attach::{self, AttachError, DEFAULT_PIN_ROOT, DEFAULT_RUN_FOLDER, Detached};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Only this interface (may be given again); all by default
    #[arg(long = "interface", value_name = "IF")]
    interfaces: Vec<String>,
    /// Wait as long as this for an agent that is about to end: 30s, 2m
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    wait: Duration,
    /// Folder of the pins
    #[arg(long, value_name = "PATH", env = "MILLRACE_PIN_ROOT", default_value = DEFAULT_PIN_ROOT)]
    pin_root: PathBuf,
    /// Folder of locks and marks
    #[arg(long, value_name = "PATH", env = "MILLRACE_RUN_FOLDER", default_value = DEFAULT_RUN_FOLDER)]
    run_folder: PathBuf,
}

/// Between two looks whether the agent has ended.
const LOCK_PERIOD: Duration = Duration::from_millis(100);

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let only = (!args.interfaces.is_empty()).then_some(args.interfaces.as_slice());
    let deadline = Instant::now() + args.wait;
    let done = loop {
        match attach::detach(&args.pin_root, &args.run_folder, only) {
            Err(AttachError::Locked { .. }) if Instant::now() < deadline => {
                thread::sleep(LOCK_PERIOD);
            }
            outcome => break outcome.map_err(failure)?,
        }
    };
    print(&said(&done))?;
    Ok(Exit::Ok)
}

/// The exit code that stands for an error of `attach`.
pub(super) fn failure(error: AttachError) -> Failure {
    if let AttachError::Locked {
        pid: Some(process), ..
    } = error
    {
        return Failure::new(
            Exit::SecondAgent,
            anyhow!(
                "the agent runs (process {process}) and would put everything back: stop it first; \
                 `millrace bypass on` lets everything pass at once"
            ),
        );
    }
    error.into()
}

fn said(done: &Detached) -> String {
    let names: Vec<_> = done.interfaces.iter().map(String::as_str).collect();
    let from = if names.is_empty() {
        "nothing of ours was attached".to_owned()
    } else {
        format!("detached from {}", names.join(", "))
    };
    let rest = if done.all {
        "no pins are left"
    } else {
        "other interfaces are still served, so the maps stay"
    };
    format!("{from}; {rest}\n{}", done.undone)
}
