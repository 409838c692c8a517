//! The kernel's home of the pipeline and the host's give every frame the same verdict and bytes, and leave the same
//! flows and counters behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
    net::SocketAddr,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{Hop, Reason, Settings, flow_state},
    bytes::{Addr, Address, Be16, V4, V6},
    pipeline::{self, Scratch, Verdict},
    sim::{Family, Frame, World},
    tables::Route,
};
use lb_tests::{
    frames::Frames,
    is_root,
    kernel::action,
    netns::Netns,
    place::Place,
    world::{self, BACKEND_IDS, FRONTEND_IDS},
};
use lb_userspace::{
    dataplane::{Dataplane as _, FlowState},
    plan::Op,
};

/// Frames compared; a tenth in the quick run. `MILLRACE_FRAMES` asks for another number.
fn frames() -> usize {
    let asked = std::env::var("MILLRACE_FRAMES")
        .ok()
        .and_then(|text| text.parse().ok());
    let quick = std::env::var_os("MILLRACE_QUICK").is_some();
    asked.unwrap_or(if quick { 10_000 } else { 100_000 })
}

/// So slow that nothing ages while the test runs: what depends on time has its tests in `packets`.
const TICKS_PER_SECOND: u32 = 1 << 26;

#[test]
fn host_and_kernel_agree_on_every_frame() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let netns = Netns::create("agree")?;
    netns.enter(|| agree(&netns))
}

fn agree(netns: &Netns) -> Result<()> {
    let mut place = Place::make(netns)?;
    let uplinks = [place.interface("eth0")?, place.interface("eth1")?];
    let (mac, ingress) = uplinks[0];
    let ops = world::ops(TICKS_PER_SECOND, uplinks);
    let settings = settings_of(&ops)?;
    place
        .installation
        .dataplane()?
        .apply(&[Op::Settings(settings)])?;
    let mut host = world::simulate(&ops);
    routes(&mut host, ingress, mac);
    let counters = place.installation.counters()?;

    let mut frames = Frames::new(0x2545_f491_4f6c_dd1d, mac);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut scratch = Scratch::default();
    let count = self::frames();
    for number in 0..count {
        let bytes = frames.make();
        let mut frame = Frame {
            bytes: bytes.clone(),
            ingress,
        };
        host.steps.borrow_mut().clear();
        let verdict = pipeline::process(&mut frame, &host, &settings, &mut scratch);
        let (did, left) = place.inject(&bytes, ingress)?;
        let same =
            action(verdict) == did && (matches!(verdict, Verdict::Drop(_)) || frame.bytes == left);
        ensure!(
            same,
            "frame {number}\n{bytes:02x?}\nhost {verdict:?}\n{:02x?}\nby {:?}\nkernel {did}\n{left:02x?}",
            frame.bytes,
            host.steps.borrow(),
        );
        if matches!(verdict, Verdict::Transmit | Verdict::Redirect { .. }) {
            frames.left(&left);
        }
        *seen.entry(format!("{verdict:?}")).or_default() += 1;
    }
    eprintln!("{count} frames, 0 mismatches: {seen:?}");

    let frontends = counters.frontends(0..FRONTEND_IDS)?;
    for (id, counted) in (0..).zip(frontends) {
        let expected = host
            .forwarded
            .borrow()
            .get(&id)
            .copied()
            .unwrap_or_default();
        ensure!(
            counted == expected,
            "frontend {id}: kernel {counted:?}, host {expected:?}"
        );
    }
    let backends = counters.backends(0..BACKEND_IDS)?;
    for (id, counted) in (0..).zip(backends) {
        let expected = host
            .backend_counts
            .borrow()
            .get(&id)
            .copied()
            .unwrap_or_default();
        ensure!(
            counted == expected,
            "backend {id}: kernel {counted:?}, host {expected:?}"
        );
    }
    for (id, counted) in (0..).zip(counters.reasons(0..FRONTEND_IDS)?) {
        for reason in Reason::ALL {
            let expected = host
                .reasons
                .borrow()
                .get(&(id, reason))
                .copied()
                .unwrap_or(0);
            let counted = counted[reason as usize];
            ensure!(
                counted == expected,
                "frontend {id}, {reason:?}: {counted} and {expected}"
            );
        }
    }
    let (kernel, host) = (flows(&place)?, simulated_flows(&host));
    let only = |a: &FlowSet, b: &FlowSet| a.difference(b).take(5).copied().collect::<Vec<_>>();
    ensure!(
        kernel == host,
        "flows only in the kernel {:?}, only on the host {:?}",
        only(&kernel, &host),
        only(&host, &kernel)
    );
    Ok(())
}

fn settings_of(ops: &[Op]) -> Result<Settings> {
    let found = ops.iter().find_map(|op| match op {
        Op::Settings(settings) => Some(*settings),
        _ => None,
    });
    found.context("settings")
}

/// What the namespace's routing table says, as [`Place`] has set it up.
fn routes(world: &mut World, ifindex: u32, mac: [u8; 6]) {
    let addr = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().expect("an address"));
    let hop = |last: u8, gateway: &str| Route::Hop {
        hop: Hop {
            ifindex,
            destination: [2, 0, 0, 0, 0, last],
            source: mac,
        },
        mtu: 1500,
        gateway: addr(gateway),
    };
    let v4 = |text: &str| V4::from_addr(&addr(text));
    let v6 = |text: &str| V6::from_addr(&addr(text));
    let neighbour = |gateway: &str| Route::Neighbour {
        ifindex,
        gateway: addr(gateway),
    };
    world.v4.routes = vec![
        (v4("10.9.0.0"), 16, Route::None),
        (v4("10.0.0.13"), 32, hop(0x13, "10.0.0.13")),
        (v4("10.0.0.77"), 32, neighbour("10.0.0.77")),
        (v4("0.0.0.0"), 0, hop(0xfe, "10.0.0.254")),
    ];
    world.v6.routes = vec![
        (v6("2001:db8:1::13"), 128, hop(0x13, "2001:db8:1::13")),
        (v6("2001:db8:1::77"), 128, neighbour("2001:db8:1::77")),
        (v6("::"), 0, hop(0xfe, "2001:db8:1::fe")),
    ];
}

/// Table, client, frontend, backend and own port of every flow.
type FlowSet = BTreeSet<(bool, [SocketAddr; 4])>;

fn flows(place: &Place) -> Result<FlowSet> {
    let mut set = FlowSet::new();
    place.installation.flows()?.each(0, |row| {
        let established = row.state != FlowState::Half;
        set.insert((
            established,
            [row.client, row.frontend, row.backend, row.nat],
        ));
        true
    })?;
    Ok(set)
}

fn simulated_flows(world: &World) -> FlowSet {
    let mut set = FlowSet::new();
    family_flows(&world.v4, &mut set);
    family_flows(&world.v6, &mut set);
    set
}

fn family_flows<A: Address + Hash>(family: &Family<A>, set: &mut FlowSet) {
    for (established, table) in [(true, &family.established), (false, &family.half_open)] {
        for (key, flow) in table.borrow().iter() {
            if flow.state & flow_state::REPLY == 0 {
                let end = |address: A, port: Be16| {
                    SocketAddr::new(address.to_addr().to_ip(), port.to_host())
                };
                set.insert((
                    established,
                    [
                        end(key.source, key.source_port),
                        end(key.destination, key.destination_port),
                        end(flow.destination, flow.destination_port),
                        end(flow.source, flow.source_port),
                    ],
                ));
            }
        }
    }
}
