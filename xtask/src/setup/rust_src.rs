//! The library sources of exactly this compiler, which `-Z build-std=core` compiles for the BPF target.
//!
//! In order: the cache, rustup, Debian's suites that package newer compilers. Debian's package is unpacked, not
//! installed: only its `library` folder is copied to where cargo looks.

use super::{
    debian::{self, Apt, WorkFolder},
    machine::{Machine, run},
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Suites that hold several compiler versions at a time, smallest package list first.
const SUITES: [&str; 3] = ["trixie-backports", "forky", "sid"];

/// The sources are some 3 MB; a server that cannot be reached may hold the line for much longer.
const RUSTUP_DEADLINE: Duration = Duration::from_mins(1);

/// Written into a `library` folder that came from a package. A later `rustup update` keeps files that it does not know,
/// so the folder alone does not prove that the sources are this compiler's.
const MARKER: &str = ".millrace-rustc-version";

pub(super) fn present(machine: &Machine) -> bool {
    let library = machine.library();
    let complete =
        library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file();
    let marker = fs::read_to_string(library.join(MARKER));
    complete && marker.map_or(true, |version| version.trim() == machine.rustc)
}

/// The error says what each way lacked.
pub(super) fn install(machine: &Machine) -> Result<()> {
    eprintln!("setup: library sources of rustc {}", machine.rustc);
    if let Some(package) = cached(machine) {
        return unpack(machine, &package);
    }
    let Err(rustup) = by_rustup(machine) else {
        return Ok(());
    };
    let Err(debian) = by_debian(machine) else {
        return Ok(());
    };
    bail!("rustup: {rustup:#}; Debian's rust-src: {debian:#}")
}

/// Only where the compiler is rustup's: it would add the sources to another one's folder.
fn by_rustup(machine: &Machine) -> Result<()> {
    let toolchain = machine
        .sysroot
        .parent()
        .filter(|parent| parent.ends_with("toolchains"))
        .and_then(|_| machine.sysroot.file_name())
        .context("the compiler is not rustup's")?;
    let rustup = machine.program("rustup").context("not installed")?;
    eprintln!("setup: rustup component add rust-src");
    // Its retries and backtrace say less than our own line.
    let mut child = Command::new(rustup)
        .args(["component", "add", "rust-src", "--toolchain"])
        .arg(toolchain)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("rustup")?;
    let deadline = Instant::now() + RUSTUP_DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("no answer within {} s", RUSTUP_DEADLINE.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!(
            "its server cannot be reached or has no sources of {} ({status})",
            machine.rustc
        );
    }
    if !present(machine) {
        bail!("it left no sources in {}", machine.library().display());
    }
    Ok(())
}

fn by_debian(machine: &Machine) -> Result<()> {
    let mirrors = debian::mirrors(machine, &machine.distribution.codename)?;
    for suite in SUITES {
        for mirror in &mirrors {
            eprintln!(
                "setup: looking for rust-src {} in Debian's {suite}",
                machine.rustc
            );
            let fetched = Apt::update(machine, &[(mirror, suite)]).and_then(|apt| {
                apt.download(
                    [format!("rust-src={}*", machine.rustc)],
                    &downloads(machine),
                )
            });
            match (fetched, cached(machine)) {
                (Ok(()), Some(package)) => return unpack(machine, &package),
                (Ok(()), None) => eprintln!("setup: apt-get left no package"),
                (Err(error), _) => eprintln!("setup: not in {suite} ({error:#})"),
            }
        }
    }
    bail!("none of {} has it", SUITES.join(", "))
}

fn downloads(machine: &Machine) -> PathBuf {
    machine.cache.join(format!("rust-src-{}", machine.rustc))
}

/// A package fetched before: old versions leave a mirror one day.
fn cached(machine: &Machine) -> Option<PathBuf> {
    debian::packages_in(&downloads(machine)).pop()
}

fn unpack(machine: &Machine, package: &Path) -> Result<()> {
    let folder = WorkFolder::empty(machine.cache.join("unpacked"))?;
    debian::unpack(package, &folder.0)?;
    let unpacked = folder
        .0
        .join(format!("usr/src/rustc-{}/library", machine.rustc));
    fs::write(unpacked.join(MARKER), format!("{}\n", machine.rustc))
        .with_context(|| format!("{}: no library folder in it", package.display()))?;

    let library = machine.library();
    let parent = library.parent().context("sysroot")?;
    let writable = || {
        format!(
            "{} (not yours to write? then run this as root)",
            parent.display()
        )
    };
    fs::create_dir_all(parent).with_context(writable)?;
    // Beside the place first: a broken copy must not look like the sources.
    let fresh = WorkFolder::empty(parent.join(".library.new")).with_context(writable)?;
    run(Command::new("cp").arg("-rT").arg(&unpacked).arg(&fresh.0)).with_context(writable)?;
    if library.symlink_metadata().is_ok() {
        fs::remove_dir_all(&library).with_context(writable)?;
    }
    fs::rename(&fresh.0, &library).with_context(writable)
}
