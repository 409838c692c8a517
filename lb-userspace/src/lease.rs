//! For how long the packet path goes on by itself: until the agent has been silent for too long, or a trial has ended that
//! nobody confirmed. Time is in jiffies, all 64 bits; the program compares (`lb_common::abi::Settings::passes_all`), so it
//! holds when the agent is gone.

use std::time::Duration;

use lb_common::abi::{Settings, setting_flag};
use serde::{Deserialize, Serialize};

use crate::state::Bypass;

/// The term, as the maps hold it after [`Lease::write`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    hz: u32,
    /// When an unconfirmed trial ends.
    trial: Option<u64>,
    /// Last sign of life.
    heartbeat: u64,
    /// 0: never.
    expires: u64,
}

/// What an agent on trial leaves to the next one if it does not end well itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Left {
    /// In jiffies.
    Ends(u64),
    /// Confirmed, or forgiven.
    WentWell,
}

/// A trial that ended before it was confirmed; how long ago.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended(pub Duration);

impl Lease {
    /// What the agent before has left in the maps.
    pub const fn adopt(settings: &Settings, hz: u32) -> Self {
        Self {
            hz,
            trial: match settings.flags & setting_flag::TRIAL {
                0 => None,
                _ => Some(settings.expires),
            },
            heartbeat: settings.heartbeat,
            expires: settings.expires,
        }
    }

    /// When the trial of an agent ends that begins now: after `term`, if it has one. `left`, by an agent that did not end
    /// well, counts in its place: no crash puts the end off, and what went well need not go well again. Maps without a
    /// term were told by hand that they are to go on: a trial begins anew.
    pub fn trial(&self, now: u64, term: Option<Duration>, left: Option<Left>) -> Option<u64> {
        let term = term?;
        match left {
            Some(Left::WentWell) => None,
            Some(Left::Ends(end)) if self.expires != 0 => Some(end),
            _ => Some(self.after(now, term)),
        }
    }

    /// An agent begins: with a trial that ends then, or none.
    pub const fn begin(&mut self, trial: Option<u64>) {
        self.trial = trial;
    }

    /// A sign of life; without another one everything passes `after` from now.
    pub fn beat(&mut self, now: u64, after: Option<Duration>) {
        let silent = after.map(|term| self.after(now, term));
        self.heartbeat = now;
        self.expires = silent.into_iter().chain(self.trial).min().unwrap_or(0);
    }

    /// Ends the trial well. False if there is none.
    ///
    /// # Errors
    /// It is over: everything passes already.
    pub fn confirm(&mut self, now: u64) -> Result<bool, Ended> {
        let Some(end) = self.trial else {
            return Ok(false);
        };
        if now >= end {
            return Err(Ended(self.time(now - end)));
        }
        self.trial = None;
        Ok(true)
    }

    /// Forgets a trial that is over, so that the next [`Self::beat`] takes over again. False if there is none.
    pub fn forgive(&mut self, now: u64) -> bool {
        let over = self.trial.is_some_and(|end| now >= end);
        if over {
            self.trial = None;
        }
        over
    }

    /// Why everything passes at `now`, as far as it is a matter of time.
    pub fn passes(&self, now: u64) -> Option<Bypass> {
        if self.expires == 0 || now < self.expires {
            return None;
        }
        let trial = self.trial.is_some_and(|end| end <= self.expires);
        Some(if trial {
            Bypass::Unconfirmed
        } else {
            Bypass::Silent
        })
    }

    /// Whether there is a trial that nobody has confirmed, over or not.
    pub const fn on_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// What is left of an unconfirmed trial.
    pub fn trial_left(&self, now: u64) -> Option<Duration> {
        let left = self.trial?.checked_sub(now)?;
        (left > 0).then(|| self.time(left))
    }

    /// Since the last sign of life; none if nobody ever gave one.
    pub fn silence(&self, now: u64) -> Option<Duration> {
        (self.heartbeat != 0).then(|| self.time(now.saturating_sub(self.heartbeat)))
    }

    /// The last sign of life, in jiffies.
    pub const fn heartbeat(&self) -> u64 {
        self.heartbeat
    }

    /// Puts the term among the settings.
    pub fn write(&self, settings: &mut Settings) {
        settings.heartbeat = self.heartbeat;
        settings.expires = self.expires;
        settings.flags &= !setting_flag::TRIAL;
        if self.trial.is_some_and(|end| end == self.expires) {
            settings.flags |= setting_flag::TRIAL;
        }
    }

    /// Never 0, which would mean "never".
    fn after(&self, now: u64, term: Duration) -> u64 {
        let ticks = term.as_millis() * u128::from(self.hz) / 1000;
        now.saturating_add(ticks as u64).max(1)
    }

    fn time(&self, jiffies: u64) -> Duration {
        Duration::from_millis(jiffies * 1000 / u64::from(self.hz.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u32 = 250;
    const AFTER: Option<Duration> = Some(Duration::from_mins(1));

    fn new() -> Lease {
        Lease::adopt(&Settings::default(), HZ)
    }

    fn settings(lease: &Lease) -> Settings {
        let mut settings = Settings::default();
        lease.write(&mut settings);
        settings
    }

    #[test]
    fn without_a_term_nothing_ever_passes() {
        let mut lease = new();
        lease.beat(1000, None);
        assert_eq!(settings(&lease).expires, 0);
        assert_eq!(lease.passes(u64::MAX), None);
        assert_eq!(lease.silence(1000 + 250), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_silent_agent_loses_the_term_and_a_new_one_takes_it_up() {
        let mut lease = new();
        lease.beat(1000, AFTER);
        let end = 1000 + 60 * 250;
        assert_eq!(settings(&lease).expires, end);
        assert_eq!(lease.passes(end - 1), None);
        assert_eq!(lease.passes(end), Some(Bypass::Silent));
        let mut next = Lease::adopt(&settings(&lease), HZ);
        assert_eq!(next.passes(end + 5), Some(Bypass::Silent));
        next.begin(None);
        next.beat(end + 5, AFTER);
        assert_eq!(next.passes(end + 5), None);
    }

    #[test]
    fn a_trial_ends_unless_it_is_confirmed_in_time() {
        let mut lease = new();
        lease.begin(lease.trial(1000, Some(Duration::from_mins(2)), None));
        for now in [1000, 2000, 40_000] {
            lease.beat(now, None);
        }
        let end = 1000 + 120 * 250;
        // Signs of life do not put the end off.
        assert_eq!((lease.expires, lease.trial), (end, Some(end)));
        assert_eq!(settings(&lease).flags, setting_flag::TRIAL);
        assert_eq!(lease.trial_left(end - 250), Some(Duration::from_secs(1)));
        assert_eq!(lease.passes(end), Some(Bypass::Unconfirmed));
        assert_eq!(lease.confirm(end + 250), Err(Ended(Duration::from_secs(1))));
        // As those see it who read the maps alone.
        let left = Lease::adopt(&settings(&lease), HZ);
        assert_eq!(left.passes(end), Some(Bypass::Unconfirmed));

        assert!(!lease.forgive(end - 1) && lease.forgive(end));
        lease.beat(end, None);
        assert_eq!(settings(&lease).expires, 0);

        lease.begin(lease.trial(end, Some(Duration::from_secs(1)), None));
        assert_eq!(lease.confirm(end + 249), Ok(true));
        assert_eq!(lease.confirm(end + 250), Ok(false));
        lease.beat(end + 250, AFTER);
        assert_eq!(lease.passes(end + 1000), None);
    }

    #[test]
    fn a_crash_does_not_put_the_end_of_a_trial_off() {
        let term = Some(Duration::from_mins(2));
        let end = 1000 + 120 * 250;
        let mut lease = new();
        lease.begin(lease.trial(1000, term, None));
        lease.beat(1000, AFTER);
        // The maps hold the other term, which is the earlier one.
        let mut next = Lease::adopt(&settings(&lease), HZ);
        let left = Some(Left::Ends(end));
        assert_eq!(next.trial(2000, term, left), Some(end));
        next.begin(next.trial(end + 1, term, left));
        next.beat(end + 1, None);
        assert_eq!(next.passes(end + 1), Some(Bypass::Unconfirmed));

        assert_eq!(next.trial(2000, None, left), None);
        assert_eq!(next.trial(2000, term, Some(Left::WentWell)), None);
        assert_eq!(new().trial(1000, term, Some(Left::Ends(7))), Some(end));
    }

    #[test]
    fn the_earlier_of_two_terms_counts() {
        let mut lease = new();
        lease.begin(lease.trial(0, Some(Duration::from_mins(2)), None));
        lease.beat(0, AFTER);
        assert_eq!(lease.passes(60 * 250), Some(Bypass::Silent));
        assert_eq!(settings(&lease).flags, 0);
        lease.beat(100 * 250, AFTER);
        assert_eq!(lease.passes(120 * 250), Some(Bypass::Unconfirmed));
    }
}
