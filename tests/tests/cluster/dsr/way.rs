//! The way of one connection's first packets to a pod of another node and back, byte by byte, as docs/dsr.md shows it.

use std::{fmt::Write as _, net::SocketAddr, ops::Range};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{Agents, Caller, Cluster, PATIENCE, vips, with_tunnels},
    datagrams::{self, LINK, headers, is_v4},
    netns::until,
    raw::Tap,
    world::TUNNEL_PORT,
};
use lb_userspace::observe::view::Outcome;
use serde_json::json;

/// Bytes of UDP's header, and of Geneve's with our option in front of the address in it.
const UDP: usize = 8;
const GENEVE: usize = 8;
const OPTION: usize = 16;

/// A frame, and where it was seen.
struct Hop {
    place: String,
    frame: Vec<u8>,
}

/// A connection's first frames, in the order of its way: the client's on its way in, in the tunnel and to the pod, the
/// pod's as it sends it and as it leaves.
struct Way {
    client: SocketAddr,
    hops: [Hop; 5],
}

#[test]
fn a_packet_to_another_node_arrives_as_it_came_and_the_answer_goes_straight_back() -> Result<()> {
    with_tunnels(|cluster, agents| {
        let space = cluster.space("way")?;
        space.servers("web", 1)?;
        let around = super::around(cluster, &space)?;
        let [entry, home] = around.each_ref().map(String::as_str);
        let pods = space.own_servers("web", home)?;
        space.service("web", &vips(153), &json!({}))?;
        for (server, pod) in agents.serve_vips(vips(153))?.into_iter().zip(pods) {
            agents.serve_wholly(entry, server)?;
            let caller = cluster.caller(cluster.address("client", server.is_ipv6())?)?;
            explained(agents, [entry, home], [caller.from, server, pod])?;
            let way = record(cluster, [entry, home], caller, [server, pod])?;
            check(&way, server, pod)?;
            for Hop { place, frame } in &way.hops {
                println!("{place}");
                for (name, part) in parts(frame) {
                    println!("    {name:9} {}", hex(&frame[part]));
                }
            }
        }
        Ok(())
    })
}

/// What the one agent says it would send is what the other one says it would take.
fn explained(
    agents: &Agents<'_>,
    [entry, home]: [&str; 2],
    [client, server, pod]: [SocketAddr; 3],
) -> Result<()> {
    let mut said = agents.explain(entry, &[client], server, "syn")?;
    let said = said.pop().context("an explanation")?;
    ensure!(said.step("mode").0 == "dsr", "{said:#?}");
    let frame = said.said.frame.as_deref().context("a frame")?;
    let there = agents.explain_frame(home, frame)?;
    ensure!(there.step("mode").0 == "local", "{there:#?}");
    for one in [&said, &there] {
        ensure!(one.said.outcome == Outcome::Forwarded, "{one:#?}");
        ensure!(one.said.backend == Some(pod), "{one:#?}");
    }
    Ok(())
}

fn record(
    cluster: &Cluster,
    [entry, home]: [&str; 2],
    caller: Caller,
    [server, pod]: [SocketAddr; 2],
) -> Result<Way> {
    let [wire, uplink, bridge] = [("router", entry), (home, "eth0"), (home, "cni0")];
    let [wire, uplink, bridge] = [
        cluster.tap(wire.0, wire.1)?,
        cluster.tap(uplink.0, uplink.1)?,
        cluster.tap(bridge.0, bridge.1)?,
    ];
    let client = caller.from;
    caller.call(server)?;
    let tunnels = |frame: &[u8]| {
        is_tunnelled(frame) && datagrams::ends(&unwrapped(frame)) == Some((client, server))
    };
    let between = |from, to| move |frame: &[u8]| datagrams::ends(frame) == Some((from, to));
    let hops = [
        (
            format!("to {entry}, as the client sent it"),
            next(&wire, between(client, server))?,
        ),
        (format!("from {entry}, in a tunnel"), next(&wire, tunnels)?),
        (
            format!("on {home}, to the pod"),
            next(&uplink, between(client, pod))?,
        ),
        (
            format!("on {home}, from the pod"),
            next(&bridge, between(pod, client))?,
        ),
        (
            format!("from {home}, to the client"),
            next(&uplink, between(server, client))?,
        ),
    ];
    Ok(Way {
        client,
        hops: hops.map(|(place, frame)| Hop { place, frame }),
    })
}

/// The first frame of this kind.
fn next(tap: &Tap, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
    until(PATIENCE, || {
        while let Some(frame) = tap.next()? {
            if wanted(&frame) {
                return Ok(frame);
            }
        }
        anyhow::bail!("no such frame")
    })
}

fn check(way: &Way, server: SocketAddr, pod: SocketAddr) -> Result<()> {
    let [came, tunnelled, arrived, answered, left] = way.hops.each_ref().map(|hop| &hop.frame);
    ensure!(
        unwrapped(tunnelled)[LINK..] == came[LINK..],
        "not as it came"
    );
    // Behind addresses and ports only the checksum differs.
    let rest = |frame: &[u8]| {
        let tcp = headers(frame);
        [&frame[tcp + 4..tcp + 16], &frame[tcp + 18..]].concat()
    };
    ensure!(rest(arrived) == rest(came), "other data for the pod");
    ensure!(datagrams::ends(arrived) == Some((way.client, pod)));
    ensure!(datagrams::ends(left) == Some((server, way.client)));
    let [offered, offers] = [answered, left].map(|frame| mss(frame));
    ensure!(offers? < offered?, "no room for a tunnel");
    Ok(())
}

/// The first option of a SYN of Linux.
fn mss(frame: &[u8]) -> Result<u16> {
    let options = &frame[headers(frame) + 20..];
    match options {
        [2, 4, high, low, ..] => Ok(u16::from_be_bytes([*high, *low])),
        _ => anyhow::bail!("{options:?}"),
    }
}

fn is_tunnelled(frame: &[u8]) -> bool {
    datagrams::ends(frame).is_some_and(|(_, to)| to.port() == TUNNEL_PORT)
}

/// Bytes between the link header and the client's packet.
fn room(frame: &[u8]) -> usize {
    let outer = headers(frame) - LINK + UDP;
    // Its option says how many words it has.
    let options = usize::from(frame[LINK + outer] & 0x3f) * 4;
    outer + GENEVE + options
}

fn unwrapped(frame: &[u8]) -> Vec<u8> {
    let mut inner = frame[..LINK].to_vec();
    let rest = frame.get(LINK + room(frame)..).unwrap_or_default();
    let v4 = rest.first().is_some_and(|first| first >> 4 == 4);
    inner[12..].copy_from_slice(if v4 { &[8, 0] } else { &[0x86, 0xdd] });
    inner.extend_from_slice(rest);
    inner
}

/// A frame's headers and where they are.
fn parts(frame: &[u8]) -> Vec<(&'static str, Range<usize>)> {
    let ip = if is_v4(frame) { "IPv4" } else { "IPv6" };
    let mut at = headers(frame);
    let mut parts = vec![("Ethernet", 0..LINK), (ip, LINK..at)];
    let mut part = |name, length| {
        parts.push((name, at..at + length));
        at += length;
    };
    if is_tunnelled(frame) {
        let inner = unwrapped(frame);
        let option = room(frame) - (headers(frame) - LINK) - UDP - GENEVE;
        part("UDP", UDP);
        part("Geneve", GENEVE);
        part("option", OPTION);
        part("target", option - OPTION);
        part(
            if is_v4(&inner) { "IPv4" } else { "IPv6" },
            headers(&inner) - LINK,
        );
    }
    part("TCP", 20);
    parts.push(("options", at..frame.len()));
    parts
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        let gap = if at > 0 && at % 2 == 0 { " " } else { "" };
        _ = write!(text, "{gap}{byte:02x}");
    }
    text
}
