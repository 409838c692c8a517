//! Active health checks: a pure state machine a backend, and a prober that feeds it.

mod prober;
mod tracker;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

pub use prober::{Assignment, Change, Connect, Prober, SPREAD, Target, Tcp};
pub use tracker::{Check, Tracker};

/// Which backends are down. What is not checked, or not known yet, is not down.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct View {
    down: HashMap<String, HashSet<SocketAddr>>,
}

impl View {
    pub fn is_down(&self, service: &str, backend: SocketAddr) -> bool {
        self.down
            .get(service)
            .is_some_and(|down| down.contains(&backend))
    }

    /// Whether anything became different.
    pub fn set(&mut self, service: &str, backend: SocketAddr, down: bool) -> bool {
        if down {
            let set = self.down.entry(service.to_owned()).or_default();
            return set.insert(backend);
        }
        let Some(set) = self.down.get_mut(service) else {
            return false;
        };
        let changed = set.remove(&backend);
        if set.is_empty() {
            self.down.remove(service);
        }
        changed
    }

    /// Forgets the backends of a service that are no longer checked.
    pub fn retain(&mut self, service: &str, checked: impl Fn(&SocketAddr) -> bool) {
        if let Some(down) = self.down.get_mut(service) {
            down.retain(checked);
            if down.is_empty() {
                self.down.remove(service);
            }
        }
    }
}
