//! `bench plan`: how long until a change is in the maps, among 10,000 services with 25 backends each, and a cold start with all of
//! them. The agent's own engine on real pinned maps; no program is attached, so nothing but the agent is measured.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    attach::{Installation, Options},
    config::Config,
    desired::{self, Drains},
    health::Change,
    net::{Address, Facts, Hop, Link, Neighbour, Route, Update},
    reconcile::{Engine, Start},
};
use serde::Serialize;

use super::machine;
use crate::netns::unique_name;

/// What is measured with.
#[derive(Clone, Copy, Debug)]
struct Scale {
    services: u32,
    /// Of each service.
    backends: u32,
    changes: usize,
}

const SCALE: Scale = Scale {
    services: 10_000,
    backends: 25,
    changes: 2000,
};

/// Measures and prints.
pub(super) fn run(json: bool) -> Result<()> {
    machine::show(&measure(SCALE)?, json, Figures::table)
}

/// Times in microseconds.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Figures {
    /// What it was measured on.
    machine: String,
    services: u32,
    backends: u32,
    /// Reading the file's text, of the cold start.
    parse_us: u64,
    /// From the text to full maps: reading, checking, planning, writing.
    cold_start_us: u64,
    health_change_us: Spread,
    drain_us: Spread,
    /// A neighbour that a few hundred services are reached by.
    neighbour_change_us: Spread,
    /// A new agent on full maps: reads them back and finds nothing to do.
    adoption_us: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Spread {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

fn measure(scale: Scale) -> Result<Figures> {
    let text = config(scale);
    let maps = Maps::open(&text)?;
    let begin = Instant::now();
    let config = Config::parse(&text, "bench.yaml")?;
    let parse_us = micros(begin.elapsed());
    let facts = facts(scale);
    ensure!(desired::check(&config, &facts).is_empty(), "config refused");
    let start = |config: Config, facts: Facts| Start {
        hash_key: Some([1, 2]),
        config,
        facts,
        drains: Drains::default(),
        hz: 1000,
        node: String::new(),
        agents: None,
    };
    let mut engine = Engine::start(start(config, facts), maps.installation.dataplane()?)?;
    engine.flush()?;
    let cold_start_us = micros(begin.elapsed());

    let mut random = Random::new();
    let mut health = Vec::new();
    for number in 0..scale.changes {
        let service = random.below(scale.services);
        let backend = backend(scale, service, random.below(scale.backends));
        // Down, then up again: half of each.
        for up in [false, true] {
            let change = Change {
                service: format!("service-{service}").into(),
                backend,
                up,
            };
            let begin = Instant::now();
            engine.health(vec![change]);
            engine.flush().with_context(|| format!("change {number}"))?;
            health.push(begin.elapsed());
        }
    }
    let mut drain = Vec::new();
    for _ in 0..scale.changes {
        let service = random.below(scale.services);
        let backend = backend(scale, service, random.below(scale.backends));
        let begin = Instant::now();
        engine.drain(&format!("service-{service}"), backend, true)?;
        engine.flush()?;
        drain.push(begin.elapsed());
    }
    let mut neighbour_change = Vec::new();
    for number in 0..100 {
        let gateway = gateway(random.below(GATEWAYS));
        let begin = Instant::now();
        engine.network(vec![neighbour(gateway, number)]);
        engine.flush()?;
        neighbour_change.push(begin.elapsed());
    }

    let (config, facts) = (engine.config().clone(), engine.facts().clone());
    drop(engine);
    let begin = Instant::now();
    let mut engine = Engine::start(start(config, facts), maps.installation.dataplane()?)?;
    engine.flush()?;
    let adoption_us = micros(begin.elapsed());
    Ok(Figures {
        machine: machine::describe()?,
        services: scale.services,
        backends: scale.backends,
        parse_us,
        cold_start_us,
        health_change_us: Spread::of(health),
        drain_us: Spread::of(drain),
        neighbour_change_us: Spread::of(neighbour_change),
        adoption_us,
    })
}

impl Spread {
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| micros(times[(times.len() * percent / 100).min(times.len() - 1)]);
        Self {
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

impl Figures {
    /// A table for people.
    fn table(&self) -> String {
        let mut table = format!(
            "{}\n{} services with {} backends each\n{:<40}{:>10}{:>10}{:>10}\n",
            self.machine,
            self.services,
            self.backends,
            "until it is in the maps, ms",
            "p50",
            "p99",
            "max"
        );
        for (name, spread) in [
            ("health change of one backend", self.health_change_us),
            ("drain of one backend", self.drain_us),
            (
                "neighbour of 1/250 of the backends",
                self.neighbour_change_us,
            ),
        ] {
            let ms = |us: u64| format!("{:.2}", us as f64 / 1e3);
            let [p50, p99, max] = [spread.p50, spread.p99, spread.max].map(ms);
            writeln!(table, "{name:<40}{p50:>10}{p99:>10}{max:>10}").ok();
        }
        let seconds = |us: u64| us as f64 / 1e6;
        writeln!(
            table,
            "cold start {:.2} s (of which reading the file {:.2} s), adoption of full maps {:.2} s",
            seconds(self.cold_start_us),
            seconds(self.parse_us),
            seconds(self.adoption_us)
        )
        .ok();
        table
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

/// Pinned maps of the size that `text` asks for.
pub(super) struct Maps {
    pub installation: Installation,
    folders: [PathBuf; 2],
}

impl Maps {
    pub(super) fn open(text: &str) -> Result<Self> {
        let head: String = text.lines().take_while(|line| *line != "services:").fold(
            String::new(),
            |mut head, line| {
                head.push_str(line);
                head.push('\n');
                head
            },
        );
        let pin_root = Path::new("/sys/fs/bpf").join(unique_name("bench"));
        let run_folder = std::env::temp_dir().join(unique_name("bench"));
        let installation = Installation::open(&Options {
            pin_root: pin_root.clone(),
            run_folder: run_folder.clone(),
            limits: Config::parse(&head, "bench.yaml")?.limits,
            ..Options::default()
        })?;
        Ok(Self {
            installation,
            folders: [pin_root, run_folder],
        })
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        for folder in &self.folders {
            drop(fs::remove_dir_all(folder));
        }
    }
}

/// Gateways that the backends are spread over.
const GATEWAYS: u32 = 250;

fn gateway(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0xac10_0100 + number).into()
}

/// 10.0.0.0 and on, each once.
fn backend(scale: Scale, service: u32, number: u32) -> SocketAddr {
    let ip = Ipv4Addr::from_bits(0x0a00_0000 + service * scale.backends + number);
    SocketAddr::new(ip.into(), 8080)
}

fn config(scale: Scale) -> String {
    let mut text = format!(
        "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\n\
         limits: {{frontends: {}, backends: {}}}\nservices:\n",
        scale.services,
        scale.services * scale.backends
    );
    for service in 0..scale.services {
        let vip = Ipv4Addr::from_bits(0xc612_0000 + service);
        write!(
            text,
            "- name: service-{service}\n  frontends: [\"{vip}:80/tcp\"]\n  mode: nat\n  \
             health: {{tcp: {{}}}}\n  backends:\n"
        )
        .ok();
        for number in 0..scale.backends {
            writeln!(
                text,
                "  - {{address: \"{}\"}}",
                backend(scale, service, number)
            )
            .ok();
        }
    }
    text
}

/// Each 1/250 of the backends behind a gateway of its own.
fn facts(scale: Scale) -> Facts {
    let mut facts = Facts::default();
    let link = Link {
        name: "eth0".into(),
        up: true,
        mtu: 1500,
        mac: Some([2; 6]),
        xdp_send: true,
        ..Link::default()
    };
    facts.apply(Update::Link(2, Some(link)));
    let own: ipnet::Ipv4Net = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 2), 16);
    facts.apply(Update::AddAddress(Address {
        ifindex: 2,
        net: own.into(),
        global: true,
        preferred: true,
    }));
    let count = scale.services * scale.backends;
    // Prefixes of 1024 addresses, dealt out to the gateways in turn.
    for block in 0..count.div_ceil(1024) {
        let first = Ipv4Addr::from_bits(0x0a00_0000 + block * 1024);
        facts.apply(Update::AddRoute(Route {
            destination: ipnet::Ipv4Net::new_assert(first, 22).into(),
            metric: 0,
            tos: 0,
            hops: vec![Hop {
                ifindex: 2,
                gateway: Some(gateway(block % GATEWAYS)),
            }],
            source: None,
            mtu: None,
        }));
    }
    for number in 0..GATEWAYS {
        facts.apply(neighbour(gateway(number), number as u8));
    }
    facts
}

fn neighbour(gateway: IpAddr, mac: u8) -> Update {
    let known = Neighbour {
        mac: [2, 0, 0, 0, 1, mac],
        permanent: false,
        fresh: true,
    };
    Update::Neighbour(2, gateway, Some(known))
}

/// xorshift64.
pub(super) struct Random(u64);

impl Random {
    /// The same numbers every time.
    pub(super) const fn new() -> Self {
        Self(1)
    }

    pub(super) fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) * u64::from(end) >> 32) as u32
    }
}
