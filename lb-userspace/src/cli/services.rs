//! `millrace services`: each frontend with its traffic.

use super::{
    Exit, Failure, Global, client,
    show::show,
    table::{age, or_dash, short, table},
};
use crate::observe::view::Service;

pub(super) fn run(global: &Global) -> Result<Exit, Failure> {
    show(
        global,
        || client::get::<Vec<Service>>(&global.socket, "/v1/services"),
        |services, wide| {
            if wide {
                draw_wide(services)
            } else {
                draw(services)
            }
        },
    )?;
    Ok(Exit::Ok)
}

const HEADER: [&str; 10] = [
    "NAME", "FRONTEND", "MODE", "AFFINITY", "READY", "DRAIN", "DOWN", "NEW/s", "PKT/s", "DROP/s",
];

fn draw(services: &[Service]) -> String {
    table(HEADER, services.iter().map(row))
}

fn row(service: &Service) -> [String; 10] {
    [
        service.name.clone(),
        service.frontend.clone(),
        service.mode.clone(),
        or_dash(service.affinity_seconds.map(age)),
        service.ready.to_string(),
        service.drain.to_string(),
        service.down.to_string(),
        short(service.new_flows_per_second),
        short(service.packets_per_second),
        short(service.dropped_per_second),
    ]
}

/// With totals, and why packets were not simply forwarded.
fn draw_wide(services: &[Service]) -> String {
    let more = ["NEW", "PKT", "BYTES", "REPLIES", "REASONS"];
    table(
        HEADER.into_iter().chain(more),
        services.iter().map(|service| {
            let reasons: Vec<_> = service
                .reasons
                .iter()
                .map(|count| format!("{}={}", count.reason, count.packets))
                .collect();
            row(service).into_iter().chain([
                service.new_flows.to_string(),
                service.packets.to_string(),
                short(service.bytes as f64),
                service.replies.to_string(),
                or_dash((!reasons.is_empty()).then(|| reasons.join(","))),
            ])
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::ReasonCount;

    fn service() -> Service {
        Service {
            name: "default/web".into(),
            frontend: "192.0.2.10:443/tcp".into(),
            mode: "nat".into(),
            affinity_seconds: Some(10_800),
            ready: 2,
            drain: 1,
            down: 0,
            new_flows_per_second: 410.2,
            packets_per_second: 96_011.0,
            dropped_per_second: 0.0,
            new_flows: 1205,
            packets: 96_500,
            bytes: 5_400_000,
            replies: 90_000,
            reasons: vec![ReasonCount {
                reason: "no_flow".into(),
                kind: "passed".into(),
                packets: 3,
            }],
        }
    }

    #[test]
    fn the_table_is_the_documented_one() {
        assert_eq!(
            draw(&[service()]),
            "\
NAME         FRONTEND            MODE  AFFINITY  READY  DRAIN  DOWN  NEW/s  PKT/s  DROP/s
default/web  192.0.2.10:443/tcp  nat   3h        2      1      0     410    96k    0"
        );
    }

    #[test]
    fn wide_says_why_packets_were_not_forwarded() {
        let text = draw_wide(&[service()]);
        assert!(
            text.ends_with("1205  96500  5.4M   90000    no_flow=3"),
            "{text}"
        );
    }
}
