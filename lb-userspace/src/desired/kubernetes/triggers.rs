//! A13.1: since when what changes was to be so.

use std::{collections::HashMap, time::Duration};

use crate::config::ServiceName;

/// Changes of endpoints that are not programmed yet, by Service: when each was triggered, in milliseconds since the Unix
/// epoch.
#[derive(Default, Debug)]
pub(super) struct Triggers(HashMap<ServiceName, Vec<i64>>);

impl Triggers {
    pub(super) fn add(&mut self, service: &ServiceName, triggered_ms: i64) {
        self.0
            .entry(service.clone())
            .or_default()
            .push(triggered_ms);
    }

    pub(super) fn take(&mut self, service: &ServiceName) -> Vec<i64> {
        self.0.remove(service).unwrap_or_default()
    }
}

/// How long it took from a trigger until now. Clocks of hosts may differ: never less than nothing.
pub fn since(triggered_ms: i64, now_ms: i64) -> Duration {
    let took = now_ms.saturating_sub(triggered_ms);
    Duration::from_millis(u64::try_from(took).unwrap_or(0))
}
