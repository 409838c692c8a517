//! `cargo xtask dist`: what others install. A static `millrace` with the BPF object in it, and a Debian package of it
//! with unit, manual pages, completions and an example.
//!
//! In: the checkout; `SOURCE_DATE_EPOCH` if it is set, else the time of the last commit; `DEBFULLNAME` and `DEBEMAIL`
//! for the maintainer. Out: `target/dist/`. The same checkout and tools give the same bytes, wherever it lies.
//!
//! The package is made by `dpkg-deb` from a staged tree: every Debian has it, it is the format's reference, and what
//! goes where stands in one file here (`dist/tree.rs`). cargo-deb would be one more tool to build and pin, and would
//! still want the maintainer scripts, which are where the work is.

pub(crate) mod binary;
mod notices;
mod tree;

use crate::{Outcome, cargo, run::quietly as run_quietly, setup};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeSet,
    env, fs,
    path::PathBuf,
    process::{Command, ExitCode},
    sync::{Mutex, MutexGuard, PoisonError},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Revision of the package: the same version packed again
    #[arg(long, default_value_t = 1, value_name = "N")]
    revision: u32,
}

pub(crate) fn run(args: &Args) -> Outcome {
    setup::ensure()?;
    let package = make(args.revision)?;
    for file in [&package.binary, &package.file] {
        let size = fs::metadata(file)?.len() as f64 / 1_048_576.0;
        say(&format!("{}  {size:.1} MiB", file.display()));
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "the results are what was asked for")]
fn say(line: &str) {
    println!("{line}");
}

/// What there is to give away. Nothing is made anew while somebody holds one.
pub(crate) struct Package {
    pub(crate) binary: PathBuf,
    pub(crate) file: PathBuf,
    /// The package's files where they were before it was packed.
    pub(crate) tree: PathBuf,
    _alone: MutexGuard<'static, BTreeSet<u32>>,
}

/// Lanes of a test run want packages at the same time, and there is one folder to stage them in. The revisions that this
/// process has packed: compressing one takes 16 s of a processor.
static STAGE: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Builds everything anew that changed since the process began. Waits until nobody else holds a [`Package`].
pub(crate) fn make(revision: u32) -> Result<Package> {
    let mut alone = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let out = cargo::target_dir()?.join("dist");
    let stage = out.join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| stage.display().to_string())?;
    }
    fs::create_dir_all(&stage).with_context(|| stage.display().to_string())?;
    let binary = out.join("millrace");
    fs::copy(binary::build()?, &binary).with_context(|| binary.display().to_string())?;
    let about = About {
        version: version(revision),
        maintainer: maintainer(),
        time: time()?,
    };
    tree::fill(&stage, &binary, &about)?;
    let file = file(revision)?;
    if !alone.contains(&revision) {
        let fresh = file.with_extension("new");
        run_quietly(
            Command::new("dpkg-deb")
                .args(["--root-owner-group", "--build", "-Zxz"])
                .args([&stage, &fresh])
                .env("SOURCE_DATE_EPOCH", about.time.to_string()),
        )?;
        // Whoever reads an earlier one goes on with that.
        fs::rename(&fresh, &file).with_context(|| file.display().to_string())?;
        alone.insert(revision);
    }
    Ok(Package {
        binary,
        file,
        tree: stage,
        _alone: alone,
    })
}

/// Where [`make`] puts the package.
pub(crate) fn file(revision: u32) -> Result<PathBuf> {
    let name = format!("millrace_{}_amd64.deb", version(revision));
    Ok(cargo::target_dir()?.join("dist").join(name))
}

fn version(revision: u32) -> String {
    format!("{}-{revision}", env!("CARGO_PKG_VERSION"))
}

/// What the package says of itself.
struct About {
    /// Upstream version and revision, as `0.1.0-1`.
    version: String,
    maintainer: String,
    /// Seconds since the Unix epoch: no file in the package is younger.
    time: u64,
}

/// Debian's own variables. Without them there is nobody to write to.
fn maintainer() -> String {
    let name = env::var("DEBFULLNAME").unwrap_or_else(|_| "Millrace maintainers".into());
    let address = env::var("DEBEMAIL").unwrap_or_else(|_| "maintainers@millrace.invalid".into());
    format!("{name} <{address}>")
}

/// Seconds since the Unix epoch: of the last commit, or what `SOURCE_DATE_EPOCH` says.
pub(crate) fn time() -> Result<u64> {
    if let Ok(text) = env::var("SOURCE_DATE_EPOCH") {
        return text.parse().context("SOURCE_DATE_EPOCH");
    }
    let commit = Command::new("git")
        .current_dir(cargo::root())
        .args(["log", "-1", "--format=%ct"])
        .output();
    let text = match commit {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout)?,
        _ => bail!("no git history to date the package by: set SOURCE_DATE_EPOCH"),
    };
    text.trim().parse().context("git log")
}
