//! `cargo xtask image`: the agent as a container image, in a file that `docker load`, `ctr images import` and
//! `cargo xtask cluster load-image` take.
//!
//! In: what `cargo xtask dist` makes. Out: a docker-archive. The image has the name that `deploy/millrace.yaml` asks for,
//! so that a cluster which was given the file needs no registry.

use crate::{Outcome, cargo, dist, run::quietly, setup};
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The archive; without it `image.tar` beside the package
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Below the workspace.
const MANIFEST: &str = "deploy/millrace.yaml";
const CONTAINERFILE: &str = "deploy/Containerfile";

/// Nothing is fetched, so nothing is to be verified. Debian's package of such policies is not always there.
const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

#[expect(clippy::print_stdout, reason = "the results are what was asked for")]
pub(crate) fn run(args: &Args) -> Outcome {
    setup::ensure_for_cluster()?;
    let file = match &args.output {
        Some(file) => std::path::absolute(file)?,
        None => file()?,
    };
    let name = make(&file)?;
    let size = fs::metadata(&file)?.len() as f64 / 1_048_576.0;
    println!("{}  {name}  {size:.1} MiB", file.display());
    Ok(ExitCode::SUCCESS)
}

/// Where the archive lies if nobody says otherwise.
pub(crate) fn file() -> Result<PathBuf> {
    Ok(cargo::target_dir()?.join("dist/image.tar"))
}

/// Builds everything anew that changed; the image's name.
pub(crate) fn make(output: &Path) -> Result<String> {
    let root = cargo::root();
    let manifest = fs::read_to_string(root.join(MANIFEST)).context(MANIFEST)?;
    let name = name(&manifest).context(MANIFEST)?;
    let package = dist::make(1)?;
    archive(name, &root.join(CONTAINERFILE), &package.tree, output)?;
    Ok(name.to_owned())
}

/// Builds an image from scratch and writes it to `output`, which it replaces. Times in it are the checkout's.
pub(crate) fn archive(
    name: &str,
    containerfile: &Path,
    context: &Path,
    output: &Path,
) -> Result<()> {
    // buildah's own store, which nobody else's images are in, for as long as this takes.
    let work = output.with_extension("buildah");
    remove(&work)?;
    fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
    let policy = work.join("policy.json");
    fs::write(&policy, POLICY)?;
    let buildah = |verb: &str| {
        let mut command = Command::new("buildah");
        command
            .args(["--storage-driver", "vfs"])
            .arg("--root")
            .arg(work.join("root"))
            .arg("--runroot")
            .arg(work.join("run"))
            .arg(verb)
            .arg("--signature-policy")
            .arg(&policy);
        command
    };
    quietly(
        buildah("build")
            .args(["--isolation", "chroot", "--quiet", "--tag", name])
            .args(["--timestamp", &dist::time()?.to_string()])
            .arg("--file")
            .arg(containerfile)
            .arg(context),
    )?;
    // It adds to no archive that is there.
    let fresh = output.with_extension("new");
    if fresh.exists() {
        fs::remove_file(&fresh)?;
    }
    let to = format!("docker-archive:{}:{name}", fresh.display());
    quietly(buildah("push").args(["--quiet", name, &to]))?;
    fs::rename(&fresh, output).with_context(|| output.display().to_string())?;
    remove(&work)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    Ok(())
}

/// The one image that a manifest asks for.
fn name(manifest: &str) -> Result<&str> {
    let mut names = manifest
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image:"))
        .map(|name| name.trim().trim_matches('"'));
    let name = names.next().context("no image in it")?;
    ensure!(names.all(|other| other == name), "several images in it");
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_names_one_image() {
        let text = "containers:\n- name: agent\n  image: localhost/millrace:0.1.0\n  imagePullPolicy: Never\n";
        assert_eq!(name(text).ok(), Some("localhost/millrace:0.1.0"));
        assert!(name("kind: Namespace\n").is_err());
        assert!(name("- image: a\n- image: b\n").is_err());
    }

    #[test]
    fn the_image_has_the_version_of_the_workspace() -> Result<()> {
        let manifest = fs::read_to_string(cargo::root().join(MANIFEST))?;
        let version = concat!(":", env!("CARGO_PKG_VERSION"));
        assert!(name(&manifest)?.ends_with(version), "{}", name(&manifest)?);
        Ok(())
    }
}
