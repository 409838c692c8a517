//! What the verifier has to do: a budget for each program.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    is_root,
    kernel::{Kernel, PROGRAMS, SMALL},
    verified,
};

const BUDGET: &str = include_str!("../budget.txt");

/// Room above the recorded figure: another kernel counts a little differently.
const SLACK_PERCENT: u32 = 5;

fn budget() -> Result<BTreeMap<&'static str, [u32; 2]>> {
    let lines = BUDGET.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().context("a program")?;
            let mut number = || words.next().context("a number")?.parse().context(line);
            Ok((name, [number()?, number()?]))
        })
        .collect()
}

/// Every kernel has its own count and the same limit of a million; the table of `cargo xtask vm` shows the counts.
#[test]
fn the_verifier_accepts_all_programs() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut kernel = Kernel::maps("accepted", SMALL)?;
    for name in PROGRAMS {
        let verified = verified::instructions(&mut kernel, name)?;
        eprintln!("verified {name} {verified}");
    }
    Ok(())
}

#[test]
fn no_program_outgrows_its_budget() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let kernel = Kernel::load("budget", SMALL)?;
    let budget = budget()?;
    for (name, program) in kernel.ebpf.programs() {
        let info = program.info().or_else(|_| {
            // Not one of those that the harness loads.
            anyhow::bail!("{name} is not loaded")
        });
        let Ok(info) = info else { continue };
        let verified = info
            .verified_instruction_count()
            .context("kernel 5.16 or later")?;
        let translated = info.size_translated().context("translated size")?;
        eprintln!("{name} {verified} {translated}");
        let limit = budget
            .get(name)
            .with_context(|| format!("no budget for {name}"))?;
        for (what, is, limit) in [
            ("verified", verified, limit[0]),
            ("translated", translated, limit[1]),
        ] {
            ensure!(
                u64::from(is) * 100 <= u64::from(limit) * u64::from(100 + SLACK_PERCENT),
                "{name}: {is} {what}, where the budget is {limit}"
            );
        }
    }
    Ok(())
}
