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

/// Builds the binaries of these packages and names their folder. `profile` is cargo's: `dev` or `release`.
pub(crate) fn build_binaries(packages: &[&str], profile: &str) -> Result<PathBuf> {
    let mut command = cargo(["build", "--bins", "--profile", profile]);
    for package in packages {
        command.args(["--package", package]);
    }
    // stdout may be a bench's JSON.
    let status = command
        .stdout(std::io::stderr())
        .status()
        .context("cargo build")?;
    if !status.success() {
        bail!("cargo build: {} did not build", packages.join(", "));
    }
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target_dir()?.join(folder))
}

/// The agent and the harness, whose programs start each other.
pub(crate) const BINARIES: [&str; 2] = ["lb-userspace", HARNESS];
pub(crate) const HARNESS: &str = "lb-tests";

/// Runs a program of the harness, built for release, with the release `millrace` named in `MILLRACE_BIN` and the folder
/// of a cluster, if it is to have one, in `MILLRACE_CLUSTER`. Passes its exit code on.
pub(crate) fn run_harness(program: &str, args: &[&str], cluster: Option<&Path>) -> crate::Outcome {
    let folder = build_binaries(&BINARIES, "release")?;
    let status = Command::new(folder.join(program))
        .args(args)
        .current_dir(root())
        .env("MILLRACE_BIN", folder.join("millrace"))
        .envs(cluster.map(|folder| ("MILLRACE_CLUSTER", folder)))
        .status()
        .with_context(|| folder.join(program).display().to_string())?;
    Ok(exit_code(status))
}

/// A child's exit code as ours; death by a signal counts as failure.
pub(crate) fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
