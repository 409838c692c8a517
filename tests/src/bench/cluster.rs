//! `bench cluster`: what the agent itself takes of the way from a slice's change to the maps, among 1,000 Services with 25
//! endpoints each. The engine on real pinned maps, and the state that it tells; no API server, no watch, no program.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    cluster::facts::{
        Address, Change, Endpoint, Ingress, Kind, Object, ObjectKey, Service, ServicePort, Slice,
        SlicePort,
    },
    config::Config,
    desired::Drains,
    net::Facts,
    reconcile::{About, Engine, Report, Start},
};
use serde::Serialize;

use super::{
    machine,
    plan::{Maps, Random, Spread, micros},
};

const SERVICES: u32 = 1000;
const ENDPOINTS: u32 = 25;
const NODES: u32 = 3;
/// Each Service has 2^13 addresses for them.
const CHANGES: u32 = 5000;

/// Changes per second that processor time is told for, and how many of them the told state waits for: it is published
/// ten times a second.
const RATE: u32 = 50;
const PUBLISHED: u32 = 5;

const CONFIG: &str = "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\n\
                      kubernetes: {}\nlimits: {frontends: 4096, backends: 65536}\n";

/// Measures and prints.
pub(super) fn run(json: bool) -> Result<()> {
    machine::show(&measure()?, json, Figures::table)
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Figures {
    /// What it was measured on.
    machine: String,
    services: u32,
    endpoints: u32,
    /// From facts of the whole cluster to full maps, in microseconds.
    cold_start_us: u64,
    /// One pod in the place of another, from its slice's facts to the maps, in microseconds.
    change_us: Spread,
    /// Of one processor, at [`RATE`] changes per second: planning, writing, telling.
    processor_percent: f64,
    /// Anonymous memory of the process in KiB: without any Service, with all of them, and after all changes.
    empty_kib: u64,
    full_kib: u64,
    worn_kib: u64,
}

fn measure() -> Result<Figures> {
    lb_userspace::memory::give_back();
    let maps = Maps::open(CONFIG)?;
    let config = Config::parse(CONFIG, "bench.yaml")?;
    let start = Start {
        config,
        facts: Facts::default(),
        drains: Drains::default(),
        hash_key: Some([1, 2]),
        hz: 1000,
        node: node(0),
        agents: None,
    };
    let mut engine = Engine::start(start, maps.installation.dataplane()?)?;
    let (mut report, _state) = Report::new(About {
        node: node(0),
        kernel: String::new(),
        file: "bench.yaml".to_owned(),
        cluster: true,
        keys: false,
    });
    let empty_kib = machine::anonymous_kib()?;

    let begin = Instant::now();
    let mut told: Vec<Change> = Kind::ALL.map(Change::ListBegins).into();
    for number in 0..SERVICES {
        told.push(service(number));
        told.push(slice(number, 0));
    }
    told.extend(Kind::ALL.map(Change::ListEnds));
    engine.cluster(told);
    let flushed = engine.flush();
    let cold_start_us = micros(begin.elapsed());
    ensure!(
        flushed.as_ref().is_ok_and(|done| done.ops > 0),
        "{flushed:?}"
    );
    report.flushed(&flushed, Duration::ZERO, SystemTime::now(), &engine);
    report.publish(&engine);
    let full_kib = machine::anonymous_kib()?;

    let mut random = Random::new();
    let mut times = Vec::new();
    let busy = machine::processor_time();
    for number in 1..=CHANGES {
        let change = slice(random.below(SERVICES), number);
        let begin = Instant::now();
        engine.cluster(vec![change]);
        let flushed = engine.flush();
        let took = begin.elapsed();
        let done = flushed.as_ref().ok().context("not applied")?;
        ensure!(done.services.len() == 1 && done.ops > 0, "{done:?}");
        times.push(took);
        report.flushed(&flushed, took, SystemTime::now(), &engine);
        if number % PUBLISHED == 0 {
            report.publish(&engine);
        }
    }
    let busy = machine::processor_time().saturating_sub(busy);
    Ok(Figures {
        machine: machine::describe()?,
        services: SERVICES,
        endpoints: ENDPOINTS,
        cold_start_us,
        change_us: Spread::of(times),
        processor_percent: busy.as_secs_f64() / f64::from(CHANGES) * f64::from(RATE) * 100.0,
        empty_kib,
        full_kib,
        worn_kib: machine::anonymous_kib()?,
    })
}

impl Figures {
    /// A table for people.
    fn table(&self) -> String {
        let mut table = format!(
            "{}\n{} Services with {} endpoints each, a third of them on this node\n",
            self.machine, self.services, self.endpoints
        );
        let ms = |us: u64| us as f64 / 1e3;
        let mib = |kib: u64| kib as f64 / 1024.0;
        let Spread { p50, p99, max } = self.change_us;
        writeln!(
            table,
            "a pod in the place of another, until it is in the maps: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms\n\
             at {RATE} such changes a second: {:.1} % of a processor\n\
             cold start {:.2} s\n\
             anonymous memory, without a Kubernetes client: {:.1} MiB empty, \
             {:.1} MiB full, {:.1} MiB after {CHANGES} changes",
            ms(p50),
            ms(p99),
            ms(max),
            self.processor_percent,
            ms(self.cold_start_us) / 1e3,
            mib(self.empty_kib),
            mib(self.full_kib),
            mib(self.worn_kib),
        )
        .ok();
        table
    }
}

fn node(number: u32) -> String {
    format!("node{number}")
}

fn key(number: u32) -> ObjectKey {
    ObjectKey::new("default", &format!("service-{number}"))
}

fn service(number: u32) -> Change {
    let vip = Ipv4Addr::from_bits(0xc612_0000 + number);
    let fact = Service {
        uid: format!("uid-{number}"),
        kind: "LoadBalancer".to_owned(),
        cluster_ip: Ipv4Addr::from_bits(0x0a60_0000 + number).to_string(),
        ports: vec![ServicePort {
            port: 80,
            ..ServicePort::default()
        }],
        ingress: vec![Ingress {
            ip: Some(vip.to_string()),
            ip_mode: None,
        }],
        ..Service::default()
    };
    Change::Applied(Box::new(Object::Service(key(number), fact)))
}

/// Its slice after the change of this number: a pod that never was is in one place.
fn slice(number: u32, change: u32) -> Change {
    let endpoints = (0..ENDPOINTS).map(|place| {
        let replaced = change > 0 && place == change % ENDPOINTS;
        let low = if replaced { ENDPOINTS + change } else { place };
        let ip = Ipv4Addr::from_bits(0x0a80_0000 + (number << 13) + low);
        Endpoint {
            address: Address::Ip(IpAddr::V4(ip)),
            node: Some(node(place % NODES).into()),
            ..Endpoint::default()
        }
    });
    let fact = Slice {
        service: (&*key(number).name).into(),
        address_type: "IPv4".to_owned(),
        ports: vec![SlicePort {
            name: Some(String::new()),
            port: Some(8080),
            ..SlicePort::default()
        }],
        endpoints: endpoints.collect(),
        ..Slice::default()
    };
    Change::Applied(Box::new(Object::EndpointSlice(key(number), fact)))
}
