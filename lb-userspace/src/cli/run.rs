//! `millrace run`: the agent.

use std::path::PathBuf;

use super::{Exit, Failure};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Configuration file (YAML); watched, and applied when it changes.
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(_args: &Args, _global: &super::Global) -> Result<Exit, Failure> {
    Err(anyhow::anyhow!("this build has no agent yet").into())
}
