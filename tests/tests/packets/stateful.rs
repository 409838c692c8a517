//! `nat`: both directions, half-open flows, what is lost and found.

use std::{
    hash::Hash,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_common::{
    abi::{Flow, Reason, Tuple, flow_state},
    bytes::{self, Address},
    pipeline::{Step, Verdict},
    sim::Family,
    tables::Route,
};
use lb_tests::{
    both::{Both, Outcome},
    datagrams,
    netns::run,
};
use lb_userspace::dataplane::FlowState;

use super::{Kind, Packet, assert_checksums, with_both};

/// Client and frontend of a flow.
pub(super) const V4: (&str, &str) = ("198.51.100.8", "192.0.2.10");
pub(super) const V6: (&str, &str) = ("2001:db8:9::1", "2001:db8::10");

/// Addresses and ports of a frame.
pub(super) fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    datagrams::ends(frame).expect("a whole packet")
}

pub(super) fn packet((client, vip): (&str, &str), port: u16, kind: Kind) -> Packet {
    Packet::new(
        (client, port),
        (vip, if kind == Kind::Udp { 53 } else { 443 }),
        kind,
    )
}

/// The first packet of a flow whose backend XDP can reach: client ports are tried from `port` on.
pub(super) fn begin(
    both: &mut Both,
    ends: (&str, &str),
    port: u16,
    kind: Kind,
) -> Result<(u16, Outcome)> {
    for port in port..port + 200 {
        let outcome = both.run(&packet(ends, port, kind).frame(both))?;
        if !matches!(outcome.verdict, Verdict::Pass(_) | Verdict::Drop(_)) {
            return Ok((port, outcome));
        }
    }
    anyhow::bail!("no backend within reach")
}

/// The backend's packet in answer to one that left for it.
pub(super) fn answer(left: &[u8], kind: Kind) -> Packet {
    let (from, to) = ends(left);
    Packet {
        from: (to.ip(), to.port()),
        to: (from.ip(), from.port()),
        kind,
        ttl: 64,
        sequence: 7000,
        acknowledged: 1001,
    }
}

#[test]
fn a_client_behind_a_device_that_only_the_stack_sends_on_is_answered_by_the_stack() -> Result<()> {
    const CLIENT: &str = "10.77.0.5";
    with_both(|both| {
        // A bridge here, a VLAN elsewhere: this kernel has none.
        for command in [
            "link add br9 type bridge",
            "link set br9 up",
            "address add 10.77.0.1/24 dev br9",
            "neigh add 10.77.0.5 lladdr 02:00:00:00:00:55 dev br9 nud permanent",
        ] {
            run(Command::new("ip").args(command.split(' ')))?;
        }
        let shown = run(Command::new("ip").args(["-o", "link", "show", "dev", "br9"]))?;
        let ifindex = shown.split(':').next().and_then(|index| index.parse().ok());
        let client: IpAddr = CLIENT.parse()?;
        let way = Route::Neighbour {
            ifindex: ifindex.context(shown.clone())?,
            gateway: client.into(),
        };
        let network = bytes::V4::from_bytes([10, 77, 0, 0]);
        both.host.v4.routes.insert(0, (network, 24, way));
        let (_, there) = begin(both, (CLIENT, V4.1), 1024, Kind::Syn)?;
        let reply = answer(&there.frame, Kind::SynAck).frame(both);
        let outcome = both.run(&reply)?;
        assert_eq!(outcome.verdict, Verdict::Pass(Reason::HandedUp));
        assert_eq!(outcome.frame, reply, "unchanged");
        Ok(())
    })
}

#[test]
fn nat_translates_there_and_back() -> Result<()> {
    with_both(|both| {
        for (flow, kind) in [
            (V4, Kind::Syn),
            (V4, Kind::Udp),
            (V6, Kind::Syn),
            (V6, Kind::Udp),
        ] {
            let (port, there) = begin(both, flow, 1024, kind)?;
            assert_checksums(&there.frame);
            let (own, backend) = ends(&there.frame);
            assert!((61_000..=65_535).contains(&own.port()));
            assert_eq!(backend.port(), 8080);
            let ttl = if own.is_ipv4() {
                there.frame[22]
            } else {
                there.frame[21]
            };
            assert_eq!(ttl, 63);

            let back = both.run(&answer(&there.frame, kind.answered()).frame(both))?;
            assert_checksums(&back.frame);
            let asked = packet(flow, port, kind);
            let (from, to) = ends(&back.frame);
            assert_eq!((from.ip(), from.port()), asked.to);
            assert_eq!((to.ip(), to.port()), asked.from);
            assert_eq!(back.verdict, Verdict::Transmit);
            assert_eq!(
                &back.frame[..6],
                [2, 0, 0, 0, 0, 0xfe],
                "by the route to the client"
            );
        }
        Ok(())
    })
}

/// A10.6
#[test]
fn a_udp_packet_without_checksum_stays_without() -> Result<()> {
    with_both(|both| {
        let (port, _) = begin(both, V4, 1024, Kind::Udp)?;
        let mut frame = packet(V4, port, Kind::Udp).frame(both);
        frame[40..42].fill(0);
        let outcome = both.run(&frame)?;
        assert_eq!(outcome.frame[40..42], [0, 0], "RFC 768");
        Ok(())
    })
}

pub(super) fn state(both: &Both, port: u16) -> Result<Option<FlowState>> {
    let mut state = None;
    both.place.installation.flows()?.each(0, |row| {
        if row.client.port() == port {
            state = Some(row.state);
        }
        true
    })?;
    Ok(state)
}

#[test]
fn a_flow_is_established_by_the_clients_ack_of_the_syn_ack() -> Result<()> {
    with_both(|both| {
        for (flow, port) in [(V4, 4000), (V6, 4500)] {
            let (port, there) = begin(both, flow, port, Kind::Syn)?;
            assert_eq!(state(both, port)?, Some(FlowState::Half));
            // An ACK before the SYN-ACK, and one that does not acknowledge it, prove nothing.
            both.run(&packet(flow, port, Kind::Ack).frame(both))?;
            assert_eq!(state(both, port)?, Some(FlowState::Half));
            both.run(&answer(&there.frame, Kind::SynAck).frame(both))?;
            let guess = Packet {
                acknowledged: 7002,
                ..packet(flow, port, Kind::Ack)
            };
            both.run(&guess.frame(both))?;
            assert_eq!(state(both, port)?, Some(FlowState::Half));
            let ack = both.run(&packet(flow, port, Kind::Ack).frame(both))?;
            assert_eq!(state(both, port)?, Some(FlowState::Established));
            assert_eq!(
                ends(&ack.frame),
                ends(&there.frame),
                "still the same port and backend"
            );
        }
        Ok(())
    })
}

/// A flow with both entries among the established ones.
pub(super) fn establish(both: &mut Both, flow: (&str, &str), port: u16) -> Result<(u16, Outcome)> {
    let (port, there) = begin(both, flow, port, Kind::Syn)?;
    both.run(&answer(&there.frame, Kind::SynAck).frame(both))?;
    both.run(&packet(flow, port, Kind::Ack).frame(both))?;
    ensure!(
        state(both, port)? == Some(FlowState::Established),
        "not established"
    );
    Ok((port, there))
}

#[test]
fn a_syn_begins_anew_only_after_both_ends_closed() -> Result<()> {
    with_both(|both| {
        let (port, there) = establish(both, V4, 5000)?;
        let again = both.run(&packet(V4, port, Kind::Syn).frame(both))?;
        assert!(again.steps.contains(&Step::Flow { known: true }));
        both.run(&packet(V4, port, Kind::Fin).frame(both))?;
        both.run(&answer(&there.frame, Kind::Fin).frame(both))?;
        assert_eq!(state(both, port)?, Some(FlowState::Closing));
        both.run(&packet(V4, port, Kind::Syn).frame(both))?;
        assert_eq!(state(both, port)?, Some(FlowState::Half));
        Ok(())
    })
}

#[test]
fn the_clients_half_is_found_again_when_lost() -> Result<()> {
    with_both(|both| {
        for (flow, port) in [(V4, 6000), (V6, 6500)] {
            let (port, there) = establish(both, flow, port)?;
            lose(both, port, false)?;
            let again = both.run(&packet(flow, port, Kind::Ack).frame(both))?;
            assert_eq!(ends(&again.frame), ends(&there.frame));
            assert_eq!(state(both, port)?, Some(FlowState::Established));
        }
        Ok(())
    })
}

#[test]
fn the_backends_half_is_put_back_by_the_clients_next_packet() -> Result<()> {
    with_both(|both| {
        for (flow, port) in [(V4, 7000), (V6, 7500)] {
            let (port, there) = establish(both, flow, port)?;
            lose(both, port, true)?;
            let gone = both.run(&answer(&there.frame, Kind::Ack).frame(both))?;
            assert_eq!(gone.verdict, Verdict::Pass(Reason::NoFlow));
            // A FIN is news for the other half at once; other packets tell it each quarter second.
            both.run(&packet(flow, port, Kind::Fin).frame(both))?;
            let back = both.run(&answer(&there.frame, Kind::Ack).frame(both))?;
            assert_eq!(ends(&back.frame).1.port(), port);
        }
        Ok(())
    })
}

#[test]
fn an_entry_is_told_of_its_other_half_each_quarter_second() -> Result<()> {
    with_both(|both| {
        let (port, there) = establish(both, V4, 8000)?;
        lose(both, port, true)?;
        // Time runs for the kernel only: the host's clock is set ahead by the same.
        let mut settings = both.settings;
        settings.hz = 8;
        both.set(settings)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let (action, left) = both
                .place
                .inject(&packet(V4, port, Kind::Ack).frame(both), both.uplinks[0].1)?;
            ensure!(action == 3 || action == 4, "forwarded: {left:02x?}");
            let reply = answer(&there.frame, Kind::Ack).frame(both);
            let (action, _) = both.place.inject(&reply, both.uplinks[0].1)?;
            if action == 3 || action == 4 {
                break;
            }
            // The host counts what the kernel counted.
            *both
                .host
                .reasons
                .borrow_mut()
                .entry((0, Reason::NoFlow))
                .or_default() += 1;
            ensure!(
                Instant::now() < deadline,
                "the reply's half did not come back"
            );
        }
        Ok(())
    })
}

/// Removes one half of the established flow of a client's port from the kernel's table and the host's.
pub(super) fn lose(both: &Both, port: u16, reply: bool) -> Result<()> {
    let maps = both.place.installation.maps();
    let lost = lose_in(&both.host.v4, &maps.join("FLOWS4"), port, reply)?
        + lose_in(&both.host.v6, &maps.join("FLOWS6"), port, reply)?;
    ensure!(lost == 1, "{lost} entries");
    Ok(())
}

fn lose_in<A: Address + Hash>(
    family: &Family<A>,
    pin: &Path,
    port: u16,
    reply: bool,
) -> Result<usize>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    let mut flows = family.established.borrow_mut();
    let client = |(key, flow): &(&Tuple<A>, &Flow<A>)| {
        let of_reply = flow.state & flow_state::REPLY != 0;
        let client = if of_reply {
            flow.destination_port
        } else {
            key.source_port
        };
        of_reply == reply && client.to_host() == port
    };
    let keys: Vec<_> = flows.iter().filter(client).map(|(key, _)| *key).collect();
    let map = Map::LruHashMap(MapData::from_pin(pin)?);
    let mut map: HashMap<_, Tuple<A>, Flow<A>> = map.try_into()?;
    for key in &keys {
        flows.remove(key);
        map.remove(key).context("the kernel has the entry, too")?;
    }
    Ok(keys.len())
}
