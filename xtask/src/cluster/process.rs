//! Programs that go on when the verb has ended, and are known again later: by process id and start time.

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A program that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) id: i32,
    /// Program and arguments, to start it again.
    line: Vec<String>,
    /// In clock ticks since boot: with the id it names one process of this boot.
    since: u64,
}

impl Process {
    /// Starts a program in a session of its own, so that a terminal's end is not its end; output goes to `log`.
    /// `command` is the whole line: it is executed in place by `setsid`, so its process id is known.
    pub(super) fn start<S: AsRef<OsStr>>(
        name: &str,
        command: impl IntoIterator<Item = S>,
        log: &Path,
    ) -> Result<Self> {
        let line: Option<Vec<_>> = command
            .into_iter()
            .map(|word| word.as_ref().to_str().map(str::to_owned))
            .collect();
        Self::run(name, line.context("a path that is no text")?, log)
    }

    /// The same program once more, after its end.
    pub(super) fn again(&self, log: &Path) -> Result<Self> {
        Self::run(&self.name, self.line.clone(), log)
    }

    fn run(name: &str, line: Vec<String>, log: &Path) -> Result<Self> {
        let output = OpenOptions::new().create(true).append(true).open(log);
        let output = output.with_context(|| log.display().to_string())?;
        let child = Command::new("setsid")
            .args(&line)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("setsid: {name}"))?;
        let id = i32::try_from(child.id()).context("process id")?;
        // It cannot be gone before its parent asked for its status.
        let (_, since) = stat(id).with_context(|| format!("{name} ({id})"))?;
        Ok(Self {
            name: name.to_owned(),
            id,
            line,
            since,
        })
    }

    pub(super) fn alive(&self) -> bool {
        stat(self.id)
            .is_some_and(|(state, since)| since == self.since && !matches!(state, 'Z' | 'X'))
    }

    /// Its only child, in this machine's numbers: the process that `unshare` and `nsenter` fork into a PID namespace.
    pub(super) fn child(&self) -> Result<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.id);
        let children = fs::read_to_string(&path).with_context(|| path.clone())?;
        let first = children.split_whitespace().next();
        first
            .and_then(|id| id.parse().ok())
            .with_context(|| format!("{} has no child", self.name))
    }

    /// SIGKILL, and waits until it is gone. Nothing happens to another process that has the id now.
    pub(super) fn kill(&self) -> Result<()> {
        if self.alive()
            && let Some(id) = Pid::from_raw(self.id)
        {
            kill_process(id, Signal::KILL).with_context(|| format!("kill {}", self.name))?;
        }
        until(Duration::from_secs(10), || {
            ensure!(!self.alive(), "{} ({}) does not end", self.name, self.id);
            Ok(())
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"name": self.name, "pid": self.id, "line": self.line, "since": self.since})
    }

    pub(super) fn from_json(value: &Value) -> Option<Self> {
        Some(Self {
            name: value["name"].as_str()?.to_owned(),
            id: i32::try_from(value["pid"].as_i64()?).ok()?,
            line: value["line"]
                .as_array()?
                .iter()
                .map(|word| Some(word.as_str()?.to_owned()))
                .collect::<Option<_>>()?,
            since: value["since"].as_u64()?,
        })
    }
}

/// Tries until it works; the last error is the answer when the time is over.
pub(super) fn until<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {} s", patience.as_secs())));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
            done => return done,
        }
    }
}

/// State and start time of a process.
fn stat(id: i32) -> Option<(char, u64)> {
    parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

/// proc(5): the second field is the name in parentheses, which may hold anything; the third is the state, the 22nd the
/// start time.
fn parse(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1000 1 0";
        assert_eq!(parse(line), Some(('S', 4711)));
        assert_eq!(parse("7 (a"), None);
    }

    #[test]
    fn another_process_of_that_id_is_not_the_one() -> Result<()> {
        let me = i32::try_from(std::process::id())?;
        let (_, since) = stat(me).context("stat")?;
        let mut process = Process {
            name: "me".into(),
            id: me,
            line: vec!["true".into()],
            since,
        };
        assert!(process.alive());
        assert_eq!(
            Process::from_json(&process.to_json()),
            Some(process.clone())
        );
        process.since += 1;
        assert!(!process.alive());
        // So this is no end of the test.
        process.kill()
    }
}
