//! `cargo xtask fuzz TARGET`: libFuzzer on one of the targets of `tests/src/hostile`.
//!
//! Needs a C++ compiler (libFuzzer is C++; set-up installs one) and no tool beside cargo: cargo-fuzz would do no more
//! than set these flags, and wants a nightly compiler for them. What is found stays in `target/fuzz/TARGET`; an input
//! that breaks something is named in the end, and belongs into `tests/fuzz/corpus/TARGET`, under a name that says what
//! it is, once what it broke is mended.

use crate::{Outcome, cargo, setup};
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    target: Target,
    /// How long to look
    #[arg(long, default_value_t = 5, value_name = "M")]
    minutes: u64,
    /// Instead: write the shortest inputs that reach all that the corpus and the finds reach into this folder
    #[arg(long, value_name = "FOLDER")]
    distil: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Target {
    /// Frames for the host's build of the packet path, over good tables and garbage
    Frames,
    /// Config files
    Config,
    /// Bytes on the admin socket
    Requests,
    /// The kernel's news and answers about the network
    Netlink,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Config => "config",
            Self::Requests => "requests",
            Self::Netlink => "netlink",
        }
    }
}

/// A triple of its own keeps build scripts and macros free of the flags.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// libFuzzer's way of seeing what an input reaches, as cargo-fuzz 0.13 asks for it, and `AddressSanitizer`.
const FLAGS: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Zsanitizer=address",
];

/// For one input, in seconds, in a build that is several times slower than the product.
const TIMEOUT: u32 = 20;

pub(crate) fn run(args: &Args) -> Outcome {
    setup::ensure_with_cpp()?;
    let name = args.target.name();
    let fuzzer = build(name)?;
    let seeds = cargo::root().join("tests/fuzz/corpus").join(name);
    let work = cargo::target_dir()?.join("fuzz").join(name);
    let (finds, broken) = (work.join("finds"), work.join("broken"));
    for folder in [&finds, &broken] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut command = Command::new(fuzzer);
    command
        .current_dir(&work)
        .arg(format!("-timeout={TIMEOUT}"));
    if let Some(folder) = &args.distil {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        command.arg("-merge=1").arg(fs::canonicalize(folder)?);
        let status = command.args([&seeds, &finds]).status().context(name)?;
        return Ok(cargo::exit_code(status));
    }
    let status = command
        .arg(format!("-max_total_time={}", args.minutes * 60))
        .arg(format!("-artifact_prefix={}/", broken.display()))
        .args([
            "-print_final_stats=1",
            "-rss_limit_mb=2048",
            "-max_len=16384",
        ])
        .args([&finds, &seeds])
        .status()
        .context(name)?;
    let broken = files(&broken)?;
    if !broken.is_empty() {
        eprintln!("inputs that broke {name}:");
        for file in &broken {
            eprintln!("  {}", file.display());
        }
        return Ok(ExitCode::FAILURE);
    }
    Ok(cargo::exit_code(status))
}

/// The fuzzer's file.
fn build(name: &str) -> Result<PathBuf> {
    let status = cargo::cargo(["build", "--package", "lb-fuzz", "--profile", "fuzz"])
        .args(["--target", TRIPLE, "--bin", name])
        .env("RUSTFLAGS", FLAGS.join(" "))
        // For the sanitizer's flag; the others are stable.
        .env("RUSTC_BOOTSTRAP", "1")
        .status()
        .context("cargo build")?;
    if !status.success() {
        bail!("the fuzzer does not build");
    }
    Ok(cargo::target_dir()?.join(TRIPLE).join("fuzz").join(name))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry?.path())).collect()
}
