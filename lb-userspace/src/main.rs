//! `millrace`: agent and command line in one binary.

use std::process::ExitCode;

use clap::Parser as _;
use lb_userspace::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
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
