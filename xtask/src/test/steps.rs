//! The steps of a test run, in the order of their cost.

use super::{
    on_cluster,
    output::{Reader, Tally},
};
use crate::{cargo, cluster, dist, lint, vm};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
};

pub(super) struct Step {
    pub(super) name: String,
    pub(super) run: Run,
}

/// Runs the step; says whether it succeeded, and what its tests did.
type Run = Box<dyn Fn() -> Result<(bool, Tally)>>;

pub(super) struct Scope<'a> {
    pub(super) quick: bool,
    pub(super) filter: Option<&'a str>,
}

/// Test files of `tests/tests/` that a quick run keeps: packets only, in memory and through the kernel.
const QUICK: [&str; 2] = ["agreement", "packets"];

/// The oldest kernel that we promise to run on, and a new one.
const KERNELS: [&str; 2] = ["5.10", NEWEST];
const NEWEST: &str = "6.12";

pub(super) fn plan(root: &Path, scope: &Scope<'_>) -> Result<Vec<Step>> {
    let mut files = test_files(&root.join("tests/tests"))?;
    let named = scope
        .filter
        .filter(|filter| files.iter().any(|file| file == filter));
    if let Some(name) = named {
        files.retain(|file| file == name);
    } else if scope.quick {
        files.retain(|file| QUICK.contains(&file.as_str()));
    }
    let mut steps = Vec::new();
    if scope.filter.is_none() {
        steps.extend(lint::checks(scope.quick).into_iter().map(|check| Step {
            name: check.name.to_owned(),
            run: Box::new(move || Ok(((check.run)()?, Tally::default()))),
        }));
    }
    let filter = scope.filter.filter(|_| named.is_none());
    let millrace = cargo::target_dir()?.join("debug/millrace");
    let package = dist::file(REVISION)?;
    let cluster = cluster::folder(on_cluster::FOLDER)?;
    let test = |name: &str, target: &[&str], options: &[&str]| {
        let step = Tests {
            millrace: &millrace,
            package: &package,
            cluster: &cluster,
            quick: scope.quick,
            filter,
        };
        step.of(name, target, options)
    };
    if named.is_none() {
        let packages = ["lb-common", "lb-userspace", "xtask"].map(|name| ["--package", name]);
        steps.push(test("unit and property", packages.as_flattened(), &[]));
    }
    steps.push(Step {
        name: "binaries".into(),
        run: Box::new(|| Ok((binaries(), Tally::default()))),
    });
    if named.is_none() {
        steps.push(test(
            "harness",
            &["--package", "lb-tests", "--lib", "--bins"],
            &SERIAL,
        ));
    }
    for file in files {
        if file == PACKAGE {
            steps.push(Step {
                name: "making the package".into(),
                run: Box::new(|| Ok((packed(), Tally::default()))),
            });
        }
        let tests = test(&file, &["--package", "lb-tests", "--test", &file], &SERIAL);
        let asked =
            file == on_cluster::FILE && filter.is_none_or(|filter| on_cluster::has(root, filter));
        steps.push(if asked {
            on_cluster::wrap(tests, &cluster)
        } else {
            tests
        });
    }
    if scope.filter.is_none() && !scope.quick {
        steps.push(Step {
            name: "other kernels".into(),
            run: Box::new(|| {
                let tally = vm::table(&vm::Args::core(&KERNELS))?;
                Ok((tally.failed == 0, tally))
            }),
        });
        steps.push(Step {
            name: "package on its machine".into(),
            run: Box::new(|| {
                let tally = vm::package::run(NEWEST)?;
                Ok((tally.failed == 0, tally))
            }),
        });
        steps.push(Step {
            name: "documentation".into(),
            run: Box::new(documentation),
        });
    }
    Ok(steps)
}

/// The test file that takes the finished package, and the package's revision.
const PACKAGE: &str = "package";
const REVISION: u32 = 1;

/// Kernel state (maps, pins, interfaces) is one for all tests of a file.
const SERIAL: [&str; 1] = ["--test-threads=1"];

/// What all test steps of a run have in common.
struct Tests<'a> {
    millrace: &'a Path,
    package: &'a Path,
    cluster: &'a Path,
    quick: bool,
    filter: Option<&'a str>,
}

impl Tests<'_> {
    /// `target` chooses packages and binaries for cargo, `options` are libtest's.
    fn of(&self, name: &str, target: &[&str], options: &[&str]) -> Step {
        let words = ["test", "--no-fail-fast"]
            .iter()
            .chain(target)
            .chain(&["--", "--show-output"]);
        let words = words
            .chain(options)
            .chain(&self.filter)
            .map(|&word| word.to_owned());
        let words: Vec<String> = words.collect();
        let millrace = self.millrace.to_path_buf();
        let package = self.package.to_path_buf();
        let cluster = self.cluster.to_path_buf();
        let quick = self.quick;
        let run = move || {
            let mut command = cargo::cargo(&words);
            command.env("MILLRACE_BIN", &millrace);
            command.env("MILLRACE_DEB", &package);
            command.env("MILLRACE_CLUSTER", &cluster);
            if quick {
                command.env("MILLRACE_QUICK", "1");
            }
            tee(&mut command, &mut io::stdout().lock())
        };
        Step {
            name: name.to_owned(),
            run: Box::new(run),
        }
    }
}

/// Names of the test binaries in a folder, sorted.
fn test_files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    // No folder, no tests yet.
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(names);
    };
    for entry in entries {
        let path = entry.with_context(|| dir.display().to_string())?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str());
        if let Some(name) = name
            && (path.extension().is_some_and(|extension| extension == "rs")
                || path.join("main.rs").is_file())
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A build that fails is a failed step, not the end of the run.
fn binaries() -> bool {
    let built = cargo::build_binaries(&cargo::BINARIES, "dev");
    built.inspect_err(|error| eprintln!("{error:#}")).is_ok()
}

fn packed() -> bool {
    let made = dist::make(REVISION);
    made.inspect_err(|error| eprintln!("{error:#}")).is_ok()
}

fn documentation() -> Result<(bool, Tally)> {
    let status = cargo::cargo([
        "doc",
        "--quiet",
        "--no-deps",
        "--workspace",
        "--exclude",
        "lb-ebpf",
        "--exclude",
        "lb-fuzz",
    ])
    .env("RUSTDOCFLAGS", "-Dwarnings")
    .status()
    .context("cargo doc")?;
    Ok((status.success(), Tally::default()))
}

/// Runs a test command, passes its output on as it comes and reads the results from it.
///
/// What a killed test leaves running holds the pipe open, so its end says nothing: behind the command's last line
/// comes one of ours.
fn tee(command: &mut Command, out: &mut impl Write) -> Result<(bool, Tally)> {
    // One pipe for both streams keeps their lines in order.
    let (output, mut input) = io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input.try_clone()?)
        .spawn()
        .context("cargo test")?;
    let mark = format!("@ended {}@\n", child.id());
    let end = mark.clone();
    let waiter = thread::spawn(move || {
        let status = child.wait();
        input.write_all(end.as_bytes()).and(status)
    });
    let mut reader = Reader::default();
    let mut lines = BufReader::new(output);
    let mut line = Vec::new();
    let mut ended = false;
    while !ended && lines.read_until(b'\n', &mut line)? > 0 {
        let before = line.strip_suffix(mark.as_bytes()).map(<[u8]>::len);
        if let Some(length) = before {
            line.truncate(length);
            ended = true;
        }
        out.write_all(&line)?;
        out.flush()?;
        reader.line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    let Ok(status) = waiter.join() else {
        bail!("the thread that waits for a test command ended before it");
    };
    Ok((status?.success(), reader.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_both_streams_is_read_in_order() {
        let script = "echo 'test a ... FAILED' >&2; echo '---- b stdout ----'; echo 'skipped: root' >&2; \
                      echo 'test result: FAILED. 4 passed; 1 failed; 0 ignored'; exit 3";
        let mut copy = Vec::new();
        let (success, tally) =
            tee(Command::new("sh").args(["-c", script]), &mut copy).expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&copy).lines().count(), 4);
        assert!(!success);
        assert_eq!(tally.line(), "3 passed, 1 failed, 1 skipped");
        assert_eq!(tally.failures, ["a"]);
    }

    #[test]
    fn what_outlives_the_command_is_not_waited_for() {
        let script =
            "sleep 1000 & echo $!; printf 'test result: ok. 1 passed; 0 failed; 0 ignored'";
        let mut copy = Vec::new();
        let (success, tally) =
            tee(Command::new("sh").args(["-c", script]), &mut copy).expect("sh runs");
        let copy = String::from_utf8_lossy(&copy);
        let (sleep, rest) = copy.split_once('\n').expect("two lines");
        let killed = Command::new("kill").arg(sleep).status().expect("kill runs");
        assert!(killed.success(), "it runs still");
        assert_eq!(rest, "test result: ok. 1 passed; 0 failed; 0 ignored");
        assert!(success);
        assert_eq!(tally.line(), "1 passed, 0 failed");
    }
}
