//! The library sources of exactly this compiler, which `-Z build-std=core` compiles for the BPF target.
//!
//! In order: the cache, rustup, Debian's suites that package newer compilers. Debian's package is unpacked, not
//! installed: only its `library` folder is copied to where cargo looks.

use super::{
    apt_sources::{self, Mirror},
    machine::{Machine, is_root, run},
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

const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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

pub(super) fn install(machine: &Machine) -> Result<()> {
    eprintln!("setup: library sources of rustc {}", machine.rustc);
    if let Some(package) = cached(machine) {
        return unpack(machine, &package);
    }
    let rustup = by_rustup(machine);
    if rustup.is_ok() && present(machine) {
        return Ok(());
    }
    let debian = by_debian(machine);
    if debian.is_ok() && present(machine) {
        return Ok(());
    }
    let why = |result: Result<()>| {
        result
            .err()
            .map_or("left no sources".to_owned(), |e| format!("{e:#}"))
    };
    bail!(
        "no library sources of rustc {version} (rustup: {}; Debian: {}). By hand: where the network reaches further, \
         run `rustup component add rust-src` with rustc {version}, or unpack Debian's package rust-src of that version, \
         and copy the folder `library` (with core/src/lib.rs in it) to {}",
        why(rustup),
        why(debian),
        machine.library().display(),
        version = machine.rustc,
    )
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
    // Its backtrace and retries say less than our own line.
    let mut child = Command::new(rustup)
        .args(["component", "add", "rust-src", "--toolchain"])
        .arg(toolchain)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("rustup")?;
    let deadline = Instant::now() + RUSTUP_DEADLINE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            if status.success() {
                return Ok(());
            }
            bail!("its server cannot be reached or has no such component ({status})");
        }
        thread::sleep(Duration::from_millis(50));
    }
    child.kill()?;
    child.wait()?;
    bail!("no answer within {} s", RUSTUP_DEADLINE.as_secs())
}

fn by_debian(machine: &Machine) -> Result<()> {
    if machine.distribution.id != "debian" {
        bail!("this is not Debian");
    }
    for tool in ["apt-get", "dpkg"] {
        machine
            .program(tool)
            .with_context(|| format!("no {tool}"))?;
    }
    let mirrors = apt_sources::mirrors(Path::new("/etc/apt"), &machine.distribution.codename);
    if mirrors.is_empty() {
        bail!(
            "no mirror of {} in the apt sources",
            machine.distribution.codename
        );
    }
    for suite in SUITES {
        for mirror in &mirrors {
            eprintln!(
                "setup: looking for rust-src {} in Debian's {suite}",
                machine.rustc
            );
            match fetch(machine, mirror, suite) {
                Ok(package) => return unpack(machine, &package),
                Err(error) => eprintln!("setup: not in {suite} ({error:#})"),
            }
        }
    }
    bail!("none of {} has it", SUITES.join(", "))
}

/// Downloads the package into the cache, by an apt that sees one source only, with lists of its own: the machine's apt
/// stays as it is, and no root is needed.
fn fetch(machine: &Machine, mirror: &Mirror, suite: &str) -> Result<PathBuf> {
    let work = machine.cache.join("apt");
    let _cleaner = Cleaner::of(&work);
    for dir in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(dir)).with_context(|| work.display().to_string())?;
    }
    let list = work.join("sources.list");
    let key = mirror.signed_by.clone().or_else(|| {
        Path::new(DEBIAN_KEYRING)
            .is_file()
            .then(|| DEBIAN_KEYRING.to_owned())
    });
    let options = key.map_or(String::new(), |key| format!("[signed-by={key}] "));
    fs::write(&list, format!("deb {options}{} {suite} main\n", mirror.uri))?;

    let downloads = downloads(machine);
    fs::create_dir_all(&downloads)?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .current_dir(&downloads)
            .arg("--quiet")
            .arg(format!("-oDir::Etc::sourcelist={}", list.display()))
            .arg("-oDir::Etc::sourceparts=-")
            .arg(format!("-oDir::State::lists={}/lists", work.display()))
            .arg(format!("-oDir::Cache={}/cache", work.display()))
            .args(["-oAcquire::Languages=none", "-oAPT::Update::Error-Mode=any"])
            .stdin(Stdio::null())
            .args(args);
        if is_root() {
            // apt's own user may not write below a home folder.
            command.arg("-oAPT::Sandbox::User=root");
        }
        run(&mut command)
    };
    apt(&["update"])?;
    apt(&["download", &format!("rust-src={}*", machine.rustc)])?;
    cached(machine).context("apt-get downloaded no package")
}

fn downloads(machine: &Machine) -> PathBuf {
    machine.cache.join(format!("rust-src-{}", machine.rustc))
}

/// A package fetched before. apt checked its signature and removes what it could not complete.
fn cached(machine: &Machine) -> Option<PathBuf> {
    let entries = fs::read_dir(downloads(machine)).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
}

fn unpack(machine: &Machine, package: &Path) -> Result<()> {
    let folder = machine.cache.join("unpacked");
    let _cleaner = Cleaner::of(&folder);
    fs::create_dir_all(&folder)?;
    run(Command::new("dpkg").arg("-x").arg(package).arg(&folder))
        .with_context(|| format!("{} (remove it to fetch it anew)", package.display()))?;
    let unpacked = folder.join(format!("usr/src/rustc-{}/library", machine.rustc));
    fs::write(unpacked.join(MARKER), format!("{}\n", machine.rustc))
        .with_context(|| format!("{}: no library folder in it", package.display()))?;

    let library = machine.library();
    let parent = library.parent().context("sysroot")?;
    let writable = || {
        format!(
            "{} (is it yours to write? else run this as root)",
            parent.display()
        )
    };
    fs::create_dir_all(parent).with_context(writable)?;
    // Beside the place first: a broken copy must not look like the sources.
    let fresh = parent.join(".library.new");
    let _fresh_cleaner = Cleaner::of(&fresh);
    run(Command::new("cp").arg("-r").arg(&unpacked).arg(&fresh)).with_context(writable)?;
    if library.symlink_metadata().is_ok() {
        fs::remove_dir_all(&library).with_context(writable)?;
    }
    fs::rename(&fresh, &library).with_context(writable)
}

/// Removes a work folder, what an interrupted run left of it, and what its user leaves whatever way it ends.
struct Cleaner(PathBuf);

impl Cleaner {
    fn of(folder: &Path) -> Self {
        drop(fs::remove_dir_all(folder));
        Self(folder.to_path_buf())
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}
