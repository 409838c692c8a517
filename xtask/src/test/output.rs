//! What libtest prints, read line by line: counts, names of failed tests, and `skipped: NEED` lines.
//!
//! libtest knows no test that skips itself, so it counts one as passed; here it is taken out of the passed ones. The
//! lines come from `--show-output`, under the heading of the test that wrote them.

use crate::contract::results::Results;
use anyhow::Result;

/// Sum of one or more test binaries.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that ran and passed; those that skipped themselves are not among them.
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// One a test, in order of appearance.
    pub(crate) skipped: Vec<Skip>,
    pub(crate) failures: Vec<String>,
    /// How each test ended that libtest named.
    pub(crate) results: Results,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip {
    pub(crate) test: String,
    pub(crate) need: String,
}

impl Tally {
    /// Whether any test ran.
    pub(crate) fn ran(&self) -> bool {
        self.passed + self.failed + self.skipped.len() > 0
    }

    /// Adds another's results.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.failures.extend(other.failures);
        self.results.extend(other.results);
    }

    /// Adds a test that failed.
    pub(crate) fn fail(&mut self, name: impl Into<String>) {
        self.failed += 1;
        self.failures.push(name.into());
    }

    /// The same for a part that came to no end.
    pub(crate) fn note(&mut self, part: &str, done: Result<()>) {
        if let Err(error) = done {
            eprintln!("{part}: {error:#}");
            self.fail(part);
        }
    }

    /// `N passed, M failed`, and `, K skipped` if any.
    pub(crate) fn line(&self) -> String {
        let line = format!("{} passed, {} failed", self.passed, self.failed);
        match self.skipped.len() {
            0 => line,
            skipped => format!("{line}, {skipped} skipped"),
        }
    }
}

/// Reads the output of one cargo command, which may run several test binaries.
#[derive(Default)]
pub(crate) struct Reader {
    tally: Tally,
    /// The test whose captured output the lines belong to.
    test: Option<String>,
    /// Skips of the binary that runs now.
    skips: Vec<Skip>,
}

impl Reader {
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some(heading) = line
            .strip_prefix("---- ")
            .and_then(|l| l.strip_suffix(" ----"))
        {
            let name = heading
                .strip_suffix(" stdout")
                .or_else(|| heading.strip_suffix(" stderr"));
            self.test = name.map(str::to_owned);
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.binary_ended(result);
        } else if let Some(name) = failed_test(line) {
            self.tally.failures.push(name.to_owned());
            self.tally
                .results
                .insert(name.to_owned(), "FAILED".to_owned());
        } else if let Some(name) = passed_test(line) {
            self.tally.results.insert(name.to_owned(), "ok".to_owned());
        } else if let Some(need) = skipped(line) {
            let test = self.test.clone().unwrap_or_else(|| "?".to_owned());
            if test == "?" || self.skips.iter().all(|skip| skip.test != test) {
                self.skips.push(Skip {
                    test,
                    need: need.to_owned(),
                });
            }
        }
    }

    pub(crate) fn finish(self) -> Tally {
        self.tally
    }

    fn binary_ended(&mut self, result: &str) {
        let count = |word: &str| {
            result
                .split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<usize>().ok())
                .unwrap_or(0)
        };
        // A test may say that it lacks something and fail all the same.
        let failures = &self.tally.failures;
        self.skips.retain(|skip| !failures.contains(&skip.test));
        for skip in &self.skips {
            let result = "skipped".to_owned();
            self.tally.results.insert(skip.test.clone(), result);
        }
        self.tally.passed += count("passed").saturating_sub(self.skips.len());
        self.tally.failed += count("failed");
        self.tally.skipped.append(&mut self.skips);
        self.test = None;
    }
}

/// `test some::name ... FAILED`
fn failed_test(line: &str) -> Option<&str> {
    let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
    Some(name.strip_suffix(" - should panic").unwrap_or(name))
}

/// `test some::name ... ok`
fn passed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... ok")
}

/// A line of its own, or what a test wrote past the capture behind its own name.
fn skipped(line: &str) -> Option<&str> {
    let text = match line.split_once(" ... ") {
        Some((head, tail)) if head.starts_with("test ") => tail,
        _ => line,
    };
    text.strip_prefix("skipped: ").map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Tally {
        let mut reader = Reader::default();
        for line in text.lines() {
            reader.line(line);
        }
        reader.finish()
    }

    #[test]
    fn counts_of_several_binaries_are_summed() {
        let tally = read(
            "running 2 tests\ntest a ... ok\ntest b ... ok\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
             test result: ok. 40 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 1.20s\n",
        );
        assert_eq!((tally.passed, tally.failed), (42, 0));
        assert_eq!(tally.line(), "42 passed, 0 failed");
    }

    #[test]
    fn a_test_that_skipped_itself_has_not_passed() {
        let tally = read(
            "test veth ... ok\n\nsuccesses:\n\n---- veth stdout ----\nskipped: root\nskipped: root\n\n\
             ---- other stdout ----\nhello\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!(tally.passed, 1);
        assert_eq!(
            tally.skipped,
            [Skip {
                test: "veth".into(),
                need: "root".into()
            }]
        );
        assert_eq!(tally.line(), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn failed_tests_are_named_and_their_skips_do_not_count() {
        let tally = read(
            "test x::y ... FAILED\n---- x::y stdout ----\nskipped: kernel 5.15\n\n\
             test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!((tally.passed, tally.failed), (3, 1));
        assert_eq!(tally.failures, ["x::y"]);
        assert_eq!(tally.skipped, []);
    }

    #[test]
    fn a_skip_past_the_capture_is_seen() {
        let tally = read(
            "test a ... skipped: root\nok\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!((tally.passed, tally.skipped.len()), (0, 1));
    }

    #[test]
    fn same_test_name_in_two_binaries_skips_twice() {
        let one = "---- a stdout ----\nskipped: root\n\
                   test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(read(&format!("{one}{one}")).skipped.len(), 2);
    }
}
