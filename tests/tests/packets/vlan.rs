//! VLANs: tags come off, are put on and are changed for others, in each direction and mode; and the ports of a bond.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{Hop, Mode, Reason, Segment, tag},
    bytes::{Address as _, Macs, V4},
    pipeline::{self, Scratch, Step, Verdict},
    sim::Frame,
    tables::Route,
};
use lb_tests::{
    both::{Both, Outcome},
    neighbours::{BROADCAST, arp},
    netns::run,
};
use lb_userspace::plan::Op;

use super::{
    Kind, Packet, assert_checksums,
    stateful::{self, answer},
    with_own_both,
};

/// Where clients are, and VIPs of `ipip`, `l2` and `nat`.
const ENDS: [(&str, [&str; 3]); 2] = [
    ("198.51.100.", ["192.0.2.11", "192.0.2.12", "192.0.2.10"]),
    (
        "2001:db8:9::",
        ["2001:db8::11", "2001:db8::12", "2001:db8::10"],
    ),
];

/// Two of the services go by the client's address alone.
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=250;

/// As the tables have tags, and as they lie in a frame: none, one, two, and one of the other type.
fn kinds() -> [(u32, Vec<u8>); 4] {
    let (customer, service) = ([0x81, 0, 0, 7], [0x88, 0xa8, 0x0f, 0xa0]);
    [
        (0, Vec::new()),
        (tag(7, false), customer.to_vec()),
        (
            tag(7, false) << 16 | tag(4000, true),
            [service, customer].concat(),
        ),
        (tag(4000, true), service.to_vec()),
    ]
}

/// Puts tags behind the MACs.
fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// Takes them off; an error if they are others.
fn untagged(frame: &[u8], tags: &[u8]) -> Result<Vec<u8>> {
    let (start, rest) = frame.split_at(12);
    let rest = rest
        .strip_prefix(tags)
        .with_context(|| format!("{frame:02x?}: not {tags:02x?}"))?;
    ensure!(
        [[8, 0], [0x86, 0xdd]].contains(&[rest[0], rest[1]]),
        "{frame:02x?}: more than {tags:02x?}"
    );
    Ok([start, rest].concat())
}

fn leaves(outcome: &Outcome) -> bool {
    matches!(
        outcome.verdict,
        Verdict::Transmit | Verdict::Redirect { .. }
    )
}

/// Gives the next hops of both interfaces these tags.
fn tag_next_hops(both: &mut Both, tags: u32) -> Result<()> {
    for id in [1, 2] {
        both.change_next_hop(id, |next| next.segment.tags = tags)?;
    }
    Ok(())
}

#[test]
fn a_packet_leaves_with_the_tags_of_its_next_hop_whatever_it_came_with() -> Result<()> {
    with_own_both(|both| {
        for (network, vips) in ENDS {
            for vip in &vips[..2] {
                // Those whose backends are behind our own next hops, one on either interface.
                let mut packets = Vec::new();
                for number in CLIENTS.take(40) {
                    let client = format!("{network}{number}");
                    let packet = Packet::new((&client, 1024), (vip, 80), Kind::Ack);
                    let frame = packet.frame(both);
                    let outcome = both.run(&frame)?;
                    if leaves(&outcome) && outcome.frame[..5] == [2, 0, 0, 9, 0] {
                        packets.push((frame, outcome));
                    }
                }
                for redirects in [false, true] {
                    let is = |verdict| (verdict != Verdict::Transmit) == redirects;
                    ensure!(packets.iter().any(|(_, outcome)| is(outcome.verdict)));
                }
                for (tags, bytes) in kinds() {
                    tag_next_hops(both, tags)?;
                    for (_, came) in kinds() {
                        for (frame, plain) in &packets {
                            let outcome = both.run(&tagged(frame, &came))?;
                            assert_eq!(outcome.verdict, plain.verdict);
                            assert_eq!(outcome.frame, tagged(&plain.frame, &bytes));
                        }
                    }
                }
                tag_next_hops(both, 0)?;
            }
        }
        Ok(())
    })
}

#[test]
fn an_answer_of_our_own_keeps_the_tags() -> Result<()> {
    with_own_both(|both| {
        tag_next_hops(both, tag(9, false))?;
        for (network, [vip, ..]) in ENDS {
            let client = format!("{network}8");
            for kind in [Kind::Syn, Kind::Udp] {
                let frame = Packet::new((&client, 1024), (vip, 81), kind).frame(both);
                let plain = both.run(&frame)?;
                assert_eq!(plain.reason(), Some(Reason::UnknownPort));
                for (_, tags) in kinds() {
                    let outcome = both.run(&tagged(&frame, &tags))?;
                    assert_eq!(outcome.frame, tagged(&plain.frame, &tags));
                }
            }
        }
        Ok(())
    })
}

/// A flow of `nat`: client and VIP.
type Ends = ((String, u16), &'static str);

fn of(((client, port), vip): &Ends, kind: Kind) -> Packet {
    Packet::new((client, *port), (vip, 443), kind)
}

/// One whose backend is behind our own next hops, and that has no entries but closed ones. `port` makes it another.
fn nearby(both: &mut Both, (network, vips): (&str, [&'static str; 3]), port: u16) -> Result<Ends> {
    for number in CLIENTS {
        let ends = ((format!("{network}{number}"), port), vips[2]);
        if begins(both, &ends)? {
            return Ok(ends);
        }
    }
    anyhow::bail!("no backend nearby")
}

/// Whether it is such a one.
fn begins(both: &mut Both, ends: &Ends) -> Result<bool> {
    let outcome = both.run(&of(ends, Kind::Syn).frame(both))?;
    let found = leaves(&outcome) && outcome.frame[..5] == [2, 0, 0, 9, 0];
    if found {
        both.run(&of(ends, Kind::Rst).frame(both))?;
    }
    Ok(found)
}

/// Runs a flow: the client's packets come with the tags `client`, the backend's with `backend`. The packets that left in
/// either direction: that to the backend without the tags that it has to have.
fn flow(
    both: &mut Both,
    ends: &Ends,
    (client, backend): (&[u8], &[u8]),
    to_backend: &[u8],
) -> Result<(Vec<u8>, Outcome)> {
    let syn = both.run(&tagged(&of(ends, Kind::Syn).frame(both), client))?;
    ensure!(leaves(&syn), "{:?}", syn.verdict);
    let there = untagged(&syn.frame, to_backend)?;
    assert_checksums(&there);
    let reply = answer(&there, Kind::SynAck).frame(both);
    let reply = both.run(&tagged(&reply, backend))?;
    ensure!(leaves(&reply), "{:?}", reply.verdict);
    Ok((there, reply))
}

#[test]
fn nat_translates_between_segments_in_both_directions() -> Result<()> {
    with_own_both(|both| {
        let mut port = 1024;
        for ends in ENDS {
            // By the kernel's route the clients are on the untagged segment, whatever the backends' packets come with.
            for (tags, bytes) in kinds() {
                tag_next_hops(both, tags)?;
                for (_, came) in kinds() {
                    port += 1;
                    let ends = nearby(both, ends, port)?;
                    let (_, back) = flow(both, &ends, (&came, &bytes), &bytes)?;
                    assert_checksums(&untagged(&back.frame, &[])?);
                    let gateway = [2, 0, 0, 0, 0, 0xfe];
                    assert_eq!(back.frame[..6], gateway, "the kernel's");
                }
            }
        }
        Ok(())
    })
}

/// The kernel says nothing of the way to clients any more.
fn forget_routes(both: &mut Both) -> Result<()> {
    both.host.v4.routes.clear();
    both.host.v6.routes.clear();
    for name in [
        "net.ipv4.ip_forward",
        "net.ipv4.conf.all.forwarding",
        "net.ipv6.conf.all.forwarding",
    ] {
        run(Command::new("sysctl").args(["-qw", &format!("{name}=0")]))?;
    }
    Ok(())
}

#[test]
fn without_a_route_replies_go_to_the_segment_that_the_client_is_on() -> Result<()> {
    with_own_both(|both| {
        forget_routes(both)?;
        let mut port = 1024;
        for ends in ENDS {
            for (tags, bytes) in kinds() {
                tag_next_hops(both, tags)?;
                for (_, came) in kinds() {
                    port += 1;
                    let ends = nearby(both, ends, port)?;
                    let (_, back) = flow(both, &ends, (&came, &bytes), &bytes)?;
                    let router = [2, 0, 0, 0, 0, 1];
                    assert_eq!(back.frame[..6], router, "the client's");
                    assert_checksums(&untagged(&back.frame, &came)?);
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_flow_whose_backend_left_goes_on_to_the_segment_that_its_replies_come_from() -> Result<()> {
    with_own_both(|both| {
        forget_routes(both)?;
        for (at, (_, tags)) in (0..).zip(kinds()) {
            let ends = nearby(both, ENDS[0], 1024 + at)?;
            let (there, _) = flow(both, &ends, (&[], &tags), &[])?;
            let ack = of(&ends, Kind::Ack).frame(both);
            let id = both.run(&ack)?.backend().context("a backend")?;
            let mut value = both.host.backends[&id];
            value.generation += 1;
            both.host.backends.insert(id, value);
            both.apply(&[Op::Backend { id, value }])?;
            let outcome = both.run(&ack)?;
            ensure!(leaves(&outcome), "{:?}", outcome.verdict);
            let left = untagged(&outcome.frame, &tags)?;
            assert_eq!(stateful::ends(&left), stateful::ends(&there));
            assert_checksums(&left);
        }
        Ok(())
    })
}

#[test]
fn a_route_over_a_vlan_device_is_taken_with_its_tags() -> Result<()> {
    const CLIENT: &str = "10.1.0.9";
    const VIP: &str = ENDS[0].1[2];
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x59];
    with_own_both(|both| {
        // The kernel here has no VLAN devices: eth1 stands for one upon eth0.
        run(Command::new("ip").args(
            "neigh add 10.1.0.9 lladdr 02:00:00:00:00:59 dev eth1 nud permanent".split(' '),
        ))?;
        let [(_, ingress), (own, device)] = both.uplinks;
        let address = V4::from_addr(&super::ip(CLIENT).into());
        let known = both
            .host
            .v4
            .routes
            .iter()
            .find_map(|(_, _, route)| match route {
                Route::Hop { mtu, .. } => Some(*mtu),
                _ => None,
            });
        let mut ports = 1024..;
        for (tags, bytes) in kinds().into_iter().skip(1) {
            let segment = Segment {
                ifindex: ingress,
                tags,
            };
            let route = Route::Hop {
                hop: Hop {
                    segment,
                    macs: Macs::new(MAC, own),
                },
                mtu: known.context("a route")?,
                gateway: address.to_addr(),
            };
            both.host.v4.routes.insert(0, (address, 32, route));
            let ifindex = device;
            both.apply(&[
                Op::RemoveSegment { ifindex },
                Op::InsertSegment { ifindex, segment },
            ])?;
            for (_, came) in kinds() {
                let ends = loop {
                    let port = ports.next().context("a port")?;
                    let ends = ((CLIENT.to_owned(), port), VIP);
                    if begins(both, &ends)? {
                        break ends;
                    }
                };
                let (_, back) = flow(both, &ends, (&[], &came), &[])?;
                let macs = (&back.frame[..6], &back.frame[6..12]);
                assert_eq!(macs, (&MAC[..], &own[..]));
                assert_checksums(&untagged(&back.frame, &bytes)?);
            }
        }
        Ok(())
    })
}

#[test]
fn the_last_hop_of_a_bonds_client_is_the_bond() -> Result<()> {
    with_own_both(|both| {
        forget_routes(both)?;
        // eth1 stands for the bond that eth0 is a port of.
        let [(_, port), (_, bond)] = both.uplinks;
        let segment = Segment {
            ifindex: port,
            tags: 0,
        };
        both.insert_interface(segment, bond)?;
        let mut port = 1024;
        for ends in ENDS {
            for (_, came) in kinds() {
                port += 1;
                let ends = nearby(both, ends, port)?;
                let (_, back) = flow(both, &ends, (&came, &[]), &[])?;
                assert_eq!(back.verdict, Verdict::Redirect { ifindex: bond });
                assert_checksums(&untagged(&back.frame, &came)?);
            }
        }
        Ok(())
    })
}

#[test]
fn a_question_is_answered_where_the_vip_is_announced() -> Result<()> {
    with_own_both(|both| {
        let (mac, ingress) = both.uplinks[0];
        let vlan = 77;
        let (tags, bytes) = kinds()[2].clone();
        let segment = Segment {
            ifindex: ingress,
            tags,
        };
        both.insert_interface(segment, vlan)?;
        let target = "192.0.2.12".parse()?;
        let question = arp(
            BROADCAST,
            etherparse::ArpOperation::REQUEST,
            "192.0.2.77".parse()?,
            target,
        );
        let question = tagged(&question, &bytes);
        assert_eq!(both.run(&question)?.verdict, Verdict::NotOurs);
        both.announce(vlan, target, mac)?;
        let outcome = both.run(&question)?;
        assert_eq!(outcome.reason(), Some(Reason::Neighbour));
        assert_eq!(&outcome.frame[12..20], bytes);
        both.check_announced()
    })
}

#[test]
fn the_stack_sends_what_is_for_a_vlan_device_by_that() -> Result<()> {
    with_own_both(|both| {
        let (_, ingress) = both.uplinks[0];
        let segment = |tags| Segment {
            ifindex: ingress,
            tags,
        };
        let (known, unknown) = (tag(7, false), tag(8, false));
        both.insert_interface(segment(known), 77)?;
        both.host.at_tc = true;
        for (tags, expected) in [
            (0, Verdict::Neighbour { ifindex: ingress }),
            (known, Verdict::Neighbour { ifindex: 77 }),
            (unknown, Verdict::Drop(Reason::NoRoute)),
        ] {
            both.change_next_hop(1, |next| next.segment = segment(tags))?;
            let (network, vip) = (ENDS[0].0, ENDS[0].1[1]);
            let mut met = false;
            for number in CLIENTS {
                let client = format!("{network}{number}");
                let packet = Packet::new((&client, 1024), (vip, 80), Kind::Ack);
                let mut frame = Frame {
                    bytes: packet.frame(both),
                    ingress,
                };
                both.host.steps.borrow_mut().clear();
                let mut scratch = Scratch::default();
                let verdict =
                    pipeline::process(&mut frame, &both.host, &both.settings, &mut scratch);
                let steps = both.host.steps.borrow();
                let to_first = steps.iter().any(|step| {
                    matches!(step, Step::Backend { id: 11, mode } if *mode == Mode::L2 as u8)
                });
                if to_first {
                    assert_eq!(verdict, expected);
                    met = true;
                }
            }
            ensure!(met, "backend 11 was not met");
        }
        // The kernel has not seen these.
        both.host.reasons.borrow_mut().clear();
        Ok(())
    })
}
