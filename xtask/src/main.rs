//! The project's chores: `cargo xtask VERB`. One file a verb.
//!
//! Progress goes to stderr; stdout carries what a verb was asked for (test results, a bench's JSON).

mod bench;
mod build;
mod cargo;
mod cluster;
mod contract;
mod demo;
mod dist;
mod fmt;
mod fuzz;
mod image;
mod lint;
mod run;
mod setup;
mod test;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Build, try, test and measure Millrace"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what this machine lacks (demo, test and bench do it by themselves)
    Setup(setup::Args),
    /// Build the release binary with the packet path in it
    Build,
    /// Make what others install: a static binary and a Debian package
    Dist(dist::Args),
    /// Make a container image of the agent, in a file
    Image(image::Args),
    /// Run a real Kubernetes in network namespaces of this machine (root)
    Cluster(cluster::Args),
    /// Show clients balanced over real servers in network namespaces (root)
    Demo,
    /// Run every check and test, cheap ones first
    Test(test::Args),
    /// Run packet cases and traffic on other kernels in virtual machines
    Vm(vm::Args),
    /// Measure: ns per packet, packets per second beside nftables, time of a change
    Bench(bench::Args),
    /// Look for input that breaks the packet path, the config, the admin socket or netlink
    Fuzz(fuzz::Args),
    /// Show each line of the Service contract, the tests that cite it and how they ended last
    Contract,
    /// Clippy for host and BPF target, dependency rules, house rules
    Lint,
    /// Format the code
    Fmt(fmt::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(args),
        Verb::Build => build::run(),
        Verb::Dist(args) => dist::run(&args),
        Verb::Image(args) => image::run(&args),
        Verb::Cluster(args) => cluster::run(args),
        Verb::Demo => demo::run(),
        Verb::Test(args) => test::run(&args),
        Verb::Vm(args) => vm::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Contract => contract::run(),
        Verb::Lint => lint::run(),
        Verb::Fmt(args) => fmt::run(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// What a verb ends with: an error is one of the chore itself, an exit code that of the program it ran.
type Outcome = Result<ExitCode>;
