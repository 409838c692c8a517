//! `millrace status`: the node at a glance.

use std::{
    cell::Cell,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    Exit, Failure, Global, client, detach,
    show::show,
    table::{age, or_dash, percent, short, table},
};
use crate::{
    attach::{self, DEFAULT_PIN_ROOT},
    observe::{offline, view::Status},
    state::{Announced, Announcement, Attached, Bypass, NO_UPLINK, SourceState},
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Folder of the pins, for when no agent runs
    #[arg(long, value_name = "PATH", env = "MILLRACE_PIN_ROOT", default_value = DEFAULT_PIN_ROOT)]
    pin_root: PathBuf,
}

/// Without an agent what the pins tell is shown, and the end is that of no agent all the same.
pub(super) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let no_agent = Cell::new(None);
    show(
        global,
        || match client::get(&global.socket, "/v1/status") {
            Err(failure) if failure.exit == Exit::NoAgent => match pinned(&args.pin_root)? {
                Some(status) => {
                    no_agent.set(Some(failure));
                    Ok(status)
                }
                None => Err(failure),
            },
            answer => answer,
        },
        draw,
    )?;
    no_agent.take().map_or(Ok(Exit::Ok), Err)
}

fn pinned(pin_root: &Path) -> Result<Option<Status>, Failure> {
    let seen = attach::look(pin_root).map_err(detach::failure)?;
    let status = seen.map(|seen| offline::status(&seen)).transpose();
    Ok(status.context("pinned maps")?)
}

fn draw(status: &Status, _wide: bool) -> String {
    let agent = match status.up_seconds {
        Some(seconds) => format!("agent up {}", age(seconds)),
        None => "agent down".to_owned(),
    };
    let bypass = bypass(status);
    let mut text = format!(
        "{}  v{} abi {}  kernel {}  {agent}  bypass {bypass}\n",
        status.node, status.version, status.abi, status.kernel
    );
    let mut add = |part: String| {
        if writeln!(text, "{part}").is_err() {
            unreachable!("writing to a string");
        }
    };
    add(table(
        [
            "INTERFACE",
            "DRIVER",
            "MTU",
            "XDP",
            "VIPS",
            "RX/s",
            "TX/s",
            "DROP/s",
        ],
        status.interfaces.iter().map(|interface| {
            [
                interface.name.clone(),
                or_dash((!interface.driver.is_empty()).then_some(&interface.driver)),
                interface.mtu.to_string(),
                attached(&interface.attached).to_owned(),
                interface.vips.to_string(),
                short(interface.rx_per_second),
                short(interface.tx_per_second),
                short(interface.dropped_per_second),
            ]
        }),
    ));
    if !status.sources.is_empty() {
        add(table(
            ["SOURCE", "STATE", "AGE", "OBJECTS", "SKIPPED"],
            status.sources.iter().map(|source| {
                [
                    source.name.clone(),
                    source_state(source.state).to_owned(),
                    age(source.age_seconds),
                    source.objects.to_string(),
                    source.skipped.to_string(),
                ]
            }),
        ));
    }
    add(table(
        ["MAP", "USED", "MAX", "USE"],
        status.maps.iter().map(|map| {
            [
                map.name.clone(),
                map.used.to_string(),
                map.max.to_string(),
                percent(map.used as f64 / map.max.max(1) as f64, 0),
            ]
        }),
    ));
    add_announcements(&status.announcements, &mut add);
    if status.up_seconds.is_some() && status.interfaces.is_empty() {
        add(NO_UPLINK.to_owned());
    }
    for interface in &status.interfaces {
        if let Attached::Refused { why } = &interface.attached {
            add(format!("{}: {why}", interface.name));
        }
    }
    for source in &status.sources {
        if let Some(error) = &source.error {
            add(format!("{}: {error}", source.name));
        }
    }
    for skipped in &status.skipped {
        add(format!(
            "{} {}: {} [{}]",
            skipped.kind, skipped.object, skipped.message, skipped.reason
        ));
    }
    text
}

fn bypass(status: &Status) -> String {
    let reason = match status.bypass_reason {
        Some(Bypass::Command) => None,
        Some(Bypass::Unconfirmed) => Some("the trial was not confirmed".to_owned()),
        Some(Bypass::Silent) => Some(match status.silent_seconds {
            Some(seconds) => format!("the agent is silent for {}", age(seconds)),
            None => "the agent is silent".to_owned(),
        }),
        None => status
            .trial_seconds
            .map(|seconds| format!("on trial for {}: `millrace confirm`", age(seconds))),
    };
    let switch = if status.bypass { "on" } else { "off" };
    match reason {
        Some(reason) => format!("{switch} ({reason})"),
        None => switch.to_owned(),
    }
}

/// A row each, those first that need someone's eye; of a long list not all.
fn add_announcements(announcements: &[Announcement], add: &mut impl FnMut(String)) {
    const MOST: usize = 20;
    if announcements.is_empty() {
        return;
    }
    let mut sorted: Vec<_> = announcements.iter().collect();
    sorted.sort_by_key(|one| matches!(one.state, Announced::Announced { claimed_by: None }));
    let rows = sorted.iter().take(MOST).map(|one| {
        let state = match &one.state {
            Announced::Probing => "asking for others".to_owned(),
            Announced::Announced { claimed_by: None } => "announced".to_owned(),
            Announced::Announced {
                claimed_by: Some(mac),
            } => format!("announced, and claimed by {mac}"),
            Announced::Conflict { with } => format!("not announced: {with} has it"),
        };
        [one.address.to_string(), one.interface.clone(), state]
    });
    add(table(["VIP", "INTERFACE", "LAN"], rows));
    if let Some(more) = sorted.len().checked_sub(MOST).filter(|more| *more > 0) {
        add(format!("and {more} more; `-o json` has all"));
    }
}

fn attached(attached: &Attached) -> &'static str {
    match attached {
        Attached::Native => "native",
        Attached::Generic => "generic",
        Attached::Missing => "missing",
        Attached::Refused { .. } => "refused",
    }
}

fn source_state(state: SourceState) -> &'static str {
    match state {
        SourceState::Waiting => "waiting",
        SourceState::Synced => "synced",
        SourceState::Stale => "stale",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        observe::view::{Interface, Map, Source},
        state::Skipped,
    };

    #[test]
    fn the_picture_is_the_documented_one() {
        let status = Status {
            node: "lb-1".into(),
            version: "0.1.0".into(),
            abi: 1,
            kernel: "6.1.0-28".into(),
            up_seconds: Some(273_600),
            bypass: false,
            bypass_reason: None,
            trial_seconds: None,
            silent_seconds: None,
            interfaces: vec![Interface {
                name: "eth0".into(),
                driver: "mlx5_core".into(),
                mtu: 1500,
                attached: Attached::Native,
                vips: 2,
                rx_per_second: 412_000.0,
                tx_per_second: 398_000.0,
                dropped_per_second: 12.0,
            }],
            sources: vec![Source {
                name: "lb.yaml".into(),
                state: SourceState::Stale,
                age_seconds: 120,
                objects: 3,
                skipped: 0,
                error: Some("lb.yaml:3:1: unknown field `servces`".into()),
            }],
            skipped: vec![Skipped {
                kind: "Service".into(),
                object: "default/dns".into(),
                reason: "UnsupportedProtocol".into(),
                message: "port 36412 is SCTP, which is left to kube-proxy; TCP and UDP are served"
                    .into(),
            }],
            maps: vec![Map {
                name: "flows".into(),
                used: 18_331,
                max: 1_048_576,
            }],
            announcements: [
                ("192.0.2.10", Announced::Announced { claimed_by: None }),
                (
                    "2001:db8::10",
                    Announced::Conflict {
                        with: "02:00:00:00:00:07".into(),
                    },
                ),
            ]
            .map(|(address, state)| Announcement {
                interface: "eth0".into(),
                address: address.parse().unwrap(),
                state,
                announcements: 5,
            })
            .into(),
        };
        assert_eq!(
            draw(&status, false),
            "\
lb-1  v0.1.0 abi 1  kernel 6.1.0-28  agent up 3d4h  bypass off
INTERFACE  DRIVER     MTU   XDP     VIPS  RX/s  TX/s  DROP/s
eth0       mlx5_core  1500  native  2     412k  398k  12
SOURCE   STATE  AGE  OBJECTS  SKIPPED
lb.yaml  stale  2m   3        0
MAP    USED   MAX      USE
flows  18331  1048576  2%
VIP           INTERFACE  LAN
2001:db8::10  eth0       not announced: 02:00:00:00:00:07 has it
192.0.2.10    eth0       announced
lb.yaml: lb.yaml:3:1: unknown field `servces`
Service default/dns: port 36412 is SCTP, which is left to kube-proxy; TCP and UDP are served [UnsupportedProtocol]
"
        );
    }
}
