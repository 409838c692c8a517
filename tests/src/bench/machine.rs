//! Where and when figures were taken.

use std::{fs, io::Write as _, process::Command};

use anyhow::Result;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::netns;

/// Processor, kernel and date in one line.
pub(super) fn describe() -> Result<String> {
    let processor = fs::read_to_string("/proc/cpuinfo")?
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor".to_owned(), |(_, name)| name.to_owned());
    let cpus = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let date = netns::run(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    Ok(format!(
        "{processor} × {cpus}, Linux {}, {}",
        kernel.trim(),
        date.trim()
    ))
}

/// Keeps this thread on one processor.
pub(super) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// The result, to stdout.
pub(super) fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}
