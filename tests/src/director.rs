//! The other node: the same services, with the backends of this node behind tunnels, and those behind tunnels here on it.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use lb_common::{
    abi::{Frontend, FrontendKey, Mode, Settings, filter_bit, service_flag},
    bytes::{Addr, Address as _, Be16, V4, V6},
    pipeline::{self, Scratch, Verdict},
    sim::{Frame, World},
};
use lb_userspace::plan::Op;

use crate::world::{self, FRONTENDS, OWN, PEER, TUNNEL_PORT};

const UDP: u8 = 17;

/// The other node as it sends to this one. Holds the flows that it has sent.
#[derive(Debug)]
pub struct Director {
    world: World,
    settings: Settings,
    /// Of the interface here.
    mac: [u8; 6],
}

impl Director {
    /// `outer_v4`: the family of the network between the two. `mac`: of the interface that it sends to.
    pub fn new(outer_v4: bool, mac: [u8; 6]) -> Self {
        let ops = world::ops(1000, [(mac, 2), (mac, 3)]);
        let family = usize::from(!outer_v4);
        let ends = [PEER[family], OWN[family]].map(addr);
        Self::of(&ops, world::settings(1000), ends, mac)
    }

    /// Of a node with the contents of this one. `ends`: the addresses there and here.
    pub fn of(ops: &[Op], settings: Settings, ends: [Addr; 2], mac: [u8; 6]) -> Self {
        Self {
            world: world::simulate(&tunnelled(ops, ends)),
            settings,
            mac,
        }
    }

    /// A client's frame as it arrives from there; none if it goes nowhere or elsewhere.
    pub fn send(&self, frame: &[u8]) -> Option<Vec<u8>> {
        self.world.steps.borrow_mut().clear();
        let (verdict, mut sent) = run(&self.world, &self.settings, frame);
        let sends = matches!(verdict, Verdict::Transmit | Verdict::Redirect { .. });
        if !sends || sent.len() < frame.len() + 20 {
            return None;
        }
        sent[..6].copy_from_slice(&self.mac);
        Some(sent)
    }

    /// The same of a frame that is sure to go through.
    pub fn sent(&self, frame: &[u8]) -> Result<Vec<u8>> {
        self.send(frame)
            .with_context(|| format!("not sent: {:?}", self.world.steps.borrow()))
    }
}

/// What another node's maps hold where these are in a node's own: the backends are the same, behind a tunnel. `ends`: the
/// addresses of the other node and of the one with the backends.
pub fn tunnelled(ops: &[Op], ends: [Addr; 2]) -> Vec<Op> {
    let [own, other] = ends;
    let mut ops = ops.to_vec();
    for op in &mut ops {
        if let Op::Backend { value, .. } = op
            && value.mode == Mode::Local as u8
        {
            value.target = value.address;
            (value.address, value.source) = (other, own);
            (value.mode, value.next_hop) = (Mode::Dsr as u8, 1);
        }
        if let Op::Service { value, .. } = op
            && value.flags & service_flag::SHARED != 0
        {
            value.flags |= service_flag::DSR;
        }
    }
    ops
}

/// The other node as one that this one sends to: the backends that are behind tunnels here are its own.
#[derive(Debug)]
pub struct Receiver {
    world: World,
    settings: Settings,
}

impl Receiver {
    /// `mac`: of the interface here.
    pub fn new(mac: [u8; 6]) -> Self {
        let ops = world::ops(1000, [(mac, 2), (mac, 3)]);
        let mut world = world::simulate(&ops);
        for (id, backend) in &mut world.backends {
            if backend.mode == Mode::Dsr as u8 {
                (backend.address, backend.mode) = (backend.target, Mode::Local as u8);
                let services = 1..=world::NAMES.len() as u32;
                for op in services.map(|service| world::target(service, &backend.target, *id)) {
                    match op {
                        Op::InsertTarget4 { key, id } => drop(world.v4.targets.insert(key, id)),
                        Op::InsertTarget6 { key, id } => drop(world.v6.targets.insert(key, id)),
                        _ => {}
                    }
                }
            }
        }
        let [own4, own6, other4, other6] = [PEER[0], PEER[1], OWN[0], OWN[1]].map(addr);
        let end = |own: &str| {
            let at = FRONTENDS.iter().position(|(address, ..)| *address == own);
            at.map_or(0, |at| at as u32 + 1)
        };
        let service = world::NAMES.len() as u32;
        let port = Be16::new(TUNNEL_PORT);
        let frontend = |own| Frontend {
            service,
            id: end(own),
        };
        let own = V4::from_addr(&own4);
        world
            .v4
            .frontends
            .insert(FrontendKey::new(own, port, UDP), frontend(OWN[0]));
        world.v4.sources.push((service, V4::from_addr(&other4), 32));
        let (word, bit) = filter_bit(&own);
        *world.filter.entry(word).or_default() |= bit;
        let own = V6::from_addr(&own6);
        world
            .v6
            .frontends
            .insert(FrontendKey::new(own, port, UDP), frontend(OWN[1]));
        world
            .v6
            .sources
            .push((service, V6::from_addr(&other6), 128));
        let (word, bit) = filter_bit(&own);
        *world.filter.entry(word).or_default() |= bit;
        Self {
            world,
            settings: world::settings(1000),
        }
    }

    /// What becomes there of a frame that left here.
    pub fn take(&self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        run(&self.world, &self.settings, frame)
    }
}

fn run(world: &World, settings: &Settings, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let mut frame = Frame {
        bytes: frame.to_vec(),
        ingress: 0,
    };
    let mut scratch = Scratch::default();
    let verdict = pipeline::process(&mut frame, world, settings, &mut scratch);
    (verdict, frame.bytes)
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}
