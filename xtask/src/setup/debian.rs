//! An apt beside the machine's: sources and lists of its own, so that suites and versions which the machine does not
//! use can be fetched. The machine's apt stays as it is, nothing is installed, no root is needed.

use super::{
    apt_sources::{self, Mirror},
    machine::{Machine, is_root, run},
};
use anyhow::{Context as _, Result, bail};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub(super) struct Apt {
    work: WorkFolder,
}

impl Apt {
    /// Fetches the package lists of these suites from these mirrors.
    pub(super) fn update(machine: &Machine, suites: &[(&Mirror, &str)]) -> Result<Self> {
        let apt = Self {
            work: WorkFolder::empty(machine.cache.join("apt"))?,
        };
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.work.0.join(dir))?;
        }
        let lines: String = suites
            .iter()
            .map(|(mirror, suite)| source(mirror, suite))
            .collect();
        fs::write(apt.sources(), lines)?;
        run(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    /// Downloads packages (`NAME` or `NAME=VERSION`, with wildcards in the version) into a folder.
    pub(super) fn download(
        &self,
        packages: impl IntoIterator<Item = impl AsRef<OsStr>>,
        into: &Path,
    ) -> Result<()> {
        fs::create_dir_all(into).with_context(|| into.display().to_string())?;
        let mut command = self.command("apt-get");
        command.current_dir(into).arg("download");
        run(command.args(packages))
    }

    /// Names of the packages that this one depends on.
    pub(super) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let output = self
            .command("apt-cache")
            .args(["depends", package])
            .output()
            .context("apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text
            .lines()
            .filter_map(|l| l.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    fn sources(&self) -> PathBuf {
        self.work.0.join("sources.list")
    }

    fn command(&self, tool: &str) -> Command {
        let work = self.work.0.display();
        let mut command = Command::new(tool);
        command
            .arg("--quiet")
            .arg(format!(
                "-oDir::Etc::sourcelist={}",
                self.sources().display()
            ))
            .arg("-oDir::Etc::sourceparts=-")
            .arg(format!("-oDir::State::lists={work}/lists"))
            .arg(format!("-oDir::Cache={work}/cache"))
            .args(["-oAcquire::Languages=none", "-oAPT::Update::Error-Mode=any"])
            .stdin(Stdio::null());
        if is_root() {
            // apt's own user may not write below a home folder.
            command.arg("-oAPT::Sandbox::User=root");
        }
        command
    }
}

/// The machine's mirrors that serve a suite; an error says why there are none.
pub(super) fn mirrors(machine: &Machine, suite: &str) -> Result<Vec<Mirror>> {
    if machine.distribution.id != "debian" {
        bail!("this is not Debian");
    }
    for tool in ["apt-get", "dpkg"] {
        machine
            .program(tool)
            .with_context(|| format!("no {tool}"))?;
    }
    let mirrors = apt_sources::mirrors(Path::new("/etc/apt"), suite);
    if mirrors.is_empty() {
        bail!("no mirror of {suite} in the apt sources");
    }
    Ok(mirrors)
}

/// Unpacks a package's files into a folder.
pub(super) fn unpack(package: &Path, folder: &Path) -> Result<()> {
    run(Command::new("dpkg").arg("-x").arg(package).arg(folder))
        .with_context(|| format!("{} (remove it to fetch it anew)", package.display()))
}

/// The packages in a folder. apt checked their signatures and removes what it could not complete.
pub(super) fn packages_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    entries
        .map(|entry| entry.path())
        .filter(is_package)
        .collect()
}

/// As a line of sources.list(5).
pub(super) fn source(mirror: &Mirror, suite: &str) -> String {
    let default = || Path::new(KEYRING).is_file().then(|| KEYRING.to_owned());
    let key = mirror.signed_by.clone().or_else(default);
    let options = key.map_or(String::new(), |key| format!("[signed-by={key}] "));
    format!("deb {options}{} {suite} main\n", mirror.uri)
}

/// A folder that begins empty, whatever an interrupted run left, and is removed in the end.
pub(super) struct WorkFolder(pub(super) PathBuf);

impl WorkFolder {
    pub(super) fn empty(path: PathBuf) -> Result<Self> {
        if path.symlink_metadata().is_ok() {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // What stays costs space only; the next run begins anew.
        drop(fs::remove_dir_all(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_line_keeps_the_mirrors_key() {
        let mirror = Mirror {
            uri: "http://mirror.example/debian".into(),
            signed_by: Some("/etc/apt/keyrings/k.gpg".into()),
        };
        assert_eq!(
            source(&mirror, "sid"),
            "deb [signed-by=/etc/apt/keyrings/k.gpg] http://mirror.example/debian sid main\n"
        );
    }
}
