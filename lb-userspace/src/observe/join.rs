//! Pure: the agent's state and two readings of the counters become what the API says.

use lb_common::abi::Reason;

use super::{
    rates::{Pair, Sample},
    view,
};
use crate::state::{Backend, BackendState, Frontend, Service, State};

/// Ids of frontends and of backends are below these.
pub(super) fn id_bounds(state: &State) -> (u32, u32) {
    let services = || state.services.values();
    let frontends = services().flat_map(|service| &service.frontends);
    let backends = services().flat_map(|service| &service.backends);
    (
        frontends.map(|frontend| frontend.id + 1).max().unwrap_or(1),
        backends.map(|backend| backend.id + 1).max().unwrap_or(0),
    )
}

/// `now` in seconds since the Unix epoch.
pub(super) fn status(state: &State, maps: Vec<view::Map>, pair: &Pair, now: u64) -> view::Status {
    let vips: std::collections::BTreeSet<_> = state
        .services
        .values()
        .flat_map(|service| &service.frontends)
        .map(|frontend| frontend.address.ip())
        .collect();
    view::Status {
        node: state.node.clone(),
        version: state.version.clone(),
        abi: state.abi,
        kernel: state.kernel.clone(),
        up_seconds: Some(now.saturating_sub(state.started)),
        bypass: state.bypass,
        bypass_reason: state.bypass_reason,
        trial_seconds: state.trial_ends.map(|end| end.saturating_sub(now)),
        silent_seconds: None,
        interfaces: state
            .interfaces
            .iter()
            .map(|interface| view::Interface {
                name: interface.name.clone(),
                driver: interface.driver.clone(),
                mtu: interface.mtu,
                attached: interface.attached.clone(),
                vips: vips.len(),
                rx_per_second: pair.rate(|sample| sample.link(&interface.name).received),
                tx_per_second: pair.rate(|sample| sample.link(&interface.name).sent),
                dropped_per_second: pair.rate(|sample| sample.link(&interface.name).dropped),
            })
            .collect(),
        sources: state
            .sources
            .iter()
            .map(|source| view::Source {
                name: source.name.clone(),
                state: source.state,
                age_seconds: now.saturating_sub(source.since),
                objects: source.objects,
                skipped: source.skipped,
                error: source.error.clone(),
            })
            .collect(),
        skipped: state.skipped.clone(),
        maps,
        announcements: state.announcements.clone(),
    }
}

pub(super) fn services(state: &State, pair: &Pair) -> Vec<view::Service> {
    state
        .services
        .values()
        .flat_map(|service| {
            service
                .frontends
                .iter()
                .map(|frontend| row(service, frontend, pair))
        })
        .collect()
}

fn row(service: &Service, frontend: &Frontend, pair: &Pair) -> view::Service {
    let id = frontend.id;
    let count = pair.now.frontend(id);
    view::Service {
        name: service.name.clone(),
        frontend: view::frontend(frontend),
        mode: service.mode.clone(),
        affinity_seconds: service.affinity,
        ready: in_state(service, BackendState::Ready),
        drain: in_state(service, BackendState::Drain),
        down: in_state(service, BackendState::Down),
        new_flows_per_second: pair.rate(|sample| sample.frontend(id).new_flows),
        packets_per_second: pair.rate(|sample| sample.frontend(id).packets),
        dropped_per_second: pair.rate(|sample| sample.dropped(id)),
        new_flows: count.new_flows,
        packets: count.packets,
        bytes: count.bytes,
        replies: count.replies,
        reasons: reasons(&pair.now, id),
    }
}

pub(super) fn reasons(sample: &Sample, id: u32) -> Vec<view::ReasonCount> {
    sample
        .reasons(id)
        .map(|(reason, packets): (Reason, u64)| view::ReasonCount {
            reason: reason.name().to_owned(),
            kind: reason.kind().to_owned(),
            packets,
        })
        .collect()
}

pub(super) fn in_state(service: &Service, state: BackendState) -> usize {
    let in_state = |backend: &&Backend| backend.state == state;
    service.backends.iter().filter(in_state).count()
}

/// Of one service or of all; by ordinal within a service.
pub(super) fn backends<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    pair: &Pair,
    now: u64,
) -> Vec<view::Backend> {
    let mut rows = Vec::new();
    for service in services {
        let mut backends: Vec<_> = service.backends.iter().collect();
        backends.sort_by_key(|backend| backend.ordinal);
        rows.extend(backends.into_iter().map(|backend| {
            let count = pair.now.backend(backend.id);
            view::Backend {
                service: service.name.clone(),
                backend: backend.address,
                node: None,
                path: backend.path.clone(),
                ordinal: backend.ordinal,
                weight: backend.weight,
                state: backend.state,
                slots: backend.slots,
                share: f64::from(backend.slots) / f64::from(backend.table.max(1)),
                new_flows_per_second: pair.rate(|sample| sample.backend(backend.id).new_flows),
                packets_per_second: pair.rate(|sample| sample.backend(backend.id).packets),
                new_flows: count.new_flows,
                packets: count.packets,
                since_seconds: now.saturating_sub(backend.since),
            }
        }));
    }
    rows
}
