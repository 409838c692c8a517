//! `cargo xtask vm`: the packet path on other kernels, in virtual machines.
//!
//! In: kernel series. Out: a table with one row a kernel, and as the last line `N passed, M failed`. Each kernel boots
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
use anyhow::{Context as _, Result};
use clap::ValueEnum;
use lab::{Lab, Work};
use machine::{Accelerator, Machine};
use std::{process::ExitCode, time::Duration};

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
}

impl Args {
    /// What a test run does.
    pub(crate) fn core(kernels: &[&str]) -> Self {
        Self {
            kernel: kernels.iter().map(|&series| series.to_owned()).collect(),
            part: None,
            core: true,
        }
    }
}

/// What is done on a kernel.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Test binaries inside one VM
    Tests,
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
        && (args.part.is_none() && !args.core || args.part == Some(Part::Package))
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
        rows.push(Row::of(&lab, args.part, args.core)?);
        let last = number + 1 == args.kernel.len();
        if last && !args.core && args.part != Some(Part::Traffic) {
            let lab = lab.with_words("lockdown=confidentiality");
            rows.push(Row::of(&lab, Some(Part::Tests), true)?);
        }
    }
    let by = match accelerator {
        Some(Accelerator::Kvm) => "KVM",
        _ => "emulation",
    };
    println!("\nby {by}");
    println!(
        "{:<42} {:>6} {:>12} {:>12} {:>15}  {:<22} traffic",
        "kernel", "boot s", "millrace_xdp", "millrace_tc", "millrace_egress", "tests"
    );
    let mut sum = Tally::default();
    for row in rows {
        println!("{}", row.line());
        sum.absorb(row.tests.unwrap_or_default());
        sum.absorb(row.traffic.unwrap_or_default());
    }
    Ok(sum)
}

/// What a kernel had to say.
struct Row {
    kernel: String,
    /// Seconds.
    boot: f64,
    /// Instructions that the verifier looked at, by program.
    verified: Vec<(String, u32)>,
    /// Inside one VM.
    tests: Option<Tally>,
    /// Between two.
    traffic: Option<Tally>,
}

impl Row {
    /// All parts where `part` is none, `core` of them or the whole.
    fn of(lab: &Lab<'_>, part: Option<Part>, core: bool) -> Result<Self> {
        let mut row = Self {
            kernel: lab.kernel.release.clone(),
            boot: 0.0,
            verified: Vec::new(),
            tests: None,
            traffic: None,
        };
        if part != Some(Part::Traffic) {
            let mut machine = lab.boot("tests", &[], None)?;
            row.boot = machine.booted;
            if !lab.words.is_empty() {
                row.kernel = format!("{} [{}]", row.kernel, lockdown(&mut machine)?);
            }
            eprintln!("vm: {}: up after {:.1} s", row.kernel, row.boot);
            let results = suite::run(&mut machine, core)?;
            row.verified = results.verified;
            let mut tally = results.tally;
            if !core {
                tally.absorb(doctor::run(lab)?);
            }
            row.tests = Some(tally);
        }
        if part != Some(Part::Tests) {
            let (boot, tally) = traffic::run(lab, core)?;
            row.boot = row.boot.max(boot);
            row.traffic = Some(tally);
        }
        for tally in [&mut row.tests, &mut row.traffic].into_iter().flatten() {
            for failure in &mut tally.failures {
                *failure = format!("{}: {failure}", row.kernel);
            }
        }
        Ok(row)
    }

    fn line(&self) -> String {
        let verified = |program: &str| {
            let found = self.verified.iter().find(|(name, _)| name == program);
            found.map_or_else(|| "-".to_owned(), |(_, number)| number.to_string())
        };
        let line = |tally: &Option<Tally>| {
            let tally = tally.as_ref();
            tally.map_or_else(|| "-".to_owned(), Tally::line)
        };
        format!(
            "{:<42} {:>6.1} {:>12} {:>12} {:>15}  {:<22} {}",
            self.kernel,
            self.boot,
            verified("millrace_xdp"),
            verified("millrace_tc"),
            verified("millrace_egress"),
            line(&self.tests),
            line(&self.traffic),
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
