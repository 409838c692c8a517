//! Programs built from Go modules, by way of a module of our own that requires theirs.
//!
//! `go install PATH@VERSION` refuses modules with `replace` lines. Kubernetes names its parts (`k8s.io/api`, …) as
//! v0.0.0 and replaces them by folders of its repository; published, each of them is a module of its own, whose version
//! is the release's with 0 in front. So the wrapper replaces them by those.

use crate::run::{quietly, text};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// A Go module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: &'static str,
    pub(super) path: &'static str,
    /// With its `v`.
    pub(crate) version: &'static str,
}

/// What a program's main file imports for its own sake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    /// The main file, in the package's folder.
    pub(super) main: &'static str,
    /// Last parts of import paths that are left out.
    pub(super) without: &'static [&'static str],
    /// Packages of the module that are imported instead.
    pub(super) with: &'static [&'static str],
}

impl Parts {
    /// As it comes.
    pub(super) const ALL: Self = Self {
        main: "main.go",
        without: &[],
        with: &[],
    };
}

/// Go's older releases fetch the one that a module asks for, since this one.
const GO: (u32, u32) = (1, 21);

/// What is missing to build anything; none where nothing is.
pub(super) fn need() -> Option<String> {
    let version = quietly(Command::new("go").args(["env", "GOVERSION"]));
    let new_enough = version.is_ok_and(|version| release(&text(&version)) >= Some(GO));
    (!new_enough).then(|| format!("Go {}.{}", GO.0, GO.1))
}

/// Where Go puts sources and compiled packages: six GiB for what Kubernetes consists of, which nobody wants again once
/// the programs are built. So they do not go to the user's own caches; they go with the value.
#[derive(Debug)]
pub(super) struct Workshop {
    folder: PathBuf,
}

impl Workshop {
    /// What an interrupted build left there is used.
    pub(super) fn open(folder: PathBuf) -> Result<Self> {
        if let Some(need) = need() {
            bail!(
                "there is no {need} or later to build it with: install it, or set KUBEBUILDER_ASSETS to a folder \
                 with the programs"
            );
        }
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder })
    }

    /// Builds a command of a module into `file`, with a line on stderr now and then.
    pub(super) fn build(
        &self,
        module: &Module,
        package: &str,
        parts: Parts,
        file: &Path,
    ) -> Result<()> {
        let begun = Instant::now();
        let folder = file.parent().context("a file lies in a folder")?;
        let wrapper = folder.join("module");
        fs::create_dir_all(&wrapper).with_context(|| wrapper.display().to_string())?;
        let sources = self.fetch(module, &wrapper)?;
        let upstream = |name: &str| {
            let path = sources.join(name);
            fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let requirement = wrapping(module, &upstream("go.mod")?)?;
        fs::write(wrapper.join("go.mod"), requirement)?;
        let package = if parts == Parts::ALL {
            package
        } else {
            let main = importing(&upstream(parts.main)?, module, parts);
            fs::write(wrapper.join("main.go"), main)?;
            "."
        };
        // Beside the place first: an interrupted build must not look like a program.
        let fresh = file.with_extension("new");
        let mut go = self.go(&wrapper);
        // What a debugger would want goes at the end anyway.
        go.args(["build", "-v", "-trimpath", "-gcflags=all=-dwarf=false"])
            .args(["-ldflags", &flags(module), "-o"])
            .arg(&fresh)
            .arg(package);
        compile(&mut go)?;
        fs::rename(&fresh, file).with_context(|| file.display().to_string())?;
        eprintln!("cluster: built after {} s", begun.elapsed().as_secs());
        Ok(())
    }

    /// Go in the wrapper's folder; whatever the user's settings are, it may complete the wrapper's go.mod and go.sum.
    /// Sources are read-only to Go unless it is asked otherwise, and could not be removed.
    fn go(&self, wrapper: &Path) -> Command {
        let mut go = Command::new("go");
        go.current_dir(wrapper)
            .env("GOFLAGS", "-mod=mod -modcacherw")
            .env("GOMODCACHE", self.folder.join("modules"))
            .env("GOCACHE", self.folder.join("packages"))
            .env("GOWORK", "off")
            .env("CGO_ENABLED", "0")
            // A compiler that collects less garbage takes more memory and a twentieth less time.
            .env("GOGC", "400")
            .stdin(Stdio::null());
        go
    }

    /// The folder of a module's sources.
    fn fetch(&self, module: &Module, wrapper: &Path) -> Result<PathBuf> {
        let query = format!("{}@{}", module.path, module.version);
        // The wrapper of an older try may ask for what no longer fits.
        let old = wrapper.join("go.mod");
        if old.is_file() {
            fs::remove_file(&old).with_context(|| old.display().to_string())?;
        }
        let mut download = self.go(wrapper);
        let downloaded = quietly(download.args(["mod", "download", "-json", &query]))?;
        let answer: Value =
            serde_json::from_slice(&downloaded).context("go mod download: no JSON")?;
        let sources = answer["Dir"].as_str();
        Ok(sources.context("go mod download: no folder")?.into())
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("cluster: {}: {error}", self.folder.display());
        }
    }
}

/// Runs `go build -v`, which names each package that it compiles.
fn compile(go: &mut Command) -> Result<()> {
    let mut child = go.stderr(Stdio::piped()).spawn().context("go")?;
    let errors = child.stderr.take().context("stderr of go")?;
    let (mut packages, mut told, mut said) = (0, Instant::now(), String::new());
    for line in BufReader::new(errors).lines() {
        let line = line?;
        if line.contains(' ') {
            // No package: `go: downloading …` or an error.
            _ = writeln!(said, "{line}");
        } else {
            packages += 1;
        }
        if told.elapsed().as_secs() >= 15 {
            told = Instant::now();
            eprintln!("cluster:   {packages} packages compiled");
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "go build: {status}\n{said}");
    Ok(())
}

/// The wrapper's go.mod.
fn wrapping(module: &Module, upstream: &str) -> Result<String> {
    let go = upstream
        .lines()
        .find_map(|line| line.strip_prefix("go "))
        .with_context(|| format!("{}: no go line in its go.mod", module.path))?;
    let mut text = format!(
        "module wrapper\n\ngo {}\n\nrequire {} {}\n",
        go.trim(),
        module.path,
        module.version
    );
    // v1.36.3 of the whole is v0.36.3 of its parts.
    let parts = module.version.replacen("v1.", "v0.", 1);
    for line in upstream.lines() {
        let line = line.trim().trim_start_matches("require ");
        if let Some((part, "v0.0.0")) = line.split_once(' ') {
            _ = writeln!(text, "\nreplace {part} v0.0.0 => {part} {parts}");
        }
    }
    Ok(text)
}

/// A main file that imports these parts only.
fn importing(main: &str, module: &Module, parts: Parts) -> String {
    let left_out = |line: &str| {
        let path = line.split('"').nth(1).unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        path.contains('/') && parts.without.contains(&last)
    };
    let mut text = String::new();
    for line in main.lines().filter(|line| !left_out(line)) {
        _ = writeln!(text, "{line}");
        if line == "import (" {
            for package in parts.with {
                _ = writeln!(text, "\t_ \"{}/{package}\"", module.path);
            }
        }
    }
    text
}

/// Without a version of its own a server calls itself v0.0.0, which kubectl cannot parse.
fn flags(module: &Module) -> String {
    let mut flags = "-s -w".to_owned();
    if module.path == "k8s.io/kubernetes" {
        let mut numbers = module.version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next(), numbers.next());
        for (name, value) in [
            ("gitVersion", module.version),
            ("gitMajor", major.unwrap_or_default()),
            ("gitMinor", minor.unwrap_or_default()),
        ] {
            _ = write!(flags, " -X k8s.io/component-base/version.{name}={value}");
        }
    }
    flags
}

/// `go1.26.8` → (1, 26)
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: Module = Module {
        name: "kubernetes",
        path: "k8s.io/kubernetes",
        version: "v1.36.3",
    };

    #[test]
    fn parts_without_a_version_get_the_releases() -> Result<()> {
        let upstream = "module k8s.io/kubernetes\n\ngo 1.26.0\n\nrequire (\n\tk8s.io/api v0.0.0\n\
                        \tk8s.io/klog/v2 v2.140.0\n)\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        assert_eq!(
            wrapping(&MODULE, upstream)?,
            "module wrapper\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes v1.36.3\n\
             \nreplace k8s.io/api v0.0.0 => k8s.io/api v0.36.3\n"
        );
        assert!(wrapping(&MODULE, "module x\n").is_err());
        Ok(())
    }

    #[test]
    fn parts_are_left_out_and_imported_instead() {
        let main =
            "import (\n\t_ \"x/backend/udp\" // All.\n\t_ \"x/backend/vxlan\"\n\t\"x/udpish\"\n)\n";
        let parts = Parts {
            main: "main.go",
            without: &["udp"],
            with: &["plugin/one"],
        };
        assert_eq!(
            importing(main, &MODULE, parts),
            "import (\n\t_ \"k8s.io/kubernetes/plugin/one\"\n\t_ \"x/backend/vxlan\"\n\t\"x/udpish\"\n)\n"
        );
    }

    #[test]
    fn a_server_knows_its_version() {
        let flags = flags(&MODULE);
        assert!(flags.contains(".gitVersion=v1.36.3 "), "{flags}");
        assert!(flags.ends_with(".gitMinor=36"), "{flags}");
    }

    #[test]
    fn releases_of_go_are_numbers() {
        assert_eq!(release("go1.26.8"), Some((1, 26)));
        assert!(release("go1.9") < Some(GO));
        assert_eq!(release("devel +abc"), None);
    }
}
