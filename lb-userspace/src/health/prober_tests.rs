use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::time::sleep;

use super::*;

/// Answers after 10 ms; what is in `dead` runs into the timeout.
#[derive(Clone, Default)]
struct Net {
    dead: Arc<Mutex<HashSet<SocketAddr>>>,
    under_way: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    tried: Arc<AtomicUsize>,
}

impl Connect for Net {
    fn connect(&self, to: SocketAddr, patience: Duration) -> BoxFuture<'static, bool> {
        let net = self.clone();
        Box::pin(async move {
            let now = net.under_way.fetch_add(1, Ordering::Relaxed) + 1;
            net.most.fetch_max(now, Ordering::Relaxed);
            net.tried.fetch_add(1, Ordering::Relaxed);
            let dead = net.dead.lock().unwrap().contains(&to);
            sleep(if dead {
                patience
            } else {
                Duration::from_millis(10)
            })
            .await;
            net.under_way.fetch_sub(1, Ordering::Relaxed);
            !dead
        })
    }
}

fn target(number: u16) -> Target {
    let backend = SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 80));
    Target {
        backend,
        connect: backend,
        check: Check {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        },
        up: true,
    }
}

struct Run {
    net: Net,
    assignments: mpsc::Sender<Vec<Assignment>>,
    changes: mpsc::Receiver<Vec<Change>>,
}

fn start(bound: usize) -> Run {
    let net = Net::default();
    let (assignments, receiver) = mpsc::channel(1);
    let (sender, changes) = mpsc::channel(1);
    tokio::spawn(Prober::new(net.clone(), bound).run(receiver, sender));
    Run {
        net,
        assignments,
        changes,
    }
}

impl Run {
    async fn assign(&self, service: &str, targets: Vec<Target>) {
        let assignment = Assignment {
            service: service.into(),
            targets,
        };
        self.assignments.send(vec![assignment]).await.unwrap();
    }

    async fn next(&mut self) -> Vec<(SocketAddr, bool)> {
        let batch = self.changes.recv().await.unwrap();
        batch.into_iter().map(|c| (c.backend, c.up)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_dies_is_down_after_fall_checks_and_up_after_rise() {
    let mut run = start(100);
    run.assign("web", vec![target(1), target(2)]).await;
    sleep(Duration::from_secs(10)).await;
    let dead = target(1).connect;
    run.net.dead.lock().unwrap().insert(dead);
    let died = Instant::now();
    assert_eq!(run.next().await, [(dead, false)]);
    let took = died.elapsed();
    // Three checks: at most one interval until the first, two more intervals, one timeout.
    assert!(
        (Duration::from_secs(5)..=Duration::from_secs(7)).contains(&took),
        "{took:?}"
    );
    run.net.dead.lock().unwrap().remove(&dead);
    assert_eq!(run.next().await, [(dead, true)]);
}

#[tokio::test(start_paused = true)]
async fn a_backend_dead_from_the_start_is_down_by_its_first_check() {
    let mut run = start(100);
    run.net.dead.lock().unwrap().insert(target(1).connect);
    let begin = Instant::now();
    run.assign("web", vec![target(1)]).await;
    assert_eq!(run.next().await, [(target(1).backend, false)]);
    assert!(begin.elapsed() <= Duration::from_millis(2001));
}

#[tokio::test(start_paused = true)]
async fn targets_taken_away_are_checked_no_more() {
    let mut run = start(100);
    run.assign("web", vec![target(1), target(2)]).await;
    sleep(Duration::from_secs(5)).await;
    run.assign("web", vec![target(2)]).await;
    run.net
        .dead
        .lock()
        .unwrap()
        .extend([target(1).connect, target(2).connect]);
    assert_eq!(run.next().await, [(target(2).backend, false)]);
    run.assign("web", vec![]).await;
    sleep(Duration::from_secs(5)).await;
    let tried = run.net.tried.load(Ordering::Relaxed);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(run.net.tried.load(Ordering::Relaxed), tried);
}

#[tokio::test(start_paused = true)]
async fn many_backends_share_the_bound_and_keep_their_interval() {
    let mut run = start(500);
    let targets: Vec<_> = (0..20_000).map(target).collect();
    run.assign("web", targets).await;
    sleep(Duration::from_secs(20)).await;
    let tried = run.net.tried.load(Ordering::Relaxed);
    assert!((190_000..=210_000).contains(&tried), "{tried}");
    assert!(run.net.most.load(Ordering::Relaxed) <= 500);
    // All dead at once: 500 a second find out within the time that the bound leaves.
    run.net
        .dead
        .lock()
        .unwrap()
        .extend((0..20_000).map(|n| target(n).connect));
    let mut down = 0;
    while down < 20_000 {
        down += run.next().await.len();
    }
}
