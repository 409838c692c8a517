//! The other node, as it sends to this one: the same services, with the backends of this node behind tunnels.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use lb_common::{
    abi::{Mode, Settings},
    bytes::Addr,
    pipeline::{self, Scratch, Verdict},
    sim::{Frame, World},
};

use lb_userspace::plan::Op;

use crate::world::{self, OWN, PEER};

/// Holds the flows that it has sent.
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

    /// Of a node with these contents. `ends`: the addresses there and here.
    pub fn of(ops: &[Op], settings: Settings, ends: [Addr; 2], mac: [u8; 6]) -> Self {
        let mut world = world::simulate(ops);
        let [own, other] = ends;
        for backend in world.backends.values_mut() {
            if backend.mode == Mode::Local as u8 {
                backend.target = backend.address;
                (backend.address, backend.source) = (other, own);
                (backend.mode, backend.next_hop) = (Mode::Dsr as u8, 1);
            }
        }
        Self {
            world,
            settings,
            mac,
        }
    }

    /// A client's frame as it arrives from there; none if it goes nowhere or elsewhere.
    pub fn send(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let mut frame = Frame {
            bytes: frame.to_vec(),
            ingress: 0,
        };
        let before = frame.bytes.len();
        let mut scratch = Scratch::default();
        self.world.steps.borrow_mut().clear();
        let verdict = pipeline::process(&mut frame, &self.world, &self.settings, &mut scratch);
        let sent = matches!(verdict, Verdict::Transmit | Verdict::Redirect { .. });
        if !sent || frame.bytes.len() < before + 20 {
            return None;
        }
        frame.bytes[..6].copy_from_slice(&self.mac);
        Some(frame.bytes)
    }

    /// The same of a frame that is sure to go through.
    pub fn sent(&self, frame: &[u8]) -> Result<Vec<u8>> {
        self.send(frame)
            .with_context(|| format!("not sent: {:?}", self.world.steps.borrow()))
    }
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}
