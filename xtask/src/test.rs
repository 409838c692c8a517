//! `cargo xtask test`: every check and test, cheap ones first, and one line that sums them up.
//!
//! In: the workspace; the root tests are the files of `tests/tests/`, whatever they are called. Out: the tests' own
//! output (a step's in one piece where several run side by side), a table of steps, the skipped and failed tests, and as
//! the last line `N passed, M failed`. A check that is no test (formatting, clippy, …) shows only when it fails, as one
//! failure.

pub(crate) mod on_cluster;
pub(crate) mod output;
mod steps;
mod tee;
mod tolerated;

use crate::{Outcome, cargo, contract, setup};
use anyhow::{Result, bail};
use output::Tally;
use std::{
    env,
    io::{self, Write as _},
    iter,
    process::ExitCode,
    ptr,
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};
use steps::{Lane, Scope, Step};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Below 3 minutes: formatting, clippy, links, unit and property tests, packet cases with smaller counts
    #[arg(long)]
    quick: bool,
    /// Run only tests whose name contains this, or the test file of this name; no other checks
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    if args.quick || args.filter.is_some() {
        setup::ensure()?;
    } else {
        setup::ensure_for_tests()?;
    }
    let root = cargo::root();
    let scope = Scope {
        quick: args.quick,
        filter: args.filter.as_deref(),
    };
    let steps = steps::plan(&root, &scope)?;
    let done = carry_out(&steps)?;
    if let Some(filter) = &args.filter
        && done.iter().all(|one| one.success && !one.tally.ran())
    {
        bail!(
            "no test matches `{filter}`; FILTER is a part of a test's name, or a file of tests/tests/ without `.rs`"
        );
    }
    let results = done.iter().flat_map(|one| one.tally.results.clone());
    contract::results::add(results.collect())?;
    let tolerated = if env::var_os("CI").is_some_and(|ci| ci == "true") {
        Some(tolerated::read(&root)?)
    } else {
        None
    };
    Ok(report(&done, tolerated.as_deref()))
}

struct Done<'a> {
    step: &'a Step,
    seconds: f64,
    success: bool,
    tally: Tally,
}

/// Runs all steps; results come lane by lane. A lane at its end takes from that of the namespaces, which has the most:
/// tests there have names and folders of their own, so that they can run side by side.
fn carry_out(steps: &[Step]) -> Result<Vec<Done<'_>>> {
    let of = |lane: Lane| steps.iter().filter(move |step| step.lane == lane);
    let mut done = of(Lane::Workspace).map(live).collect::<Result<Vec<_>>>()?;
    let shared = Mutex::new(of(Lane::Namespaces));
    let take = || shared.lock().unwrap_or_else(PoisonError::into_inner).next();
    let wanted = |lane: &Lane| of(*lane).next().is_some();
    let lanes: Vec<_> = Lane::SIDE_BY_SIDE.into_iter().filter(wanted).collect();
    let run: fn(&Step) -> Result<Done<'_>> = if lanes.len() < 2 { live } else { whole };
    let lane = |lane: Lane| -> Result<Vec<_>> {
        let own = of(lane).filter(|step| step.lane != Lane::Namespaces);
        own.chain(iter::from_fn(take)).map(run).collect()
    };
    let lane = &lane;
    let lanes = thread::scope(|scope| {
        let lanes: Vec<_> = lanes
            .into_iter()
            .map(|one| scope.spawn(move || lane(one)))
            .collect();
        lanes
            .into_iter()
            .map(|lane| -> Result<Vec<_>> {
                let Ok(done) = lane.join() else {
                    bail!("a thread that runs steps ended before them");
                };
                done
            })
            .collect::<Result<Vec<_>>>()
    })?;
    done.extend(lanes.into_iter().flatten());
    let place = |one: &Done<'_>| steps.iter().position(|step| ptr::eq(step, one.step));
    done.sort_by_key(|one| (one.step.lane, place(one)));
    Ok(done)
}

/// Shows the output as it comes.
fn live(step: &Step) -> Result<Done<'_>> {
    eprintln!("\n== {}", step.name);
    run_step(step, &mut io::stdout().lock())
}

/// Shows the output in one piece when the step has ended: others run beside it.
fn whole(step: &Step) -> Result<Done<'_>> {
    eprintln!("\n== {} begins", step.name);
    let mut output = Vec::new();
    let done = run_step(step, &mut output);
    let mut out = io::stdout().lock();
    writeln!(out, "\n== {} has ended", step.name)?;
    out.write_all(&output)?;
    out.flush()?;
    done
}

fn run_step<'a>(step: &'a Step, out: &mut dyn io::Write) -> Result<Done<'a>> {
    let start = Instant::now();
    let (success, tally) = (step.run)(out)?;
    Ok(Done {
        step,
        seconds: start.elapsed().as_secs_f64(),
        success,
        tally,
    })
}

/// Prints what there is to say and decides. `tolerated` is the list of needs that may be missing; without it (not CI)
/// any may.
#[expect(clippy::print_stdout, reason = "the results are what was asked for")]
fn report(done: &[Done<'_>], tolerated: Option<&[String]>) -> ExitCode {
    println!();
    for Done {
        step,
        seconds,
        success,
        tally,
    } in done
    {
        let result = match (success, tally.ran()) {
            (true, false) => "ok".to_owned(),
            (false, false) => "FAILED".to_owned(),
            (_, true) => tally.line(),
        };
        println!("{:<28} {seconds:>7.1} s  {result}", step.name);
    }
    let mut sum = Tally::default();
    for one in done {
        for skip in &one.tally.skipped {
            println!("skipped: {} ({}: {})", skip.need, one.step.name, skip.test);
            if tolerated.is_some_and(|list| !list.contains(&skip.need)) {
                println!("FAILED: this skip is not on the list {}", tolerated::FILE);
                sum.failed += 1;
                sum.passed = sum.passed.saturating_sub(1);
            }
        }
        for test in &one.tally.failures {
            println!("FAILED: {}: {test}", one.step.name);
        }
        // A step that failed without a failed test did not get to its tests, or is none.
        if !one.success && one.tally.failed == 0 {
            println!("FAILED: {}", one.step.name);
            sum.failed += 1;
        }
        sum.passed += one.tally.passed;
        sum.failed += one.tally.failed;
        sum.skipped.extend(one.tally.skipped.iter().cloned());
    }
    println!("{}", sum.line());
    if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
