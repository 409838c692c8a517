//! The way that cannot run dry: Debian's stable suites carry one compiler for the browsers with the library sources of
//! the very same version. Where the machine's compiler has no sources to be found, that one builds the BPF object.
//!
//! Its packages conflict with the machine's rustc and replace it, so they are unpacked into the cache, and a script
//! named `rustc` starts the compiler with its own libraries. The agent's build script looks for that script.

use super::{
    debian::{self, Apt, WorkFolder},
    machine::Machine,
};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// The build script of lb-userspace knows this name too.
const FOLDER: &str = "rustc-web";

pub(super) fn present(machine: &Machine) -> bool {
    let script = folder(machine).join("rustc");
    Command::new(script)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

pub(super) fn install(machine: &Machine) -> Result<()> {
    eprintln!("setup: Debian's rustc-web and its sources, for the BPF object only");
    let codename = &machine.distribution.codename;
    let security = format!("{codename}-security");
    let main = debian::mirrors(machine, codename)?;
    // A new suite has the compiler before it has any security update.
    let updates = debian::mirrors(machine, &security).unwrap_or_default();
    let sources: Vec<_> = main
        .iter()
        .map(|mirror| (mirror, codename.as_str()))
        .chain(updates.iter().map(|mirror| (mirror, security.as_str())))
        .collect();
    let apt = Apt::update(machine, &sources)?;

    let downloads = WorkFolder::empty(machine.cache.join("rustc-web-packages"))?;
    apt.download(packages(&apt)?, &downloads.0)?;
    let fresh = WorkFolder::empty(machine.cache.join("rustc-web.new"))?;
    for package in debian::packages_in(&downloads.0) {
        debian::unpack(&package, &fresh.0)?;
    }
    link_sources(&fresh.0)?;
    let place = folder(machine);
    write_script(&fresh.0, &place)?;
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
    }
    fs::rename(&fresh.0, &place).with_context(|| place.display().to_string())
}

fn folder(machine: &Machine) -> PathBuf {
    machine.cache.join(FOLDER)
}

/// The compiler, its sources, and what they need of libraries whose names carry a version (`libstd-rust-web-1.96`,
/// `libllvm22`). libc and the like are on every machine that has a Rust.
fn packages(apt: &Apt) -> Result<BTreeSet<String>> {
    let mut names: BTreeSet<_> = ["rustc-web", "rust-web-src", "libstd-rust-web-dev"]
        .map(str::to_owned)
        .into();
    for _ in 0..2 {
        for name in names.clone() {
            let depends = apt.depends(&name)?;
            names.extend(depends.into_iter().filter(|name| is_compiler_library(name)));
        }
    }
    Ok(names)
}

fn is_compiler_library(package: &str) -> bool {
    package.starts_with("libstd-rust-web") || package.starts_with("libllvm")
}

/// Puts the sources where cargo looks; the package links them by a path of an installed system.
fn link_sources(root: &Path) -> Result<()> {
    let entries = fs::read_dir(root.join("usr/src")).context("rust-web-src holds no usr/src")?;
    let sources = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.join("library/core/src/lib.rs").is_file())
        .context("rust-web-src holds no library")?;
    let rust = root.join("usr/lib/rustlib/src/rust");
    fs::create_dir_all(rust.parent().context("usr/lib")?)?;
    if rust.symlink_metadata().is_ok() {
        fs::remove_file(&rust).with_context(|| rust.display().to_string())?;
    }
    let name = sources.file_name().context("usr/src")?;
    std::os::unix::fs::symlink(Path::new("../../../src").join(name), &rust)?;
    Ok(())
}

/// Writes the script into `root`, for the time when `root` lies at `place`.
fn write_script(root: &Path, place: &Path) -> Result<()> {
    let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let place = place.display();
    let text = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{place}/{libraries}'${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n\
         export LD_LIBRARY_PATH\nexec '{place}/usr/bin/rustc' --sysroot '{place}/usr' \"$@\"\n"
    );
    let script = root.join("rustc");
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
