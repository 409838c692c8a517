//! `cargo xtask fmt`: rustfmt over every crate, the BPF one included.

use crate::{Outcome, cargo};
use anyhow::Context as _;
use std::process::Command;

#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Args {
    /// Change nothing; exit with 1 if a file is not formatted
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: Args) -> Outcome {
    let status = command(args.check).status().context("cargo fmt")?;
    Ok(cargo::exit_code(status))
}

pub(crate) fn command(check: bool) -> Command {
    let mut command = cargo::cargo(["fmt", "--all"]);
    if check {
        command.arg("--check");
    }
    command
}
