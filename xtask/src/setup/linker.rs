//! `bpf-linker`: turns rustc's bitcode into a BPF object with BTF.
//!
//! The version is the newest whose default LLVM is the one of rustc 1.95 (22); newer ones want LLVM packages.

use super::machine::{Machine, run};
use anyhow::{Context as _, Result};
use std::{fs, path::PathBuf, process::Command};

pub(super) const VERSION: &str = "0.10.3";

pub(super) fn present(machine: &Machine) -> bool {
    let Some(linker) = machine.program("bpf-linker") else {
        return false;
    };
    let Ok(output) = Command::new(linker).arg("--version").output() else {
        return false;
    };
    String::from_utf8_lossy(&output.stdout).trim() == format!("bpf-linker {VERSION}")
}

pub(super) fn install(machine: &Machine) -> Result<()> {
    let cached = cached(machine);
    if !cached.is_file() {
        build(machine).context("bpf-linker: `cargo install` did not succeed")?;
    }
    let bin = &machine.cargo_bin;
    fs::create_dir_all(bin).with_context(|| bin.display().to_string())?;
    // By way of a new file: the old one may be running.
    let fresh = bin.join(".bpf-linker.new");
    fs::copy(&cached, &fresh).with_context(|| fresh.display().to_string())?;
    fs::rename(&fresh, bin.join("bpf-linker")).context("bpf-linker")?;
    Ok(())
}

/// It reads the bitcode of the compiler that built it, so a new rustc means a new build.
fn folder(machine: &Machine) -> PathBuf {
    machine
        .cache
        .join(format!("bpf-linker-{VERSION}-rustc-{}", machine.rustc))
}

fn cached(machine: &Machine) -> PathBuf {
    folder(machine).join("bin/bpf-linker")
}

fn build(machine: &Machine) -> Result<()> {
    eprintln!("setup: cargo install bpf-linker {VERSION}");
    // Not in the workspace: its config and target folder are not the linker's.
    fs::create_dir_all(&machine.cache).with_context(|| machine.cache.display().to_string())?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo)
        .current_dir(&machine.cache)
        .env_remove("CARGO_TARGET_DIR")
        // The work is LLVM's, which is compiled already.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
            "--root",
        ])
        .arg(folder(machine)))
}
