//! The test binaries of the workspace, inside a VM.

use super::{image::Image, lab::Lab, machine::Machine};
use crate::{
    cargo, dist,
    test::output::{Reader, Tally},
};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A file of `tests/tests/` that asks a kernel what it does.
struct File {
    name: &'static str,
    /// Only tests whose name begins so.
    filter: &'static str,
    /// Whether every test run wants it.
    core: bool,
}

/// The verifier (without its budget, which is that of one kernel), and the packet path in it. The packet cases take an
/// emulated CPU minutes.
const FILES: [File; 3] = [
    File {
        name: "verifier",
        filter: "the_verifier",
        core: true,
    },
    File {
        name: "agreement",
        filter: "",
        core: true,
    },
    File {
        name: "packets",
        filter: "",
        core: false,
    },
];

/// Frames of the agreement test: an emulated CPU is some thirty times slower.
const FRAMES: u32 = 10_000;

/// For one test file. The packet cases take 8 minutes when both CPUs are busy with something else.
const PATIENCE: Duration = Duration::from_mins(20);

/// What tests and traffic call besides our own programs.
const PROGRAMS: [&str; 13] = [
    "ip",
    "tc",
    "ethtool",
    "bpftool",
    "nft",
    "nginx",
    "iperf3",
    "dnsmasq",
    "dig",
    "conntrack",
    "ping",
    "curl",
    "tcpdump",
];

/// An image with our programs, the test files and what they call.
pub(super) fn image(work: &Path) -> Result<Image> {
    let mut image = Image::new()?;
    for program in PROGRAMS {
        image.program(program)?;
    }
    image.executable("/usr/bin/millrace", &dist::binary::build()?)?;
    let folder = cargo::build_binaries(&[cargo::HARNESS], "dev")?;
    for name in ["peer", "far"] {
        let small = strip(&folder.join(name), work, name)?;
        image.executable(&format!("/usr/bin/{name}"), &small)?;
    }
    for (name, file) in test_binaries()? {
        let small = strip(&file, work, &name)?;
        image.executable(&format!("/tests/{name}"), &small)?;
    }
    Ok(image)
}

/// Verified instructions by program, and the tests' results.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) verified: Vec<(String, u32)>,
    pub(super) tally: Tally,
}

/// Runs the test files, or the `core` ones; the failures' output goes to stderr. A file that does not end takes its
/// machine with it, not the files behind it.
pub(super) fn run(lab: &Lab<'_>, mut machine: Machine, core: bool) -> Result<Results> {
    let mut results = Results::default();
    for file in FILES.iter().filter(|file| file.core || !core) {
        let (file, filter) = (file.name, file.filter);
        let script = format!(
            "cd /tmp && MILLRACE_QUICK=1 MILLRACE_FRAMES={FRAMES} /tests/{file} {filter} --test-threads=1 --show-output"
        );
        let mut reader = Reader::default();
        let mut said = Vec::new();
        let begin = Instant::now();
        let ended = machine.stream(&script, PATIENCE, |line| {
            reader.line(line);
            if line.starts_with("test ") {
                eprintln!("vm: {line}");
            }
            said.push(line.to_owned());
        });
        eprintln!("vm: {file}: {:.0} s", begin.elapsed().as_secs_f64());
        results
            .verified
            .extend(said.iter().filter_map(|l| verified(l)));
        let mut tally = reader.finish();
        let well = matches!(ended, Ok(0));
        if !well {
            eprintln!("{}", said.join("\n"));
            if tally.failed == 0 || ended.is_err() {
                tally.fail(format!("{file}: no good end"));
            }
        }
        results.tally.absorb(tally);
        if let Err(error) = ended {
            eprintln!("{error:#}");
            machine = lab.boot("tests-again", &[], None)?;
        }
    }
    Ok(results)
}

/// `verified NAME NUMBER`
fn verified(line: &str) -> Option<(String, u32)> {
    let (name, number) = line.strip_prefix("verified ")?.split_once(' ')?;
    Some((name.to_owned(), number.parse().ok()?))
}

/// Builds the test files; cargo names their binaries.
fn test_binaries() -> Result<Vec<(String, PathBuf)>> {
    let mut command = cargo::cargo(["test", "--no-run", "--message-format=json"]);
    command.args(["--package", cargo::HARNESS]);
    for file in &FILES {
        command.args(["--test", file.name]);
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cargo test")?;
    ensure!(
        output.status.success(),
        "cargo test: the tests did not build"
    );
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let name = message["target"]["name"].as_str().unwrap_or_default();
        if let Some(file) = message["executable"].as_str()
            && FILES.iter().any(|file| file.name == name)
        {
            found.push((name.to_owned(), file.into()));
        }
    }
    if found.len() != FILES.len() {
        bail!("cargo test: {} of {} binaries", found.len(), FILES.len());
    }
    Ok(found)
}

/// A copy without what only a debugger reads: a tenth of the size.
fn strip(file: &Path, work: &Path, name: &str) -> Result<PathBuf> {
    let to = work.join(name);
    let status = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .args([&to, &file.to_owned()])
        .status()
        .context("strip (Debian package binutils)")?;
    if !status.success() {
        fs::copy(file, &to).with_context(|| file.display().to_string())?;
    }
    Ok(to)
}
