//! The package's tree: what lies where on the user's machine.

use super::{About, notices, run_quietly};
use crate::cargo;
use anyhow::{Context as _, Result};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

const DOC: &str = "usr/share/doc/millrace";

/// Shell, folder and file name of its completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/millrace"),
    ("zsh", "usr/share/zsh/vendor-completions/_millrace"),
    ("fish", "usr/share/fish/vendor_completions.d/millrace.fish"),
];

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Fills an empty folder with the package's files and its control files.
pub(super) fn fill(stage: &Path, binary: &Path, about: &About) -> Result<()> {
    let tree = Tree(stage.to_path_buf());
    let root = cargo::root();
    let deploy = |path: &str| read(&root.join("deploy").join(path));

    tree.put("usr/sbin/millrace", &fs::read(binary)?, 0o755)?;
    let unit = deploy("systemd/millrace.service")?;
    tree.text("usr/lib/systemd/system/millrace.service", &unit)?;
    tree.text(
        "etc/millrace/example.yaml",
        &read(&root.join("docs/example.yaml"))?,
    )?;
    for (shell, path) in COMPLETIONS {
        let script = run_quietly(Command::new(binary).args(["completions", shell]))?;
        tree.put(path, &script, 0o644)?;
    }
    tree.manual_pages(binary)?;

    let mit = read(&root.join("docs/licences/MIT.txt"))?;
    let copyright = deploy("debian/copyright")?.replace("@MIT@", &indented(&mit));
    tree.text(&format!("{DOC}/copyright"), &copyright)?;
    tree.text(
        &format!("{DOC}/config.md"),
        &read(&root.join("docs/config.md"))?,
    )?;
    for (name, text) in [
        ("changelog", read(&root.join("CHANGELOG.md"))?),
        ("changelog.Debian", debian_changelog(about)?),
        ("third-party", notices::all(&root)?),
    ] {
        tree.compressed(&format!("{DOC}/{name}"), &text)?;
    }
    tree.control_files(about, &deploy)
}

/// A package's folder before it is packed.
struct Tree(PathBuf);

impl Tree {
    fn put(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let path = self.0.join(path);
        let folder = path.parent().context("a file lies in a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        fs::write(&path, content).with_context(|| path.display().to_string())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .with_context(|| path.display().to_string())
    }

    fn text(&self, path: &str, text: &str) -> Result<()> {
        self.put(path, text.as_bytes(), 0o644)
    }

    /// As `path.gz`; without name and time in it, which would differ.
    fn compressed(&self, path: &str, text: &str) -> Result<()> {
        self.text(path, text)?;
        run_quietly(Command::new("gzip").arg("-9n").arg(self.0.join(path))).map(drop)
    }

    fn manual_pages(&self, binary: &Path) -> Result<()> {
        let folder = self.0.join("usr/share/man/man8");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        run_quietly(Command::new(binary).arg("manual").arg(&folder))?;
        for page in files(&folder)? {
            run_quietly(Command::new("gzip").arg("-9n").arg(page))?;
        }
        Ok(())
    }

    fn control_files(&self, about: &About, deploy: &dyn Fn(&str) -> Result<String>) -> Result<()> {
        let paths = files(&self.0)?;
        let mut bytes = 0;
        for path in &paths {
            bytes += fs::metadata(path)?.len();
        }
        let sums = run_quietly(
            Command::new("md5sum").current_dir(&self.0).args(
                paths
                    .iter()
                    .filter_map(|path| path.strip_prefix(&self.0).ok()),
            ),
        )?;
        self.put("DEBIAN/md5sums", &sums, 0o644)?;
        let control = deploy("debian/control")?
            .replace("@VERSION@", &about.version)
            .replace("@MAINTAINER@", &about.maintainer)
            // In KiB.
            .replace("@INSTALLED_SIZE@", &bytes.div_ceil(1024).to_string());
        self.text("DEBIAN/control", &control)?;
        self.text("DEBIAN/conffiles", &deploy("debian/conffiles")?)?;
        for script in SCRIPTS {
            let text = deploy(&format!("debian/{script}"))?;
            self.put(&format!("DEBIAN/{script}"), text.as_bytes(), 0o755)?;
        }
        Ok(())
    }
}

/// All files below a folder, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// As a field of a copyright file: each line begins with a space, empty ones have a dot.
fn indented(text: &str) -> String {
    let lines = text.trim().lines().map(|line| match line.trim() {
        "" => " .".to_owned(),
        line => format!(" {line}"),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn debian_changelog(about: &About) -> Result<String> {
    let date = run_quietly(
        Command::new("date")
            .env("LC_ALL", "C")
            .args(["--utc", "--rfc-email", "--date"])
            .arg(format!("@{}", about.time)),
    )?;
    Ok(format!(
        "millrace ({}) unstable; urgency=medium\n\n  * See /{DOC}/changelog.gz.\n\n -- {}  {}",
        about.version,
        about.maintainer,
        String::from_utf8(date)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_become_fields() {
        assert_eq!(indented("MIT\n\n  a b\n"), " MIT\n .\n a b");
    }

    #[test]
    fn changelogs_have_debians_form() {
        let about = About {
            version: "0.1.0-1".into(),
            maintainer: "Ada <ada@example.org>".into(),
            time: 0,
        };
        let text = debian_changelog(&about).unwrap();
        assert!(text.starts_with("millrace (0.1.0-1) unstable; urgency=medium\n\n  * See "));
        let end = " -- Ada <ada@example.org>  Thu, 01 Jan 1970 00:00:00 +0000\n";
        assert!(text.ends_with(end), "{text}");
    }
}
