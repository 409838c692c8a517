//! Metrics for Prometheus, and the health of the agent for those who restart or route. Everything is read when
//! scraped; nothing is counted twice.

mod announced;
mod probes;

use std::{collections::BTreeMap, fmt, io, net::IpAddr, sync::Arc};

use hyper::{Method, StatusCode};
use lb_common::abi::{BackendCount, FrontendCount, Reason};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet, text::encode},
    metrics::{MetricType, counter::ConstCounter, exemplar::Exemplar, gauge::ConstGauge},
    registry::Registry,
};
use tokio::{sync::watch, task};

use super::{
    http::{Answer, Call, Handler, refusal, text},
    join,
    rates::Sample,
    read::Maps,
    view,
};
use crate::{
    dataplane::Asked,
    state::{Attached, BackendState, Durations, SourceState, State},
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug)]
pub(super) struct Metrics {
    state: watch::Receiver<Arc<State>>,
    maps: Arc<Maps>,
    per_backend: bool,
}

impl Metrics {
    pub(super) fn new(
        state: watch::Receiver<Arc<State>>,
        maps: Arc<Maps>,
        per_backend: bool,
    ) -> Self {
        Self {
            state,
            maps,
            per_backend,
        }
    }

    async fn scrape(&self) -> io::Result<String> {
        let state = Arc::clone(&self.state.borrow());
        let (maps, per_backend) = (Arc::clone(&self.maps), self.per_backend);
        task::spawn_blocking(move || {
            let (frontends, backends) = join::id_bounds(&state);
            let backends = if per_backend { backends } else { 0 };
            let scrape = Scrape {
                sample: Sample::read(&maps.counters, frontends, backends)?,
                usage: maps.usage(&state)?,
                asked: announced::asked(&maps.counters)?,
                state,
                per_backend,
            };
            exposition(scrape)
        })
        .await?
    }
}

impl Handler for Metrics {
    async fn answer(&self, call: Call) -> Answer {
        if call.method != Method::GET && call.method != Method::HEAD {
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET");
        }
        match call.uri.path() {
            "/metrics" => match self.scrape().await {
                Ok(exposition) => text(StatusCode::OK, OPEN_METRICS, exposition),
                Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            path => probes::answer(path, &self.state.borrow())
                .unwrap_or_else(|| refusal(StatusCode::NOT_FOUND, &format!("no {path} here"))),
        }
    }
}

/// The text that Prometheus takes.
fn exposition(scrape: Scrape) -> io::Result<String> {
    let mut registry = Registry::with_prefix("millrace");
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    encode(&mut text, &registry).map_err(io::Error::other)?;
    Ok(text)
}

/// What one scrape has found.
#[derive(Debug)]
struct Scrape {
    state: Arc<State>,
    sample: Sample,
    usage: Vec<view::Map>,
    /// By VIP, over all interfaces.
    asked: BTreeMap<IpAddr, Asked>,
    per_backend: bool,
}

type Labels = Vec<(&'static str, String)>;

/// Values of one metric, by labels.
type Series<V> = Vec<(Labels, V)>;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.agent(&mut encoder)?;
        self.frontends(&mut encoder)?;
        self.announced(&mut encoder)?;
        self.reasons(&mut encoder)?;
        self.backends(&mut encoder)
    }
}

impl Scrape {
    fn agent(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let state = &self.state;
        encoder
            .encode_descriptor(
                "build",
                "Version of the agent and of its maps",
                None,
                MetricType::Info,
            )?
            .encode_info(&[
                ("version", state.version.clone()),
                ("abi", state.abi.to_string()),
            ])?;
        gauge(
            encoder,
            "bypass",
            "1 while everything passes to the kernel",
            vec![(vec![], i64::from(state.bypass))],
        )?;
        let attached = state.interfaces.iter().map(|interface| {
            let (on, mode) = match interface.attached {
                Attached::Native => (1, "native"),
                Attached::Generic => (1, "generic"),
                Attached::Missing | Attached::Refused { .. } => (0, ""),
            };
            let labels = vec![
                ("interface", interface.name.clone()),
                ("mode", mode.to_owned()),
            ];
            (labels, on)
        });
        gauge(
            encoder,
            "interface_attached",
            "1 where the program is on the interface",
            attached.collect(),
        )?;
        let synced = |source: &crate::state::Source| {
            let labels = vec![("source", source.name.clone())];
            (labels, i64::from(source.state == SourceState::Synced))
        };
        gauge(
            encoder,
            "source_synced",
            "1 while what the source says is in force",
            state.sources.iter().map(synced).collect(),
        )?;
        let skipped = state.objects_skipped.iter().map(|skipped| {
            let labels = vec![
                ("kind", skipped.kind.clone()),
                ("reason", skipped.reason.clone()),
            ];
            (labels, skipped.objects as i64)
        });
        gauge(
            encoder,
            "objects_skipped",
            "Objects of the cluster that are left out, in whole or in part",
            skipped.collect(),
        )?;
        // The first source is the config.
        let good = state
            .sources
            .first()
            .is_none_or(|config| config.error.is_none());
        gauge(
            encoder,
            "config_last_reload_successful",
            "0 after a configuration was refused; the one before it is in force",
            vec![(vec![], i64::from(good))],
        )?;
        for (name, help, max) in [
            ("map_entries", "Entries in use", false),
            ("map_max_entries", "Entries at most", true),
        ] {
            let value = |map: &view::Map| if max { map.max } else { map.used };
            let series = self
                .usage
                .iter()
                .map(|map| (vec![("map", map.name.clone())], value(map) as i64));
            gauge(encoder, name, help, series.collect())?;
        }
        counter(
            encoder,
            "apply_errors",
            "Plans that did not reach the maps",
            vec![(vec![], state.apply.errors)],
        )?;
        let help = "From a change to the maps";
        histogram(
            encoder,
            "apply_duration_seconds",
            help,
            &state.apply.durations,
        )?;
        let Some(programming) = &state.programming else {
            return Ok(());
        };
        let help = "From the trigger of a change of endpoints to the maps";
        let name = "network_programming_duration_seconds";
        histogram(encoder, name, help, programming)
    }

    /// Frontends that differ in their address alone are summed.
    fn frontends(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut sums: BTreeMap<Labels, FrontendCount> = BTreeMap::new();
        for service in self.state.services.values() {
            for frontend in &service.frontends {
                let mut labels = of_service(&service.name);
                let family = if frontend.address.is_ipv4() {
                    "ipv4"
                } else {
                    "ipv6"
                };
                labels.extend([
                    ("port", frontend.address.port().to_string()),
                    ("protocol", view::protocol(frontend.protocol).to_owned()),
                    ("family", family.to_owned()),
                ]);
                let count = self.sample.frontend(frontend.id);
                let sum = sums.entry(labels).or_default();
                sum.packets += count.packets;
                sum.bytes += count.bytes;
                sum.new_flows += count.new_flows;
                sum.replies += count.replies;
            }
        }
        let series = |value: fn(&FrontendCount) -> u64| -> Series<u64> {
            sums.iter()
                .map(|(labels, sum)| (labels.clone(), value(sum)))
                .collect()
        };
        let help = "Packets from clients to backends";
        counter(encoder, "frontend_packets", help, series(|sum| sum.packets))?;
        let help = "Bytes from clients to backends, Ethernet headers included";
        counter(encoder, "frontend_bytes", help, series(|sum| sum.bytes))?;
        let help = "TCP SYNs forwarded, and first packets of UDP flows under nat";
        counter(
            encoder,
            "frontend_new_flows",
            help,
            series(|sum| sum.new_flows),
        )?;
        let help = "Packets from backends to clients (nat)";
        counter(encoder, "frontend_replies", help, series(|sum| sum.replies))
    }

    fn reasons(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut sums: BTreeMap<(&'static str, Labels), u64> = BTreeMap::new();
        let mut add = |name: &str, id: u32| {
            for (reason, count) in self.sample.reasons(id) {
                let reason: Reason = reason;
                let mut labels = of_service(name);
                labels.push(("reason", reason.name().to_owned()));
                *sums.entry((reason.kind(), labels)).or_default() += count;
            }
        };
        add("", 0);
        for service in self.state.services.values() {
            for frontend in &service.frontends {
                add(&service.name, frontend.id);
            }
        }
        for (kind, name, help) in [
            ("dropped", "drops", "Packets dropped"),
            (
                "passed",
                "passed",
                "Packets of ours left to the kernel's stack",
            ),
            (
                "answered",
                "answered",
                "Packets answered with a RST or an ICMP error",
            ),
        ] {
            let of_kind = sums.iter().filter(|((of, _), _)| *of == kind);
            let series = of_kind.map(|((_, labels), sum)| (labels.clone(), *sum));
            counter(encoder, name, help, series.collect())?;
        }
        Ok(())
    }

    fn backends(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut states = Vec::new();
        for service in self.state.services.values() {
            for (state, name) in [
                (BackendState::Ready, "ready"),
                (BackendState::Drain, "drain"),
                (BackendState::Down, "down"),
            ] {
                let mut labels = of_service(&service.name);
                labels.push(("state", name.to_owned()));
                states.push((labels, join::in_state(service, state) as i64));
            }
        }
        gauge(encoder, "backends", "Backends by state", states)?;
        let modes = self.state.services.values().flat_map(|service| {
            join::modes(service).into_iter().map(|(mode, backends)| {
                let mut labels = of_service(&service.name);
                labels.push(("mode", mode.to_owned()));
                (labels, backends as i64)
            })
        });
        gauge(
            encoder,
            "backends_by_mode",
            "Backends by how new flows get there",
            modes.collect(),
        )?;
        if !self.per_backend {
            return Ok(());
        }
        // What is behind several frontends has an id for each group of them.
        let mut sums: BTreeMap<Labels, BackendCount> = BTreeMap::new();
        for service in self.state.services.values() {
            for backend in &service.backends {
                let mut labels = of_service(&service.name);
                labels.push(("backend", backend.address.to_string()));
                let count = self.sample.backend(backend.id);
                let sum = sums.entry(labels).or_default();
                sum.packets += count.packets;
                sum.new_flows += count.new_flows;
            }
        }
        let series = |value: fn(&BackendCount) -> u64| -> Series<u64> {
            let sums = sums.iter();
            sums.map(|(labels, sum)| (labels.clone(), value(sum)))
                .collect()
        };
        let help = "Packets sent to the backend";
        counter(
            encoder,
            "backend_packets",
            help,
            series(|count| count.packets),
        )?;
        let help = "Flows begun with the backend";
        counter(
            encoder,
            "backend_new_flows",
            help,
            series(|count| count.new_flows),
        )
    }
}

/// `namespace/name`, or a name alone where there are no namespaces.
fn of_service(name: &str) -> Labels {
    let (namespace, service) = name.split_once('/').unwrap_or(("", name));
    vec![
        ("namespace", namespace.to_owned()),
        ("service", service.to_owned()),
    ]
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: Series<u64>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        if labels.is_empty() {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        } else {
            ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    durations: &Durations,
) -> fmt::Result {
    let last = durations.counts_us.len().saturating_sub(1);
    let mut below = 0;
    let counts = durations.counts_us.iter().enumerate();
    let buckets: Vec<(f64, u64)> = counts
        .map(|(at, &(bound, count))| {
            let own = count - below;
            below = count;
            let bound = if at == last {
                f64::INFINITY
            } else {
                bound as f64 / 1e6
            };
            (bound, own)
        })
        .collect();
    encoder
        .encode_descriptor(name, help, None, MetricType::Histogram)?
        .encode_histogram(
            durations.sum_us as f64 / 1e6,
            below,
            &buckets,
            None::<&std::collections::HashMap<usize, Exemplar<Labels, f64>>>,
        )
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: Series<i64>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        if labels.is_empty() {
            metric.encode_gauge(&value)?;
        } else {
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
