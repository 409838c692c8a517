//! Network facts against the kernel: what `ip` changes is what the agent knows, lost messages included.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    is_root,
    netns::Netns,
    topology::{Shape, Topology},
};
use lb_userspace::net::{Facts, Pokes, Update, follow, path::resolve, snapshot, xdp_send};
use tokio::{
    runtime,
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, timeout},
};

/// Facts that follow a namespace.
struct Follower {
    facts: Facts,
    updates: mpsc::Receiver<Vec<Update>>,
    pokes: mpsc::Sender<Vec<(u32, IpAddr)>>,
}

impl Follower {
    fn start() -> Self {
        let (sender, updates) = mpsc::channel(16);
        let (pokes, receiver) = mpsc::channel(1);
        tokio::spawn(follow(xdp_send, sender, receiver));
        Self {
            facts: Facts::default(),
            updates,
            pokes,
        }
    }

    /// Applies updates until the facts are as `expected`.
    async fn until(&mut self, what: &str, expected: impl Fn(&Facts) -> bool) -> Result<()> {
        let wait = async {
            while !expected(&self.facts) {
                let batch = self.updates.recv().await.context("source ended")?;
                for update in batch {
                    self.facts.apply(update);
                }
            }
            Ok(())
        };
        let done: Result<Result<()>, _> = timeout(Duration::from_secs(10), wait).await;
        done.with_context(|| format!("{what}: {:#?}", self.facts))?
    }
}

/// Runs `work` inside the namespace, on a runtime of its own.
fn inside(netns: &Netns, work: impl AsyncFnOnce(Follower) -> Result<()> + Send) -> Result<()> {
    netns.enter(|| {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { work(Follower::start()).await })
    })
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn hop(facts: &Facts, to: &str) -> Option<(String, IpAddr)> {
    let path = resolve(facts, ip(to))?;
    Some((facts.links[&path.ifindex].name.clone(), path.gateway))
}

#[test]
fn routes_and_links_are_followed() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::TwoArms, 1)?;
    let balancer = &topology.balancer.netns;
    inside(balancer, async |mut facts| {
        let default = |to| Some((String::from("eth0"), ip(to)));
        facts
            .until("start", |facts| {
                hop(facts, "198.51.100.7") == default("10.1.0.1")
                    && hop(facts, "2001:db8:a::7") == default("fd01::1")
                    && hop(facts, "10.0.0.11") == Some(("eth1".into(), ip("10.0.0.11")))
                    && facts.is_host_address(ip("fd00::2"))
            })
            .await?;
        let path = resolve(&facts.facts, ip("10.0.0.11")).context("path")?;
        ensure!(
            path.source == ip("10.0.0.2") && path.mtu == 1500 && path.xdp_send,
            "{path:?}"
        );

        balancer.ip(["route add 198.51.100.0/24 via 10.0.0.1 mtu lock 1400"])?;
        balancer.ip(["route add 2001:db8:a::/64 via fd00::1"])?;
        facts
            .until("new routes", |facts| {
                hop(facts, "198.51.100.7") == Some(("eth1".into(), ip("10.0.0.1")))
                    && hop(facts, "2001:db8:a::7") == Some(("eth1".into(), ip("fd00::1")))
                    && resolve(facts, ip("198.51.100.7")).is_some_and(|path| path.mtu == 1400)
            })
            .await?;

        // The kernel takes the routes away without a word.
        balancer.ip(["link set eth1 down"])?;
        facts
            .until("link down", |facts| {
                hop(facts, "198.51.100.7") == default("10.1.0.1")
                    && hop(facts, "10.0.0.11") == default("10.1.0.1")
            })
            .await?;
        balancer.ip(["link set eth1 up"])?;
        facts
            .until("link up without the routes", |facts| {
                hop(facts, "10.0.0.11") == Some(("eth1".into(), ip("10.0.0.11")))
                    && hop(facts, "198.51.100.7") == default("10.1.0.1")
            })
            .await?;
        balancer.ip(["link del eth1"])?;
        facts
            .until("link gone", |facts| {
                hop(facts, "10.0.0.11") == default("10.1.0.1")
                    && !facts.is_host_address(ip("10.0.0.2"))
            })
            .await
    })
}

/// Whoever starts decides by the first batch, and a host changes while he does.
#[test]
fn the_first_batch_is_everything_whatever_changes_meanwhile() -> Result<()> {
    const STARTS: usize = 20;
    if !is_root() {
        return Ok(());
    }
    let netns = Netns::create("facts")?;
    netns.ip([
        "link add eth0 type veth peer name eth1",
        "address add 10.0.0.1/24 dev eth0",
        "link set eth0 up",
        "link set eth1 up",
        "route add default via 10.0.0.254",
    ])?;
    let change = |n| format!("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:{n:02x} dev eth0");
    let changes: Vec<_> = (0..100).map(change).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let changing = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                netns.ip(changes.iter().map(String::as_str))?;
            }
            Ok::<_, anyhow::Error>(())
        });
        let starting = (0..STARTS).try_for_each(|_| {
            inside(&netns, async |mut facts| {
                let first = facts.updates.recv().await.context("source ended")?;
                for update in first {
                    facts.facts.apply(update);
                }
                let known = hop(&facts.facts, "198.51.100.7");
                ensure!(
                    known == Some(("eth0".into(), ip("10.0.0.254"))),
                    "{known:?}"
                );
                Ok(())
            })
        });
        over.store(true, Ordering::Relaxed);
        changing.join().expect("who changes")?;
        starting
    })
}

/// An address that goes moves the others up, past a dump that is under way.
#[test]
fn a_dump_lacks_nothing_that_stays() -> Result<()> {
    const DUMPS: usize = 20;
    if !is_root() {
        return Ok(());
    }
    let netns = Netns::create("facts")?;
    netns.ip(["link add eth0 type veth peer name eth1"])?;
    let stay: BTreeSet<IpAddr> = (0..3000_u32)
        .map(|n| Ipv4Addr::from_bits(0x0a01_0000 + n).into())
        .collect();
    let add = |ip| format!("address add {ip}/32 dev eth0");
    let commands: Vec<_> = stay.iter().map(add).collect();
    netns.ip(commands.iter().map(String::as_str))?;
    inside(&netns, async |_| {
        for number in 1..=DUMPS {
            let netns = netns.clone();
            // The kernel puts one of a narrower scope in front of the others.
            let changing = spawn_blocking(move || {
                netns.ip([
                    "address add 10.0.0.1/32 dev eth0 scope link",
                    "address del 10.0.0.1/32 dev eth0",
                ])
            });
            let facts = snapshot(xdp_send).await?;
            let known: BTreeSet<_> = facts.host_addresses().collect();
            let lost: Vec<_> = stay.difference(&known).collect();
            ensure!(lost.is_empty(), "dump {number}: no {lost:?}");
            changing.await??;
        }
        Ok(())
    })
}

#[test]
fn wanted_neighbours_are_resolved_and_stay_so() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let topology = Topology::build(Shape::OneArm, 1)?;
    let backend = &topology.backends[0];
    for family in ["ipv4", "ipv6"] {
        let key = format!("net.{family}.neigh.eth0.delay_first_probe_time");
        topology.balancer.netns.sysctl(&key, "1")?;
    }
    inside(&topology.balancer.netns, async |mut facts| {
        facts
            .until("start", |facts| !facts.links.is_empty())
            .await?;
        for wanted in [backend.v4.into(), backend.v6.into()] {
            let mut pokes = Pokes::default();
            let path = resolve(&facts.facts, wanted).context("path")?;
            ensure!(path.neighbour.is_none(), "known before it was asked for");
            pokes.want(path.ifindex, path.gateway, Instant::now());
            facts
                .pokes
                .send(pokes.due(&facts.facts, Instant::now()))
                .await?;
            let resolved =
                |facts: &Facts| resolve(facts, wanted).is_some_and(|path| path.neighbour.is_some());
            facts.until("resolved", resolved).await?;

            // A stale entry is confirmed again, and keeps its address meanwhile.
            let key = (path.ifindex, path.gateway);
            let mac = resolve(&facts.facts, wanted).and_then(|path| path.neighbour);
            let mac = mac
                .context("address")?
                .map(|byte| format!("{byte:02x}"))
                .join(":");
            let change = format!("neigh replace {wanted} lladdr {mac} dev eth0 nud stale");
            topology.balancer.netns.ip([&*change])?;
            facts
                .until("stale", |facts| {
                    facts.neighbours.get(&key).is_some_and(|known| !known.fresh)
                })
                .await?;
            let later = Instant::now() + Duration::from_secs(1);
            facts.pokes.send(pokes.due(&facts.facts, later)).await?;
            facts
                .until("confirmed", |facts| {
                    facts.neighbours.get(&key).is_some_and(|known| known.fresh)
                })
                .await?;
        }
        Ok(())
    })
}

#[test]
fn lost_messages_are_made_up_for() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let netns = Netns::create("facts")?;
    netns.ip([
        "link add eth0 type veth peer name eth1",
        "link set eth0 up",
        "link set eth1 up",
    ])?;
    let routes: Vec<String> = (0..60_000)
        .map(|n: u32| {
            format!(
                "route add 10.{}.{}.{}/32 dev eth0",
                n >> 16,
                (n >> 8) & 255,
                n & 255
            )
        })
        .collect();
    inside(&netns, async |mut facts| {
        facts
            .until("start", |facts| !facts.links.is_empty())
            .await?;
        // Nobody reads while these come, so the queue overflows.
        netns.ip(routes.iter().map(String::as_str))?;
        facts
            .until("all routes", |facts| {
                facts
                    .routes
                    .iter()
                    .filter(|route| route.destination.prefix_len() == 32)
                    .count()
                    == 60_000
            })
            .await
    })
}
