//! `cargo xtask lint`: formatting, clippy on both targets, links of the documentation, dependency rules and the rules of
//! this house.
//!
//! The same checks open a test run.

mod dependencies;
mod house;

use crate::{Outcome, cargo, fmt};
use anyhow::{Context as _, Result};
use std::{
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// Prints what is wrong; false if anything is.
    pub(crate) run: fn() -> Result<bool>,
}

/// The checks, cheap ones first. A quick run leaves out the BPF target's and the dependencies'.
pub(crate) fn checks(quick: bool) -> Vec<Check> {
    let mut checks = vec![
        Check {
            name: "format",
            run: || success(&mut fmt::command(true)),
        },
        Check {
            name: "house rules",
            run: || house::check(&cargo::root()),
        },
        Check {
            name: "clippy",
            run: clippy,
        },
        Check {
            name: "documentation",
            run: documentation,
        },
    ];
    if !quick {
        checks.push(Check {
            name: "clippy, BPF target",
            run: clippy_bpf,
        });
        checks.push(Check {
            name: "dependencies",
            run: dependencies::check,
        });
    }
    checks
}

pub(crate) fn run() -> Outcome {
    crate::setup::ensure()?;
    let mut failed = Vec::new();
    for check in checks(false) {
        eprintln!("== {}", check.name);
        let start = Instant::now();
        if !(check.run)()? {
            failed.push(check.name);
        }
        eprintln!("   {:.1} s", start.elapsed().as_secs_f64());
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("FAILED: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn clippy() -> Result<bool> {
    success(workspace("clippy").args(["--all-targets", "--", "-Dwarnings"]))
}

/// Links that lead nowhere.
fn documentation() -> Result<bool> {
    let mut command = workspace("doc");
    success(command.arg("--no-deps").env("RUSTDOCFLAGS", "-Dwarnings"))
}

/// A cargo command on all crates but those that this host builds by detours.
fn workspace(verb: &str) -> Command {
    let mut command = cargo::cargo([verb, "--quiet", "--workspace"]);
    // One is for the BPF target only, the other builds libFuzzer first.
    command.args(["--exclude", "lb-ebpf", "--exclude", "lb-fuzz"]);
    command
}

fn clippy_bpf() -> Result<bool> {
    if !crate::setup::has_own_sources()? {
        eprintln!(
            "this compiler's library sources are not installed: the BPF target is not checked"
        );
        return Ok(true);
    }
    success(cargo::cargo_bpf("clippy")?.args(["--quiet", "--", "-Dwarnings"]))
}

fn success(command: &mut Command) -> Result<bool> {
    let status = command.stdin(Stdio::null()).status().context("cargo")?;
    Ok(status.success())
}
