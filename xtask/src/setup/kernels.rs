//! Debian's kernels of other releases, unpacked for virtual machines; none is installed here.
//!
//! They come from the mirror that this machine's apt uses: its other suites lie beside the machine's own. apt checks the
//! suite's signature and the package's checksum. Package and unpacked files stay in the cache, keyed by version.

use super::{
    debian::{self, Apt, WorkFolder},
    machine::Machine,
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Kernel series, and the suites that have it, the one that is kept longest first.
const SERIES: [(&str, &[&str]); 3] = [
    ("5.10", &["bullseye"]),
    ("6.1", &["bookworm"]),
    ("6.12", &["trixie", "bookworm-backports"]),
];

/// Debian's kernel for virtual machines: the same source and almost the same options with fewer drivers.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// Files of an unpacked kernel package.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
}

/// Names of the series that [`kernel`] knows.
pub(crate) fn series() -> impl Iterator<Item = &'static str> {
    SERIES.iter().map(|(name, _)| *name)
}

/// The newest kernel of a series in the cache; fetched where there is none.
pub(crate) fn kernel(series: &str) -> Result<Kernel> {
    let machine = Machine::probe()?;
    let (_, suites) = SERIES
        .iter()
        .find(|(name, _)| *name == series)
        .with_context(|| {
            let known: Vec<_> = self::series().collect();
            format!("no kernel series {series}: one of {}", known.join(", "))
        })?;
    let downloads = machine.cache.join("kernels").join(series);
    if debian::packages_in(&downloads).is_empty() {
        fetch(&machine, suites, &downloads).with_context(|| format!("kernel {series}"))?;
    }
    let mut packages = debian::packages_in(&downloads);
    packages.sort();
    let package = packages.pop().context("apt-get left no package")?;
    let folder = package.with_extension("unpacked");
    if !folder.is_dir() {
        // Beside the place first: half a kernel must not look like one.
        let fresh = WorkFolder::empty(package.with_extension("new"))?;
        debian::unpack(&package, &fresh.0)?;
        fs::rename(&fresh.0, &folder).with_context(|| folder.display().to_string())?;
    }
    files(&folder).with_context(|| format!("{} (remove it to fetch it anew)", package.display()))
}

fn fetch(machine: &Machine, suites: &[&str], into: &Path) -> Result<()> {
    let mirrors = debian::mirrors(machine, &machine.distribution.codename)?;
    for suite in suites {
        for mirror in &mirrors {
            eprintln!("setup: looking for {PACKAGE} in Debian's {suite}");
            let fetched = Apt::update(machine, &[(mirror, suite)]).and_then(|apt| {
                let depends = apt.depends(PACKAGE)?;
                let package = depends.first().context("not in this suite")?;
                apt.download([package], into)
            });
            match fetched {
                Ok(()) => return Ok(()),
                Err(error) => eprintln!("setup: not in {suite} ({error:#})"),
            }
        }
    }
    bail!("none of {} has it", suites.join(", "))
}

fn files(folder: &Path) -> Result<Kernel> {
    let boot = folder.join("boot");
    let image = only(&boot, "vmlinuz-")?;
    // Since trixie below /usr.
    let modules = ["usr/lib/modules", "lib/modules"].map(|path| folder.join(path));
    let modules = modules
        .iter()
        .find(|path| path.is_dir())
        .context("no modules")?;
    let modules = only(modules, "")?;
    let release = modules.file_name().context("a folder's name")?;
    Ok(Kernel {
        release: release.to_string_lossy().into_owned(),
        image,
        modules,
    })
}

fn only(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .with_context(|| format!("no {prefix}* in {}", folder.display()))
}
