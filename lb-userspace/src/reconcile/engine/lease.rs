//! The off switch, and the terms after which it falls by itself. `now` is in jiffies.

use std::time::Duration;

use lb_common::abi::Settings;

use super::Engine;
use crate::{
    dataplane::{ApplyError, Dataplane},
    desired,
    desired::kubernetes::Objects,
    lease::{Ended, Left},
    plan::Op,
    state::Bypass,
};

impl<D: Dataplane> Engine<D> {
    /// What holds for every packet, as it is to be.
    pub(super) fn settings(&self) -> Settings {
        let mut settings = desired::settings(
            &self.config,
            self.general.hash_key,
            self.objects().and_then(Objects::keys),
            self.facts.uplink_mtu(),
            self.general.hz,
            self.general.bypass,
        );
        self.general.lease.write(&mut settings);
        settings
    }

    /// Why everything passes.
    pub fn bypass(&self, now: u64) -> Option<Bypass> {
        if self.general.bypass {
            return Some(Bypass::Command);
        }
        self.general.lease.passes(now)
    }

    /// Whether there is a trial that nobody has confirmed, over or not.
    pub const fn on_trial(&self) -> bool {
        self.general.lease.on_trial()
    }

    /// What is left of a trial that is to be confirmed.
    pub fn trial_left(&self, now: u64) -> Option<Duration> {
        self.general.lease.trial_left(now)
    }

    /// The last sign of life.
    pub const fn heartbeat(&self) -> u64 {
        self.general.lease.heartbeat()
    }

    /// Lets everything pass, or takes over again, after a trial that is over, too. True if that is a change.
    pub fn set_bypass(&mut self, on: bool, now: u64) -> bool {
        let forgiven = !on && self.general.lease.forgive(now);
        let changed = self.general.bypass != on;
        self.general.bypass = on;
        self.general.dirty |= changed;
        changed || forgiven
    }

    /// Ends the trial well; false if there is none.
    ///
    /// # Errors
    /// It is over.
    pub fn confirm(&mut self, now: u64) -> Result<bool, Ended> {
        self.general.lease.confirm(now)
    }

    /// When this agent's trial ends; see [`Lease::trial`](crate::lease::Lease::trial).
    pub fn trial(&self, now: u64, term: Option<Duration>, left: Option<Left>) -> Option<u64> {
        self.general.lease.trial(now, term, left)
    }

    /// From now on this agent's own term counts, and the end of its trial if it has one.
    ///
    /// # Errors
    /// As [`Self::beat`].
    pub fn begin(&mut self, now: u64, trial: Option<u64>) -> Result<(), ApplyError> {
        self.general.lease.begin(trial);
        self.beat(now)
    }

    /// Gives the packet path a sign of life.
    ///
    /// # Errors
    /// It did not get there; the term that it has runs on.
    pub fn beat(&mut self, now: u64) -> Result<(), ApplyError> {
        let after = self.config.without_agent;
        self.general.lease.beat(now, after);
        let settings = self.settings();
        self.dataplane.apply(&[Op::Lease(settings)])
    }
}
