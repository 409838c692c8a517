//! The workspace and the cargo commands that verbs share.

use anyhow::{Context as _, Result, bail};
use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

/// Where the workspace lies: cargo says so at run time, and a binary started by hand knows where it was built.
pub(crate) fn root() -> PathBuf {
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map(Path::to_path_buf).unwrap_or(own)
}

/// A cargo command in the workspace's root.
pub(crate) fn cargo<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

/// A cargo command on the crate that builds for the BPF target only, in the target folder that the agent's build
/// script uses.
pub(crate) fn cargo_bpf(verb: &str) -> Result<Command> {
    let mut command = cargo([verb, "--locked", "--release", "--package", "lb-ebpf"]);
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .args([
            "-Z",
            "build-std=core",
            "--target",
            "bpfel-unknown-none",
            "--target-dir",
        ])
        .arg(target_dir()?.join("bpf"));
    Ok(command)
}

/// The workspace's target folder, wherever the environment or a config file put it.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let output = cargo(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo metadata")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata: no JSON")?;
    let dir = metadata["target_directory"]
        .as_str()
        .context("cargo metadata: no target folder")?;
    Ok(dir.into())
}

/// Builds the `millrace` binary and names it. `profile` is cargo's: `dev` or `release`.
pub(crate) fn build_millrace(profile: &str) -> Result<PathBuf> {
    // stdout may be a bench's JSON.
    let status = cargo([
        "build",
        "--package",
        "lb-userspace",
        "--bin",
        "millrace",
        "--profile",
        profile,
    ])
    .stdout(std::io::stderr())
    .status()
    .context("cargo build")?;
    if !status.success() {
        bail!("the millrace binary does not build");
    }
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target_dir()?.join(folder).join("millrace"))
}

/// Runs a binary of the harness package in the release profile, with the release `millrace` named in `MILLRACE_BIN`,
/// and passes its exit code on.
pub(crate) fn run_harness(bin: &str, args: &[&str]) -> crate::Outcome {
    let millrace = build_millrace("release")?;
    let status = cargo([
        "run",
        "--quiet",
        "--release",
        "--package",
        "lb-tests",
        "--bin",
        bin,
        "--",
    ])
    .args(args)
    .env("MILLRACE_BIN", millrace)
    .status()
    .with_context(|| format!("cargo run --bin {bin}"))?;
    Ok(exit_code(status))
}

/// A child's exit code as ours; death by a signal counts as failure.
pub(crate) fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
