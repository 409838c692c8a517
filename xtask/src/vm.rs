//! `cargo xtask vm`: the packet path on other kernels, in virtual machines.
//!
//! In: kernel series. Out: a table with one row a kernel (its tests, its traffic, the verifier's work, the mode in which
//! each driver runs the program), and as the last line `N passed, M failed`. Each kernel boots
//! from Debian's package with an image of this machine's programs; nothing is installed. Packet cases and the agreement
//! of kernel and host run inside one VM; traffic runs between two.

mod cpio;
mod doctor;
pub(crate) mod image;
pub(crate) mod lab;
pub(crate) mod machine;
mod modules;
pub(crate) mod package;
mod segment;
mod steps;
mod suite;
mod traffic;

use crate::{Outcome, setup, test::output::Tally};
use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use lab::{Lab, Work};
use machine::{Accelerator, Machine};
use std::{collections::BTreeSet, process::ExitCode, time::Duration};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernel series, separated by commas
    #[arg(long, value_delimiter = ',', default_values = setup::kernel_series())]
    kernel: Vec<String>,
    /// Only this part
    #[arg(long)]
    part: Option<Part>,
    /// Less: the verifier, the agreement with the host, two modes of traffic, the LAN segment
    #[arg(long)]
    core: bool,
    /// Traffic over these links only, such as `qinq,bond`
    #[arg(long, value_delimiter = ',')]
    link: Vec<String>,
}

impl Args {
    /// What a test run does.
    pub(crate) fn core(kernels: &[&str]) -> Self {
        Self {
            kernel: kernels.iter().map(|&series| series.to_owned()).collect(),
            part: None,
            core: true,
            link: Vec::new(),
        }
    }

    fn wants(&self, part: Part) -> bool {
        self.part.is_none_or(|only| only == part)
    }
}

/// What is done on a kernel.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Test binaries inside one VM
    Tests,
    /// `millrace doctor` on a NIC with offloads
    Doctor,
    /// Traffic between two VMs
    Traffic,
    /// The Debian package in a VM that has nothing else of ours; on the last kernel given
    Package,
}

#[expect(clippy::print_stdout, reason = "the results are what was asked for")]
pub(crate) fn run(args: &Args) -> Outcome {
    setup::ensure_for_vms()?;
    let mut tally = Tally::default();
    if args.part != Some(Part::Package) {
        tally.absorb(table(args)?);
    }
    if let Some(series) = args.kernel.last()
        && args.wants(Part::Package)
        && !args.core
    {
        let package = package::run(series)?;
        println!("the Debian package on {series}: {}", package.line());
        tally.absorb(package);
    }
    for failure in &tally.failures {
        println!("FAILED: {failure}");
    }
    println!("{}", tally.line());
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What the kernel is told for the last row.
const LOCKDOWN: &str = "confidentiality";

/// Boots each kernel, the last one locked down as well, prints the table and sums up.
#[expect(clippy::print_stdout, reason = "the results are what was asked for")]
pub(crate) fn table(args: &Args) -> Result<Tally> {
    let work = Work::create()?;
    let image = suite::image(work.path())?;
    let mut accelerator = None;
    let mut rows = Vec::new();
    for (number, series) in args.kernel.iter().enumerate() {
        let kernel = setup::kernel(series)?;
        let lab = Lab::open(work.path(), &kernel, &image, accelerator)?;
        accelerator = Some(lab.accelerator);
        rows.push(Row::of(&lab, args));
        let last = number + 1 == args.kernel.len();
        if last && !args.core && args.wants(Part::Tests) {
            let words = format!("lockdown={LOCKDOWN}");
            rows.push(Row::locked_down(&lab.with_words(&words)));
        }
    }
    let by = match accelerator {
        Some(Accelerator::Kvm) => "KVM",
        _ => "emulation",
    };
    println!("\nby {by}\n{}", Row::HEADING);
    let mut sum = Tally::default();
    for row in rows {
        println!("{}", row.line());
        sum.absorb(row.tests);
        sum.absorb(row.traffic);
    }
    Ok(sum)
}

/// What a kernel had to say.
#[derive(Default)]
struct Row {
    kernel: String,
    /// Seconds.
    boot: f64,
    /// Instructions that the verifier looked at, by program.
    verified: Vec<(String, u32)>,
    /// Driver and mode of each uplink.
    modes: BTreeSet<String>,
    /// Inside one VM.
    tests: Tally,
    /// Between two.
    traffic: Tally,
}

impl Row {
    /// What was asked for. What goes wrong is a failure of its part: the other parts and kernels have their turn.
    fn of(lab: &Lab<'_>, args: &Args) -> Self {
        let mut row = Self {
            kernel: lab.kernel.release.clone(),
            ..Self::default()
        };
        if args.wants(Part::Tests) {
            let done = row.test(lab, args.core);
            row.tests.note("tests", done);
        }
        if args.wants(Part::Doctor) && !args.core {
            match doctor::run(lab) {
                Ok(tally) => row.tests.absorb(tally),
                Err(error) => row.tests.note("doctor", Err(error)),
            }
        }
        if args.wants(Part::Traffic) {
            let choice = traffic::Choice {
                core: args.core,
                links: &args.link,
            };
            let mut results = traffic::Results::default();
            let done = traffic::run(lab, choice, &mut results);
            results.tally.note("traffic", done);
            row.boot = row.boot.max(results.boot);
            (row.modes, row.traffic) = (results.modes, results.tally);
        }
        row.end()
    }

    /// On a kernel that was told to lock itself down.
    fn locked_down(lab: &Lab<'_>) -> Self {
        let mut row = Self {
            kernel: format!("{} [{LOCKDOWN}]", lab.kernel.release),
            ..Self::default()
        };
        let done = row.test(lab, true);
        row.tests.note("tests", done);
        row.end()
    }

    fn test(&mut self, lab: &Lab<'_>, core: bool) -> Result<()> {
        let mut machine = lab.boot("tests", &[], None)?;
        self.boot = machine.booted;
        eprintln!("vm: {}: up after {:.1} s", self.kernel, self.boot);
        if !lab.words.is_empty() {
            let mode = lockdown(&mut machine)?;
            ensure!(mode == LOCKDOWN, "locked down to {mode}, not {LOCKDOWN}");
        }
        let results = suite::run(lab, machine, core)?;
        self.verified = results.verified;
        self.tests.absorb(results.tally);
        Ok(())
    }

    /// Names the kernel in every failure, and shows the row where one waits for the table.
    fn end(mut self) -> Self {
        for tally in [&mut self.tests, &mut self.traffic] {
            for failure in &mut tally.failures {
                *failure = format!("{}: {failure}", self.kernel);
            }
        }
        eprintln!("vm: {}", self.line());
        self
    }

    const HEADING: &str = "kernel                                     boot s millrace_xdp millrace_tunnel  millrace_tc millrace_egress  tests                  traffic                XDP";

    fn line(&self) -> String {
        let verified = |program: &str| {
            let found = self.verified.iter().find(|(name, _)| name == program);
            found.map_or_else(|| "-".to_owned(), |(_, number)| number.to_string())
        };
        let line = |tally: &Tally| {
            if tally.ran() {
                tally.line()
            } else {
                "-".to_owned()
            }
        };
        let modes: Vec<_> = self.modes.iter().map(String::as_str).collect();
        format!(
            "{:<42} {:>6.1} {:>12} {:>15} {:>12} {:>15}  {:<22} {:<22} {}",
            self.kernel,
            self.boot,
            verified("millrace_xdp"),
            verified("millrace_tunnel"),
            verified("millrace_tc"),
            verified("millrace_egress"),
            line(&self.tests),
            line(&self.traffic),
            modes.join(", "),
        )
    }
}

/// How far the running kernel is locked down.
fn lockdown(machine: &mut Machine) -> Result<String> {
    let modes = machine.run("cat /sys/kernel/security/lockdown", Duration::from_mins(1))?;
    let on = modes
        .split_whitespace()
        .find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']'));
    Ok(on.context(modes.clone())?.to_owned())
}
