//! Where and when figures were taken.

use std::{fs, io::Write as _, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustix::{
    process::setpriority_process,
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};
use serde::Serialize;

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

/// Puts this thread before others, those of the kernel included that would work off what it leaves behind.
pub(super) fn go_first() -> Result<()> {
    // Of the thread alone, as Linux has it.
    Ok(setpriority_process(None, -20)?)
}

/// The result, to stdout.
pub(super) fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

/// Figures as JSON, or as their table.
pub(super) fn show<T: Serialize>(
    figures: &T,
    json: bool,
    table: impl Fn(&T) -> String,
) -> Result<()> {
    if json {
        print(&serde_json::to_string_pretty(figures)?)
    } else {
        print(&table(figures))
    }
}

/// What this thread has had of processors so far: what others take is no part of it.
pub(super) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Memory of this process that no file backs and that is resident, in KiB.
pub(super) fn anonymous_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number.context("/proc/self/status: RssAnon")?.parse()?)
}

/// What the kernel's own thread for work that interrupts leave has had of processor `cpu`.
pub(super) fn softirq_time(cpu: usize) -> Result<Duration> {
    let name = format!("ksoftirqd/{cpu}");
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if comm.trim() == name {
            // Time on the processor in nanoseconds, then time waiting for it (Documentation/scheduler/sched-stats.rst).
            let stat = fs::read_to_string(path.join("schedstat"))?;
            let time = stat.split(' ').next().context("schedstat")?.parse()?;
            return Ok(Duration::from_nanos(time));
        }
    }
    bail!("no process {name}")
}
