//! One task that checks all backends: a heap of what is due when, and a bounded number of connections under way.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{Check, Tracker};

/// First checks are spread over this long, or over the interval if that is shorter.
pub const SPREAD: Duration = Duration::from_secs(1);

/// The checks of one service, in place of those before; none: it is forgotten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    pub service: Arc<str>,
    pub targets: Vec<Target>,
}

/// A backend to check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// What [`super::View`] knows it by.
    pub backend: SocketAddr,
    /// Where the check connects to.
    pub connect: SocketAddr,
    pub check: Check,
    /// What was known of it before, if it is new to the prober.
    pub up: bool,
}

/// A backend that went up or down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub service: Arc<str>,
    pub backend: SocketAddr,
    pub up: bool,
}

/// Connects to an address; whether that worked within the time.
pub trait Connect {
    fn connect(&self, to: SocketAddr, patience: Duration) -> BoxFuture<'static, bool>;
}

/// A TCP handshake, ended by RST: it leaves nothing behind on either side.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

impl Connect for Tcp {
    fn connect(&self, to: SocketAddr, patience: Duration) -> BoxFuture<'static, bool> {
        Box::pin(async move {
            match timeout(patience, TcpStream::connect(to)).await {
                Ok(Ok(stream)) => {
                    // Without it the connection ends by FIN, which is no reason to call the backend down.
                    stream.set_zero_linger().ok();
                    true
                }
                _ => false,
            }
        })
    }
}

/// The task's state.
pub struct Prober<C> {
    connect: C,
    /// Connections under way at most.
    bound: usize,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    by_service: HashMap<Arc<str>, HashMap<SocketAddr, usize>>,
    due: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    probes: FuturesUnordered<BoxFuture<'static, (usize, u64, bool)>>,
    /// Tells an index's uses apart.
    uses: u64,
}

struct Entry {
    service: Arc<str>,
    target: Target,
    tracker: Tracker,
    used: u64,
    next: Instant,
}

impl<C> fmt::Debug for Prober<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prober")
            .field("services", &self.by_service.len())
            .field("under_way", &self.probes.len())
            .finish_non_exhaustive()
    }
}

impl<C: Connect> Prober<C> {
    pub fn new(connect: C, bound: usize) -> Self {
        Self {
            connect,
            bound,
            entries: Vec::new(),
            free: Vec::new(),
            by_service: HashMap::new(),
            due: BinaryHeap::new(),
            probes: FuturesUnordered::new(),
            uses: 0,
        }
    }

    /// Checks what is assigned until either channel closes. Each assignment of a new target is answered by a change
    /// only if the target is not as `up` said.
    pub async fn run(
        mut self,
        mut assignments: mpsc::Receiver<Vec<Assignment>>,
        changes: mpsc::Sender<Vec<Change>>,
    ) {
        loop {
            self.start_due(Instant::now());
            let next = self.due.peek().map(|Reverse((at, ..))| *at);
            let room = self.probes.len() < self.bound;
            let mut batch = Vec::new();
            tokio::select! {
                assigned = assignments.recv() => match assigned {
                    Some(assigned) => for assignment in assigned {
                        self.assign(assignment, Instant::now());
                    },
                    None => return,
                },
                Some(result) = self.probes.next(), if !self.probes.is_empty() => {
                    batch.extend(self.record(result));
                    // Whatever else is ready goes along: a host that dies takes many backends with it.
                    while let Some(Some(result)) = futures::FutureExt::now_or_never(self.probes.next()) {
                        batch.extend(self.record(result));
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if room && next.is_some() => {}
            }
            if !batch.is_empty() && changes.send(batch).await.is_err() {
                return;
            }
        }
    }

    fn start_due(&mut self, now: Instant) {
        while self.probes.len() < self.bound {
            match self.due.peek() {
                Some(Reverse((at, ..))) if *at <= now => {}
                _ => return,
            }
            let Some(Reverse((_, index, used))) = self.due.pop() else {
                return;
            };
            let Some(entry) = self.entry(index, used) else {
                continue;
            };
            // Late checks do not make up for lost ones.
            entry.next = now + entry.target.check.interval;
            let (to, patience) = (entry.target.connect, entry.target.check.timeout);
            let probe = self.connect.connect(to, patience);
            self.probes
                .push(Box::pin(async move { (index, used, probe.await) }));
        }
    }

    fn record(&mut self, (index, used, success): (usize, u64, bool)) -> Option<Change> {
        let entry = self.entry(index, used)?;
        let changed = entry.tracker.record(&entry.target.check, success);
        let next = entry.next;
        let change = changed.then(|| Change {
            service: Arc::clone(&entry.service),
            backend: entry.target.backend,
            up: entry.tracker.is_up(),
        });
        self.due.push(Reverse((next, index, used)));
        change
    }

    fn assign(&mut self, assignment: Assignment, now: Instant) {
        let Assignment { service, targets } = assignment;
        let mut known = self.by_service.remove(&service).unwrap_or_default();
        let mut kept = HashMap::with_capacity(targets.len());
        for target in targets {
            let index = match known.remove(&target.backend) {
                Some(index) => {
                    if let Some(Some(entry)) = self.entries.get_mut(index) {
                        entry.target = target;
                    }
                    index
                }
                None => self.add(&service, target, now),
            };
            kept.insert(target.backend, index);
        }
        for index in known.into_values() {
            self.entries[index] = None;
            self.free.push(index);
        }
        if !kept.is_empty() {
            self.by_service.insert(service, kept);
        }
    }

    fn add(&mut self, service: &Arc<str>, target: Target, now: Instant) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.uses += 1;
        let mut hasher = DefaultHasher::new();
        (service, target.backend).hash(&mut hasher);
        let share = f64::from(hasher.finish() as u32) / f64::from(u32::MAX);
        let next = now + SPREAD.min(target.check.interval).mul_f64(share);
        self.due.push(Reverse((next, index, self.uses)));
        self.entries[index] = Some(Entry {
            service: Arc::clone(service),
            target,
            tracker: Tracker::restored(target.up),
            used: self.uses,
            next,
        });
        index
    }

    /// None if the entry's place was given to another target meanwhile.
    fn entry(&mut self, index: usize, used: u64) -> Option<&mut Entry> {
        self.entries[index]
            .as_mut()
            .filter(|entry| entry.used == used)
    }
}

#[cfg(test)]
#[path = "prober_tests.rs"]
mod tests;
