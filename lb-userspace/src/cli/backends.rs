//! `millrace backends [SERVICE]`: who owns how many slots, and in which state.

use super::{
    Exit, Failure, Global, client,
    show::show,
    table::{age, or_dash, percent, short, table},
};
use crate::{observe::view::Backend, state::BackendState};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Only this service's; all by default
    service: Option<String>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let path = match &args.service {
        Some(service) => format!("/v1/backends?service={}", client::escaped(service)),
        None => "/v1/backends".to_owned(),
    };
    let named = args.service.is_some();
    show(
        global,
        || client::get::<Vec<Backend>>(&global.socket, &path),
        |backends, wide| match (named, wide) {
            (true, false) => draw(backends),
            (false, false) => with_service(backends),
            (_, true) => draw_wide(backends),
        },
    )?;
    Ok(Exit::Ok)
}

const HEADER: [&str; 10] = [
    "BACKEND", "NODE", "ORD", "WEIGHT", "STATE", "SLOTS", "SHARE", "NEW/s", "PKT/s", "SINCE",
];

fn draw(backends: &[Backend]) -> String {
    table(HEADER, backends.iter().map(row))
}

fn row(backend: &Backend) -> [String; 10] {
    [
        backend.backend.to_string(),
        or_dash(backend.node.as_ref()),
        backend.ordinal.to_string(),
        backend.weight.to_string(),
        state(backend.state).to_owned(),
        backend.slots.to_string(),
        percent(backend.share, 1),
        short(backend.new_flows_per_second),
        short(backend.packets_per_second),
        age(backend.since_seconds),
    ]
}

fn with_service(backends: &[Backend]) -> String {
    table(
        ["SERVICE"].into_iter().chain(HEADER),
        backends.iter().map(service_row),
    )
}

fn service_row(backend: &Backend) -> impl Iterator<Item = String> {
    [backend.service.clone()].into_iter().chain(row(backend))
}

/// With totals and the way there.
fn draw_wide(backends: &[Backend]) -> String {
    let more = [
        "MODE",
        "ZONE",
        "NEW",
        "PKT",
        "INTERFACE",
        "GATEWAY",
        "NEIGHBOUR",
    ];
    table(
        ["SERVICE"].into_iter().chain(HEADER).chain(more),
        backends.iter().map(|backend| {
            let path = backend.path.as_ref();
            service_row(backend).chain([
                backend.mode.clone(),
                or_dash(backend.zone.as_ref()),
                backend.new_flows.to_string(),
                backend.packets.to_string(),
                or_dash(path.map(|path| &path.interface)),
                or_dash(path.map(|path| path.gateway)),
                or_dash(path.and_then(|path| path.neighbour.as_ref())),
            ])
        }),
    )
}

fn state(state: BackendState) -> &'static str {
    match state {
        BackendState::Ready => "ready",
        BackendState::Drain => "drain",
        BackendState::Down => "down",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::BackendPath;

    fn backends() -> [Backend; 2] {
        let first = Backend {
            service: "default/web".into(),
            backend: "10.0.0.11:8443".parse().unwrap(),
            node: Some("n1".into()),
            zone: Some("a".into()),
            path: Some(BackendPath {
                interface: "eth0".into(),
                gateway: "10.0.0.11".parse().unwrap(),
                neighbour: None,
            }),
            ordinal: 0,
            weight: 100,
            mode: "dsr".into(),
            state: BackendState::Ready,
            slots: 64,
            share: 0.5,
            new_flows_per_second: 205.0,
            packets_per_second: 48_000.0,
            new_flows: 9,
            packets: 10,
            since_seconds: 3 * 86_400,
        };
        let second = Backend {
            backend: "10.0.0.12:8443".parse().unwrap(),
            node: Some("n2".into()),
            path: None,
            ordinal: 1,
            state: BackendState::Drain,
            slots: 0,
            share: 0.0,
            new_flows_per_second: 0.0,
            packets_per_second: 310.0,
            since_seconds: 12,
            ..first.clone()
        };
        [first, second]
    }

    #[test]
    fn the_table_is_the_documented_one() {
        assert_eq!(
            draw(&backends()),
            "\
BACKEND         NODE  ORD  WEIGHT  STATE  SLOTS  SHARE  NEW/s  PKT/s  SINCE
10.0.0.11:8443  n1    0    100     ready  64     50.0%  205    48k    3d
10.0.0.12:8443  n2    1    100     drain  0      0.0%   0      310    12s"
        );
    }

    #[test]
    fn wide_shows_zone_and_way_and_dashes_where_there_is_none() {
        let text = draw_wide(&backends());
        assert!(
            text.contains("dsr   a     9    10   eth0       10.0.0.11  -\n"),
            "{text}"
        );
        assert!(text.ends_with("-          -          -"), "{text}");
    }
}
