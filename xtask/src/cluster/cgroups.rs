//! The cgroup above a node's pods: one folder in cgroup v2, one below each controller in v1.

use super::process::until;
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const ROOT: &str = "/sys/fs/cgroup";

/// Settings without which no process may enter a v1 cpuset; a new one has none.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

pub(super) fn create(name: &str) -> Result<()> {
    for root in roots(Path::new(ROOT))? {
        let folder = root.join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for file in CPUSET {
            let (from, to) = (root.join(file), folder.join(file));
            // In v2 the root has none of them and children inherit.
            if from.is_file() && to.is_file() {
                fs::copy(&from, &to).with_context(|| to.display().to_string())?;
            }
        }
    }
    Ok(())
}

/// Removes it with all below, once the processes in it are gone.
pub(super) fn remove(name: &str) -> Result<()> {
    for root in roots(Path::new(ROOT))? {
        let folder = root.join(name);
        until(Duration::from_secs(10), || {
            remove_tree(&folder).with_context(|| folder.display().to_string())
        })?;
    }
    Ok(())
}

/// Folders of a cgroup hold files that cannot be removed and go with it.
fn remove_tree(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(fs::remove_dir(folder)?)
}

/// Where the hierarchies that limit something are mounted.
fn roots(mount: &Path) -> Result<Vec<PathBuf>> {
    if mount.join("cgroup.controllers").is_file() {
        return Ok(vec![mount.to_owned()]);
    }
    let entries = fs::read_dir(mount).with_context(|| mount.display().to_string())?;
    let mut roots: Vec<_> = entries
        .flatten()
        // Links name two controllers of one hierarchy.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").is_file())
        .collect();
    roots.sort();
    Ok(roots)
}
