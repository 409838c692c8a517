//! The steps of a test run, in the order of their cost.

use super::{on_cluster, output::Tally, tee::tee};
use crate::{cargo, cluster, dist, lint, vm};
use anyhow::{Context as _, Result};
use std::{fs, io::Write, path::Path};

pub(super) struct Step {
    pub(super) name: String,
    pub(super) lane: Lane,
    pub(super) run: Run,
}

impl Step {
    /// A check or a build; what it has to say goes to the terminal at once.
    fn check(name: &str, run: impl Fn() -> Result<bool> + Send + Sync + 'static) -> Self {
        Self {
            name: name.to_owned(),
            lane: Lane::Workspace,
            run: Box::new(move |_| Ok((run()?, Tally::default()))),
        }
    }

    /// Tests that virtual machines run.
    fn machines(name: &str, run: impl Fn() -> Result<Tally> + Send + Sync + 'static) -> Self {
        Self {
            name: name.to_owned(),
            lane: Lane::Machines,
            run: Box::new(move |_| {
                let tally = run()?;
                Ok((tally.failed == 0, tally))
            }),
        }
    }
}

/// Runs the step, writes what its tests wrote, and says whether it succeeded, and what its tests did.
type Run = Box<dyn Fn(&mut dyn Write) -> Result<(bool, Tally)> + Send + Sync>;

/// Steps of one lane run one after the other. Those of the first run before all others; then the lanes run side by side:
/// most of what tests do is to wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Lane {
    /// Checks, builds and tests that take the processors whole.
    Workspace,
    Machines,
    Cluster,
    /// Namespaces of this kernel.
    Namespaces,
}

impl Lane {
    pub(super) const SIDE_BY_SIDE: [Self; 3] = [Self::Machines, Self::Cluster, Self::Namespaces];
}

pub(super) struct Scope<'a> {
    pub(super) quick: bool,
    pub(super) filter: Option<&'a str>,
}

/// Test files of `tests/tests/` that a quick run keeps: packets only, in memory and through the kernel.
const QUICK: [&str; 2] = ["agreement", "packets"];

/// The one that takes longest, and mostly waits: begun first, others fill its pauses.
const LONGEST: &str = "safety";

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
    files.sort_by_key(|file| file != LONGEST);
    let filter = scope.filter.filter(|_| named.is_none());
    let whole = scope.filter.is_none() && !scope.quick;
    let millrace = if whole {
        dist::binary::file()?
    } else {
        cargo::target_dir()?.join("debug/millrace")
    };
    let package = dist::file(REVISION)?;
    let cluster = cluster::folder(on_cluster::FOLDER)?;
    let tests = Tests {
        millrace: &millrace,
        package: &package,
        cluster: &cluster,
        quick: scope.quick,
        filter,
    };
    let mut steps = Vec::new();
    if scope.filter.is_none() {
        let checks = lint::checks(scope.quick).into_iter();
        steps.extend(checks.map(|check| Step::check(check.name, check.run)));
    }
    if named.is_none() {
        let packages = ["lb-common", "lb-userspace", "xtask"].map(|name| ["--package", name]);
        steps.push(tests.of(
            "unit and property",
            Lane::Workspace,
            packages.as_flattened(),
            &[],
        ));
    }
    let packages: &[_] = if whole {
        &[cargo::HARNESS]
    } else {
        &cargo::BINARIES
    };
    steps.push(Step::check("binaries", || Ok(binaries(packages))));
    if whole {
        steps.push(Step::check("test binaries", test_binaries));
    }
    if files.iter().any(|file| file == PACKAGE) {
        steps.push(Step::check("making the package", || Ok(packed())));
    }
    if named.is_none() {
        let target = ["--package", cargo::HARNESS, "--lib", "--bins"];
        steps.push(tests.of("harness", Lane::Namespaces, &target, &SERIAL));
    }
    for file in files {
        let target = ["--package", cargo::HARNESS, "--test", &file];
        let of_file = tests.of(&file, Lane::Namespaces, &target, &SERIAL);
        let asked =
            file == on_cluster::FILE && filter.is_none_or(|filter| on_cluster::has(root, filter));
        steps.push(if asked {
            on_cluster::wrap(of_file, &cluster)
        } else {
            of_file
        });
    }
    if whole {
        steps.push(Step::machines("other kernels", || {
            vm::table(&vm::Args::core(&KERNELS))
        }));
        steps.push(Step::machines("package on its machine", || {
            vm::package::run(NEWEST)
        }));
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
    fn of(&self, name: &str, lane: Lane, target: &[&str], options: &[&str]) -> Step {
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
        let run = move |out: &mut dyn Write| {
            let mut command = cargo::cargo(&words);
            command.env("MILLRACE_BIN", &millrace);
            command.env("MILLRACE_DEB", &package);
            command.env("MILLRACE_CLUSTER", &cluster);
            if quick {
                command.env("MILLRACE_QUICK", "1");
            }
            tee(&mut command, out)
        };
        Step {
            name: name.to_owned(),
            lane,
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
fn binaries(packages: &[&str]) -> bool {
    let built = cargo::build_binaries(packages, "dev");
    built.inspect_err(|error| eprintln!("{error:#}")).is_ok()
}

/// All test files: no compiler is to run beside their tests.
fn test_binaries() -> Result<bool> {
    let mut command = cargo::cargo(["test", "--no-run", "--package", cargo::HARNESS]);
    Ok(command.status().context("cargo test")?.success())
}

fn packed() -> bool {
    let made = dist::make(REVISION);
    made.inspect_err(|error| eprintln!("{error:#}")).is_ok()
}
