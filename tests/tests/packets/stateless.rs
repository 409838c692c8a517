//! `ipip` and `l2`.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::Result;
use etherparse::{IpNumber, PacketBuilder};
use lb_common::pipeline::Verdict;
use lb_tests::both::Both;

use super::{Kind, Packet, ip, with_both};

/// Own MACs and neighbours of the two next hops of the world.
fn hop(both: &Both, id: u8) -> ([u8; 6], [u8; 6]) {
    (both.uplinks[usize::from(id == 2)].0, [2, 0, 0, 9, 0, id])
}

/// Backends of the `ipip` service: address, and next hop (0: the kernel's routes).
const TUNNELS: [(u32, &str, u8); 4] = [
    (7, "10.0.0.11", 1),
    (8, "2001:db8:2::12", 2),
    (9, "10.0.0.13", 0),
    (10, "2001:db8:1::11", 1),
];

#[test]
fn ipip_puts_an_outer_header_of_either_family_before_either_family() -> Result<()> {
    with_both(|both| {
        for (client, vip) in [
            ("198.51.100.8", "192.0.2.11"),
            ("2001:db8:9::1", "2001:db8::11"),
        ] {
            let mut met = BTreeSet::new();
            for port in 1024..1280 {
                let mut packet = Packet::new((client, port), (vip, 80), Kind::Ack);
                let came = packet.frame(both);
                let outcome = both.run(&came)?;
                let backend = outcome.backend().expect("an owner");
                let (_, address, via) =
                    TUNNELS[TUNNELS.iter().position(|t| t.0 == backend).unwrap()];
                packet.ttl -= 1;
                let inner = packet.frame(both)[14..].to_vec();
                let (own, neighbour) = match via {
                    0 => (both.uplinks[0].0, [2, 0, 0, 0, 0, 0x13]),
                    via => hop(both, via),
                };
                assert_eq!(&outcome.frame[..6], neighbour);
                assert_eq!(
                    outcome.frame,
                    outer(own, neighbour, ip(address), &inner, &outcome.frame)
                );
                let expected = match via {
                    2 => Verdict::Redirect {
                        ifindex: both.uplinks[1].1,
                    },
                    _ => Verdict::Transmit,
                };
                assert_eq!(outcome.verdict, expected);
                met.insert(backend);
            }
            assert_eq!(met.len(), TUNNELS.len(), "all backends were met");
        }
        Ok(())
    })
}

/// The tunnel frame as etherparse builds it; the IPv6 flow label is the hash's and taken from the frame.
fn outer(own: [u8; 6], to: [u8; 6], address: IpAddr, inner: &[u8], frame: &[u8]) -> Vec<u8> {
    let protocol = if inner[0] >> 4 == 4 {
        IpNumber::IPV4
    } else {
        IpNumber::IPV6
    };
    let builder = PacketBuilder::ethernet2(own, to);
    let mut built = Vec::new();
    match address {
        IpAddr::V4(address) => {
            let mut header =
                etherparse::Ipv4Header::new(0, 64, protocol, [10, 0, 0, 1], address.octets())
                    .expect("short");
            header.dont_fragment = true;
            builder
                .ip(etherparse::IpHeaders::Ipv4(
                    header,
                    etherparse::Ipv4Extensions::default(),
                ))
                .write(&mut built, protocol, inner)
        }
        IpAddr::V6(address) => {
            let IpAddr::V6(source) = ip("2001:db8:1::1") else {
                unreachable!()
            };
            builder
                .ipv6(source.octets(), address.octets(), 64)
                .write(&mut built, protocol, inner)
        }
    }
    .expect("a vector takes it");
    if address.is_ipv6() {
        built[15] = built[15] & 0xf0 | frame[15] & 0x0f;
        built[16..18].copy_from_slice(&frame[16..18]);
    }
    built
}

/// A10.6
#[test]
fn dscp_and_ecn_are_copied_to_the_outer_header() -> Result<()> {
    with_both(|both| {
        let packet = Packet::new(("2001:db8:9::1", 1024), ("2001:db8::11", 80), Kind::Ack);
        for tos in [0x00_u8, 0xb8, 0xbb, 0x03] {
            let mut frame = packet.frame(both);
            frame[14] = 0x60 | tos >> 4;
            frame[15] = tos << 4;
            let out = both.run(&frame)?.frame;
            let outer = if out[12] == 8 {
                out[15]
            } else {
                out[14] << 4 | out[15] >> 4
            };
            assert_eq!(outer, tos, "RFC 6040, section 4.1");
        }
        Ok(())
    })
}

#[test]
fn a_flow_stays_with_its_backend_and_flows_spread() -> Result<()> {
    with_both(|both| {
        let mut owners = BTreeSet::new();
        for port in 2000..2100 {
            let packet = |kind| Packet::new(("198.51.100.8", port), ("192.0.2.11", 80), kind);
            let first = both.run(&packet(Kind::Syn).frame(both))?.backend();
            for kind in [Kind::Ack, Kind::Fin, Kind::Rst] {
                assert_eq!(both.run(&packet(kind).frame(both))?.backend(), first);
            }
            owners.insert(first);
        }
        assert_eq!(owners.len(), 4);
        Ok(())
    })
}

/// A8.2, A8.4, A8.5, A8.6
#[test]
fn affinity_looks_at_the_client_address_alone() -> Result<()> {
    with_both(|both| {
        // The second is `nat`: behind it all clients have one address.
        for (clients, vip, target) in [
            ("198.51.100.", "192.0.2.12", 80),
            ("2001:db8:9::", "2001:db8::10", 443),
        ] {
            let mut met = BTreeSet::new();
            for client in 1..30 {
                let client = format!("{clients}{client}");
                let mut owners = BTreeSet::new();
                for port in 3000..3020 {
                    let packet = Packet::new((&client, port), (vip, target), Kind::Syn);
                    owners.insert(both.run(&packet.frame(both))?.backend().expect("an owner"));
                }
                assert_eq!(owners.len(), 1, "{client} to {vip}");
                met.extend(owners);
            }
            assert!(met.len() > 1, "{vip}: clients differ");
        }
        Ok(())
    })
}

#[test]
fn l2_changes_nothing_but_the_macs() -> Result<()> {
    with_both(|both| {
        for port in 1024..1100 {
            let packet = Packet::new(("198.51.100.8", port), ("192.0.2.13", 80), Kind::Ack);
            let outcome = both.run(&packet.frame(both))?;
            let (own, neighbour) = hop(both, 1);
            assert_eq!(outcome.frame, packet.between(own, neighbour));
            assert_eq!(outcome.verdict, Verdict::Transmit);
        }
        Ok(())
    })
}
