//! A small Debian with systemd as a disk for virtual machines: where a package is installed as a user installs it.
//!
//! Made by `mmdebstrap` of the machine's own release, from the machine's own mirror. The disk stays in the cache.

use super::{
    debian::{self, WorkFolder},
    machine::{Machine, is_root, run},
};
use anyhow::{Context as _, Result, ensure};
use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
};

/// Changes with everything below that changes what is on the disk.
const REVISION: u32 = 1;

/// What a server has, and what looks at its network.
const PACKAGES: [&str; 7] = [
    "bpftool",
    "ethtool",
    "iproute2",
    "nftables",
    "procps",
    "systemd-sysv",
    "udev",
];

/// A sparse file's, of which a quarter is used.
const BYTES: u64 = 1 << 30;

/// The disk in the cache; made where there is none.
pub(crate) fn debian_root() -> Result<PathBuf> {
    let machine = Machine::probe()?;
    let codename = &machine.distribution.codename;
    let disk = machine
        .cache
        .join(format!("roots/{codename}-{REVISION}.ext4"));
    if !disk.is_file() {
        make(&machine, &disk).context("a Debian root for virtual machines")?;
    }
    Ok(disk)
}

fn make(machine: &Machine, disk: &PathBuf) -> Result<()> {
    ensure!(is_root(), "its files are root's: run this as root");
    let codename = &machine.distribution.codename;
    let mirrors = debian::mirrors(machine, codename)?;
    let work = WorkFolder::empty(disk.with_extension("new"))?;
    let (tree, file) = (work.0.join("tree"), work.0.join("disk"));
    eprintln!("setup: mmdebstrap {codename}, for virtual machines");
    run(Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--mode=root"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(codename)
        .arg(&tree)
        .args(mirrors.iter().map(|mirror| {
            let line = debian::source(mirror, codename);
            line.trim_end().to_owned()
        })))?;
    File::create(&file)?.set_len(BYTES)?;
    // No time, journal or checksum that a disk of a few minutes' life would need.
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-O", "^has_journal", "-m", "0", "-d"])
        .args([&tree, &file]))?;
    // At its place when it is whole: half a disk must not look like one.
    fs::rename(&file, disk).with_context(|| disk.display().to_string())
}
