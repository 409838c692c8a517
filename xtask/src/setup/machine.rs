//! The machine as set-up sees it: compiler, folders, distribution.

use anyhow::{Context as _, Result, bail};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

pub(super) struct Machine {
    /// The compiler's version, such as `1.95.0`.
    pub(super) rustc: String,
    pub(super) sysroot: PathBuf,
    /// Downloads and built tools, outside the checkout: they outlive it.
    pub(super) cache: PathBuf,
    /// Where `cargo install` puts programs.
    pub(super) cargo_bin: PathBuf,
    pub(super) distribution: Distribution,
}

/// What `os-release` says.
#[derive(Default)]
pub(super) struct Distribution {
    pub(super) id: String,
    pub(super) codename: String,
}

impl Machine {
    pub(super) fn probe() -> Result<Self> {
        let version = rustc("--version")?;
        let rustc_version =
            parse_version(&version).with_context(|| format!("`{version}`: no version of rustc"))?;
        let home = env::home_dir().context("no home folder: set HOME")?;
        let cache = absolute("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let cargo_home = absolute("CARGO_HOME").unwrap_or_else(|| home.join(".cargo"));
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        Ok(Self {
            rustc: rustc_version.into(),
            sysroot: rustc("--print=sysroot")?.into(),
            cache: cache.join("millrace"),
            cargo_bin: cargo_home.join("bin"),
            distribution: Distribution::parse(&release),
        })
    }

    /// Where cargo looks for the sources that `-Z build-std` compiles.
    pub(super) fn library(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// The program's file, by PATH and by the folders that a plain user's or Debian cargo's PATH leaves out.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        let beside = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        env::split_paths(&path)
            .chain(beside)
            .chain([self.cargo_bin.clone()])
            .map(|dir| dir.join(name))
            .find(|file| file.is_file())
    }
}

impl Distribution {
    fn parse(os_release: &str) -> Self {
        let field = |name: &str| {
            os_release
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(|value| value.trim_matches('"').to_owned())
                .unwrap_or_default()
        };
        Self {
            id: field("ID"),
            codename: field("VERSION_CODENAME"),
        }
    }
}

/// Runs a command with its output on stderr, where set-up speaks.
pub(super) fn run(command: &mut Command) -> Result<()> {
    let name = Path::new(command.get_program()).display().to_string();
    let status = command
        .stdout(std::io::stderr())
        .status()
        .with_context(|| name.clone())?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn rustc(question: &str) -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc)
        .arg(question)
        .output()
        .with_context(|| format!("{}", Path::new(&rustc).display()))?;
    if !output.status.success() {
        bail!(
            "rustc {question}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)
        .context("rustc")?
        .trim()
        .to_owned())
}

/// `rustc 1.95.0 (59807616e 2026-04-14)` → `1.95.0`
fn parse_version(line: &str) -> Option<&str> {
    line.strip_prefix("rustc ")?.split_whitespace().next()
}

/// The XDG specification says to ignore relative paths.
fn absolute(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_second_word() {
        assert_eq!(
            parse_version("rustc 1.95.0 (59807616e 2026-04-14)"),
            Some("1.95.0")
        );
        assert_eq!(
            parse_version("rustc 1.97.0-nightly (abc 2026-06-01)"),
            Some("1.97.0-nightly")
        );
        assert_eq!(parse_version("clang 22"), None);
    }

    #[test]
    fn os_release_with_and_without_quotes() {
        let text =
            "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\nVERSION_ID=\"12\"\n";
        let parsed = Distribution::parse(text);
        assert_eq!(
            (parsed.id.as_str(), parsed.codename.as_str()),
            ("debian", "bookworm")
        );
        assert_eq!(Distribution::parse("ID=\"ubuntu\"").id, "ubuntu");
    }
}
