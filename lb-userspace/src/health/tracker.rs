//! Pure: results of checks in, up or down out.

use std::time::Duration;

/// How a backend is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Check {
    /// From the begin of one check to that of the next.
    pub interval: Duration,
    /// A check that takes longer fails.
    pub timeout: Duration,
    /// Successes in a row that make a backend up, failures in a row that make it down.
    pub rise: u32,
    pub fall: u32,
}

/// What is known of one backend. It starts as up, so that an agent's start empties no table; the very first result
/// counts alone, so that a backend that was dead all along gets no flows for long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tracker {
    up: bool,
    /// Results in a row that speak against `up`; None before the first result.
    against: Option<u32>,
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            up: true,
            against: None,
        }
    }
}

impl Tracker {
    /// As found in a state before: the first result still counts alone.
    pub fn restored(up: bool) -> Self {
        Self { up, against: None }
    }

    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Takes one result in; true if the backend went up or down by it.
    pub fn record(&mut self, check: &Check, success: bool) -> bool {
        if success == self.up {
            self.against = Some(0);
            return false;
        }
        let needed = if self.up { check.fall } else { check.rise };
        let against = self.against.map_or(needed, |count| count + 1);
        if against < needed {
            self.against = Some(against);
            return false;
        }
        *self = Self {
            up: success,
            against: Some(0),
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECK: Check = Check {
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
    };

    /// `+` is a success, `-` a failure; gives the states after each.
    fn states(mut tracker: Tracker, results: &str) -> String {
        let mut states = String::new();
        for result in results.chars() {
            let before = tracker.is_up();
            let changed = tracker.record(&CHECK, result == '+');
            assert_eq!(changed, before != tracker.is_up());
            states.push(if tracker.is_up() { 'U' } else { 'D' });
        }
        states
    }

    #[test]
    fn fall_and_rise_are_counted_in_a_row() {
        assert_eq!(states(Tracker::default(), "+--+---"), "UUUUUUD");
        assert_eq!(states(Tracker::default(), "+---+-++"), "UUUDDDDU");
    }

    #[test]
    fn the_first_result_counts_alone() {
        assert_eq!(states(Tracker::default(), "-"), "D");
        assert_eq!(states(Tracker::default(), "-+-++"), "DDDDU");
        assert_eq!(states(Tracker::restored(false), "+"), "U");
        assert_eq!(states(Tracker::restored(false), "-++"), "DDU");
        assert_eq!(states(Tracker::restored(true), "+--"), "UUU");
    }
}
