//! The command line: definitions here, one file a verb.

pub mod exit;
mod run;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
pub use exit::{Exit, ExitWith, Failure};

/// Where the agent listens when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/millrace/millrace.sock";

/// Layer-4 load balancer on XDP.
#[derive(Parser, Debug)]
#[command(name = "millrace", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(clap::Args, Debug)]
pub struct Global {
    /// Unix socket of the agent
    #[arg(long, global = true, env = "MILLRACE_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Show again each second until interrupted
    #[arg(short, long, global = true)]
    pub watch: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub enum Output {
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Run the agent
    Run(run::Args),
}

impl Cli {
    /// Does what was asked.
    pub fn run(&self) -> Result<Exit, Failure> {
        match &self.verb {
            Verb::Run(args) => run::run(args, &self.global),
        }
    }
}
