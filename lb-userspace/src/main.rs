//! `millrace`: agent and command line in one binary.

use std::{io, process::ExitCode};

use clap::Parser as _;
use lb_userspace::cli::Cli;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log();
    match cli.run() {
        Ok(exit) => exit.into(),
        Err(failure) => {
            for line in format!("{failure:?}").lines() {
                eprintln!("error: {line}");
            }
            failure.exit.into()
        }
    }
}

/// Standard error, so that output stays clean; `MILLRACE_LOG` takes filter directives (`debug`, `lb_userspace=trace`).
fn log() {
    let filter = EnvFilter::try_from_env("MILLRACE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(io::stderr)
        .init();
}
