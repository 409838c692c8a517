//! The static binary.
//!
//! Against glibc's archives, which every machine that links Rust programs has; musl's target is not part of a plain
//! rustup installation. What a static glibc cannot do (name services, iconv, dlopen) the agent does not ask for. It is
//! also what whole test runs and virtual machines run: they test what is given away, and it starts faster.

use crate::cargo;
use anyhow::{Context as _, Result, bail};
use std::{env, path::PathBuf, process::Command};

/// Named, so that build scripts and macros stay dynamic.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Where [`build`] leaves it.
pub(crate) fn file() -> Result<PathBuf> {
    Ok(cargo::target_dir()?.join(TRIPLE).join("release/millrace"))
}

pub(crate) fn build() -> Result<PathBuf> {
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Cstrip=symbols".to_owned(),
    ];
    // Else places of panics name this machine's folders.
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .context("no home folder: set HOME or CARGO_HOME")?;
    // The library's generic code lies where its sources are installed.
    for (from, to) in [(home, "cargo"), (sysroot()?, "rust"), (cargo::root(), ".")] {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    let status = cargo::cargo(["build", "--locked", "--package", "lb-userspace"])
        .args(["--bin", "millrace", "--release", "--target", TRIPLE])
        // A path may hold spaces.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS")
        .stdout(std::io::stderr())
        .status()
        .context("cargo build")?;
    if !status.success() {
        bail!("the static binary does not build");
    }
    file()
}

fn sysroot() -> Result<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = super::run_quietly(Command::new(rustc).args(["--print", "sysroot"]))?;
    Ok(String::from_utf8(said)?.trim().into())
}
