//! Rates: two readings of the counters, some time apart. Nothing is read unless someone asks; who asks again soon is
//! measured from the reading before, who asks first waits a moment for a second one.

use std::{
    collections::HashMap,
    fs, io,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::abi::{BackendCount, FrontendCount, Reason};
use tokio::{sync::Mutex, task, time};

use super::read::Maps;
use crate::dataplane::{Counters, ReasonCounts};

/// Readings closer than this say little.
const SHORTEST: Duration = Duration::from_millis(250);
/// What a reading is measured from once it is as old.
const WINDOW: Duration = Duration::from_secs(1);
/// An older reading tells of another time.
const LONGEST: Duration = Duration::from_secs(10);
/// How long the first who asks waits.
const WAIT: Duration = Duration::from_millis(500);

/// Counters of a moment, by id.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    at: Instant,
    pub(super) frontends: Vec<FrontendCount>,
    pub(super) reasons: Vec<ReasonCounts>,
    pub(super) backends: Vec<BackendCount>,
    pub(super) links: HashMap<String, LinkCount>,
}

/// What the kernel counted on an interface, XDP's packets included.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct LinkCount {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) dropped: u64,
}

impl Sample {
    /// Ids below these bounds.
    pub(super) fn read(counters: &Counters, frontends: u32, backends: u32) -> io::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            frontends: counters.frontends(0..frontends)?,
            reasons: counters.reasons(0..frontends)?,
            backends: counters.backends(0..backends)?,
            links: link_counts(&fs::read_to_string("/proc/thread-self/net/dev")?),
        })
    }

    pub(super) fn frontend(&self, id: u32) -> FrontendCount {
        self.frontends.get(id as usize).copied().unwrap_or_default()
    }

    pub(super) fn backend(&self, id: u32) -> BackendCount {
        self.backends.get(id as usize).copied().unwrap_or_default()
    }

    pub(super) fn link(&self, name: &str) -> LinkCount {
        self.links.get(name).copied().unwrap_or_default()
    }

    /// Each reason that was met, with its count.
    pub(super) fn reasons(&self, id: u32) -> impl Iterator<Item = (Reason, u64)> + '_ {
        let counts = self.reasons.get(id as usize);
        Reason::ALL
            .into_iter()
            .filter_map(move |reason| Some((reason, *counts?.get(reason as usize)?)))
            .filter(|(_, count)| *count != 0)
    }

    pub(super) fn dropped(&self, id: u32) -> u64 {
        self.reasons(id)
            .filter(|(reason, _)| reason.kind() == "dropped")
            .map(|(_, count)| count)
            .sum()
    }
}

/// Two readings.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    before: Arc<Sample>,
    pub(super) now: Arc<Sample>,
}

impl Pair {
    /// Growth of a counter, per second. An id that was given again in between counts from 0.
    pub(super) fn rate(&self, counter: impl Fn(&Sample) -> u64) -> f64 {
        let seconds = (self.now.at - self.before.at).as_secs_f64();
        counter(&self.now).saturating_sub(counter(&self.before)) as f64 / seconds.max(1e-3)
    }
}

/// Keeps the reading that the next one is measured from.
#[derive(Debug)]
pub(super) struct Rates {
    maps: Arc<Maps>,
    before: Mutex<Option<Arc<Sample>>>,
}

impl Rates {
    pub(super) fn new(maps: Arc<Maps>) -> Self {
        Self {
            maps,
            before: Mutex::new(None),
        }
    }

    /// Ids below `frontends` and `backends`.
    pub(super) async fn pair(&self, frontends: u32, backends: u32) -> io::Result<Pair> {
        let mut kept = self.before.lock().await;
        let now = self.read(frontends, backends).await?;
        let age = |before: &Arc<Sample>| now.at.duration_since(before.at);
        match kept.take().filter(|before| age(before) <= LONGEST) {
            Some(before) if age(&before) >= SHORTEST => {
                let next = if age(&before) >= WINDOW {
                    &now
                } else {
                    &before
                };
                *kept = Some(Arc::clone(next));
                Ok(Pair { before, now })
            }
            recent => {
                let before = recent.unwrap_or(now);
                time::sleep(WAIT).await;
                *kept = Some(Arc::clone(&before));
                let now = self.read(frontends, backends).await?;
                Ok(Pair { before, now })
            }
        }
    }

    async fn read(&self, frontends: u32, backends: u32) -> io::Result<Arc<Sample>> {
        let maps = Arc::clone(&self.maps);
        let read = move || Sample::read(&maps.counters, frontends, backends);
        let sample = task::spawn_blocking(read).await??;
        Ok(Arc::new(sample))
    }
}

/// `/proc/net/dev`: of each interface bytes, packets, errors, drops …, received then sent.
pub(super) fn link_counts(text: &str) -> HashMap<String, LinkCount> {
    text.lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let numbers: Vec<u64> = numbers
                .split_ascii_whitespace()
                .map_while(|number| number.parse().ok())
                .collect();
            let count = LinkCount {
                received: *numbers.get(1)?,
                sent: *numbers.get(9)?,
                dropped: numbers.get(3)? + numbers.get(11)?,
            };
            Some((name.trim().to_owned(), count))
        })
        .collect()
}

#[cfg(test)]
impl Sample {
    pub(super) fn of(
        frontends: Vec<FrontendCount>,
        reasons: Vec<ReasonCounts>,
        backends: Vec<BackendCount>,
    ) -> Self {
        Self {
            at: Instant::now(),
            frontends,
            reasons,
            backends,
            links: HashMap::new(),
        }
    }
}

#[cfg(test)]
impl Pair {
    /// Nothing happened between its readings.
    pub(super) fn of(sample: Sample) -> Self {
        let now = Arc::new(sample);
        Self {
            before: Arc::clone(&now),
            now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: Instant, packets: u64) -> Arc<Sample> {
        let count = FrontendCount {
            packets,
            ..FrontendCount::default()
        };
        Arc::new(Sample {
            at,
            ..Sample::of(vec![count], vec![], vec![])
        })
    }

    #[test]
    fn rates_are_per_second_and_never_negative() {
        let start = Instant::now();
        let pair = |before, after| Pair {
            before: sample(start, before),
            now: sample(start + Duration::from_secs(2), after),
        };
        let rate = |pair: &Pair| pair.rate(|sample| sample.frontend(0).packets);
        assert!((rate(&pair(100, 500)) - 200.0).abs() < 1e-9);
        assert!(rate(&pair(500, 100)).abs() < 1e-9);
        assert!(pair(1, 2).rate(|sample| sample.frontend(7).packets).abs() < 1e-9);
    }

    #[test]
    fn interface_counts_are_found() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
  eth0: 100 11 0 2 0 0 0 0 200 22 0 3 0 0 0 0
    lo:   0  0 0 0 0 0 0 0   0  0 0 0 0 0 0 0
";
        let counts = link_counts(text);
        assert_eq!(counts.len(), 2);
        let wanted = LinkCount {
            received: 11,
            sent: 22,
            dropped: 5,
        };
        assert_eq!(counts["eth0"], wanted);
    }
}
