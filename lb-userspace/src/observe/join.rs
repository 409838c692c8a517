//! Pure: the agent's state and two readings of the counters become what the API says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::abi::Reason;

use super::{
    rates::{Pair, Sample},
    view,
};
use crate::{
    desired::kubernetes::Origin,
    state::{Backend, BackendState, Frontend, Service, State},
};

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
    let vips: BTreeSet<_> = state
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
        ready: behind(service, frontend, BackendState::Ready),
        drain: behind(service, frontend, BackendState::Drain),
        down: behind(service, frontend, BackendState::Down),
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

/// Backends of one frontend.
fn behind(service: &Service, frontend: &Frontend, state: BackendState) -> usize {
    let counts = |backend: &&Backend| backend.service == frontend.service && backend.state == state;
    service.backends.iter().filter(counts).count()
}

/// Backends of a whole service: one behind several frontends counts once.
pub(super) fn in_state(service: &Service, state: BackendState) -> usize {
    let backends = service.backends.iter();
    let in_state = backends.filter(|backend| backend.state == state);
    let distinct: BTreeSet<_> = in_state.map(|backend| backend.address).collect();
    distinct.len()
}

/// Modes of a whole service's backends, each backend once.
pub(super) fn modes(service: &Service) -> BTreeMap<&str, usize> {
    let backends = service.backends.iter();
    let distinct: BTreeSet<_> = backends
        .map(|backend| (backend.mode.as_str(), backend.address))
        .collect();
    let mut modes = BTreeMap::new();
    for (mode, _) in distinct {
        *modes.entry(mode).or_default() += 1;
    }
    modes
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
            let place = |of: fn(&Origin) -> Option<&Arc<str>>| {
                let name = backend.origin.as_ref().and_then(of);
                name.map(ToString::to_string)
            };
            view::Backend {
                service: service.name.clone(),
                backend: backend.address,
                node: place(|origin| origin.node.as_ref()),
                zone: place(|origin| origin.zone.as_ref()),
                path: backend.path.clone(),
                ordinal: backend.ordinal,
                weight: backend.weight,
                mode: backend.mode.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::kubernetes::Rule, state::Protocol};

    /// Two pods behind an IPv4 and an IPv6 VIP, each with TCP and UDP on one number.
    fn dual_stack() -> Service {
        let (mut frontends, mut backends) = (Vec::new(), Vec::new());
        let ends = [
            (
                "192.0.2.10:53",
                Protocol::Tcp,
                ["10.1.0.1:53", "10.1.0.2:53"],
            ),
            (
                "192.0.2.10:53",
                Protocol::Udp,
                ["10.1.0.1:53", "10.1.0.2:53"],
            ),
            (
                "[2001:db8::10]:53",
                Protocol::Tcp,
                ["[fd00::1]:53", "[fd00::2]:53"],
            ),
            (
                "[2001:db8::10]:53",
                Protocol::Udp,
                ["[fd00::1]:53", "[fd00::2]:53"],
            ),
        ];
        for (at, (vip, protocol, pods)) in (0..).zip(ends) {
            frontends.push(Frontend {
                address: vip.parse().unwrap(),
                protocol,
                id: at + 1,
                service: at,
                rules: None,
            });
            for (ordinal, pod) in (0..).zip(pods) {
                backends.push(Backend {
                    address: pod.parse().unwrap(),
                    service: at,
                    ordinal,
                    id: at * 2 + u32::from(ordinal),
                    weight: 100,
                    mode: "local".into(),
                    // The second pod leaves.
                    state: [BackendState::Ready, BackendState::Drain][usize::from(ordinal)],
                    since: 0,
                    slots: 1,
                    table: 1,
                    path: None,
                    origin: Some(Origin {
                        node: Some("n1".into()),
                        zone: None,
                        chosen: Rule::ReadyInCluster,
                        placed: Rule::OnThisNode,
                    }),
                });
            }
        }
        Service {
            name: "default/dns".into(),
            mode: "local".into(),
            affinity: None,
            source_ranges: vec![],
            frontends,
            backends,
            left_out: vec![],
        }
    }

    #[test]
    fn a_frontends_row_counts_the_backends_behind_it_alone() {
        let service = dual_stack();
        let state = State {
            services: [(service.name.clone(), service.into())].into(),
            ..State::default()
        };
        let rows = services(&state, &Pair::of(Sample::of(vec![], vec![], vec![])));
        assert_eq!(rows.len(), 4);
        for row in rows {
            let counts = (row.ready, row.drain, row.down);
            assert_eq!(counts, (1, 1, 0), "{}", row.frontend);
        }
    }

    #[test]
    fn a_backend_says_where_it_runs() {
        let service = dual_stack();
        let rows = backends([&service], &Pair::of(Sample::of(vec![], vec![], vec![])), 0);
        assert_eq!(rows.len(), 8);
        for row in rows {
            assert_eq!((row.node.as_deref(), row.zone), (Some("n1"), None));
        }
    }

    #[test]
    fn a_backend_behind_several_frontends_is_one_of_the_service() {
        assert_eq!(in_state(&dual_stack(), BackendState::Ready), 2);
        assert_eq!(in_state(&dual_stack(), BackendState::Down), 0);
        assert_eq!(modes(&dual_stack()), [("local", 4)].into());
    }
}
