//! The command line: definitions here, one file a verb.

mod backends;
mod bypass;
mod check;
mod client;
mod completions;
mod confirm;
mod detach;
mod doctor;
mod drain;
pub mod exit;
mod explain;
mod flows;
mod manual;
mod run;
mod services;
mod show;
mod status;
mod table;
mod uninstall;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
pub use exit::{Exit, ExitWith, Failure};

use crate::config::{Invalid, parse_duration};

/// Where the agent listens when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/millrace/millrace.sock";

/// Layer-4 load balancer on XDP.
#[derive(Parser, Debug)]
#[command(name = "millrace", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
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
    /// The table with more columns
    Wide,
    Json,
    Yaml,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Run the agent
    Run(run::Args),
    /// Show the node: agent, interfaces, sources, maps
    Status(status::Args),
    /// Show frontends and their traffic
    Services,
    /// Show backends: state, slots, traffic
    Backends(backends::Args),
    /// Show the flows that `nat` remembers
    Flows(flows::Args),
    /// Give a backend no new flows; its old ones go on
    Drain(drain::Args),
    /// Give a drained backend new flows again
    Undrain(drain::Args),
    /// Let everything pass to the kernel's stack, or take over again
    Bypass(bypass::Args),
    /// Say that the trial of `run --try` went well: it goes on
    Confirm,
    /// Take our programs off the interfaces, and everything pinned with the last of them
    Detach(detach::Args),
    /// Take the agents off a cluster: detach on every node, delete what was installed
    Uninstall(uninstall::Args),
    /// Say whether this machine is fit, and what would make it so
    Doctor(doctor::Args),
    /// Say whether a configuration is good, and what it would do; nothing changes
    Check(check::Args),
    /// Say what would become of a packet, and why; nothing changes
    Explain(explain::Args),
    /// Print completions for a shell
    Completions(completions::Args),
    /// Write the manual pages
    #[command(hide = true)]
    Manual(manual::Args),
}

impl Cli {
    /// Does what was asked.
    pub fn run(&self) -> Result<Exit, Failure> {
        let global = &self.global;
        match &self.verb {
            Verb::Run(args) => run::run(args, global),
            Verb::Status(args) => status::run(args, global),
            Verb::Services => services::run(global),
            Verb::Backends(args) => backends::run(args, global),
            Verb::Flows(args) => flows::run(args, global),
            Verb::Drain(args) => drain::run(args, true, global),
            Verb::Undrain(args) => drain::run(args, false, global),
            Verb::Bypass(args) => bypass::run(args, global),
            Verb::Confirm => confirm::run(global),
            Verb::Detach(args) => detach::run(args),
            Verb::Uninstall(args) => uninstall::run(args),
            Verb::Doctor(args) => doctor::run(args, global),
            Verb::Check(args) => check::run(args, global),
            Verb::Explain(args) => explain::run(args, global),
            Verb::Completions(args) => completions::run(args),
            Verb::Manual(args) => manual::run(args),
        }
    }
}

/// `30s`, `2m`: as the configuration has it.
fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|Invalid { what, fix }| format!("{what}; {fix}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }
}
