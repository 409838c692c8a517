//! `millrace completions SHELL`: what the shell sources.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Exit, Failure, show::print};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "millrace", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
