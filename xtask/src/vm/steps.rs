//! Shell scripts on one machine, each a test with a title.

use super::machine::Machine;
use crate::test::output::Tally;
use anyhow::Result;
use std::time::Duration;

/// For one script. Emulated, apt alone takes half a minute.
const PATIENCE: Duration = Duration::from_mins(5);

pub(super) struct Steps {
    machine: Machine,
    /// Of all titles.
    under: &'static str,
    /// Shell functions for all scripts.
    prelude: &'static str,
    /// What to read when a step fails.
    log: &'static str,
    pub(super) sum: Tally,
}

impl Steps {
    pub(super) fn on(
        machine: Machine,
        under: &'static str,
        prelude: &'static str,
        log: &'static str,
    ) -> Self {
        Self {
            machine,
            under,
            prelude,
            log,
            sum: Tally::default(),
        }
    }

    /// Whether a script ends well.
    pub(super) fn step(&mut self, title: &str, script: &str) -> bool {
        self.look(title, script, |_| Ok(()))
    }

    /// The same, with a look at what it said.
    pub(super) fn look(
        &mut self,
        title: &str,
        script: &str,
        check: impl FnOnce(&str) -> Result<()>,
    ) -> bool {
        let script = format!("{}{script}", self.prelude);
        let done = self.machine.run(&script, PATIENCE);
        let done = done.and_then(|said| check(&said));
        let word = if done.is_ok() { "ok" } else { "FAILED" };
        eprintln!("vm: {}: {title}: {word}", self.under);
        match done {
            Ok(()) => self.sum.passed += 1,
            Err(error) => {
                self.sum.fail(format!("{}: {title}", self.under));
                let log = self.machine.run(self.log, PATIENCE);
                eprintln!("{error:#}\n{}", log.unwrap_or_default());
                return false;
            }
        }
        true
    }
}
