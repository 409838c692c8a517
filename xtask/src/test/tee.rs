//! A test command's output, for a person and for the sum.

use super::output::{Reader, Tally};
use anyhow::{Context as _, Result, bail};
use std::{
    io::{self, BufRead as _, BufReader, Write},
    process::{Command, Stdio},
    thread,
};

/// Runs a test command, passes its output on as it comes and reads the results from it.
///
/// What a killed test leaves running holds the pipe open, so its end says nothing: behind the command's last line
/// comes one of ours.
pub(super) fn tee(command: &mut Command, out: &mut dyn Write) -> Result<(bool, Tally)> {
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
