//! Frames for the host's build of the packet path, which keeps its flows from one to the next, and tables that no agent
//! has written.

use std::cell::RefCell;

use lb_common::{
    abi::{Backend, NextHop, Segment, Service, Settings},
    bytes::{Addr, Be16},
    pipeline::{self, Scratch, Verdict},
    sim::{Frame, World},
};

use super::{input::Input, sound::is_sound};
use crate::{both, world};

/// Longest frame: a jumbo frame's.
const LONGEST: usize = 9216;

/// Frames of one input at most: what takes longer finds nothing that others do not.
const MOST: usize = 64;

/// What stands in front of a packet that grows, or around the one it is answered with, is no longer than this.
const ROOM: usize = 128;

/// MAC and index of the interface that frames come in by, and of the other one.
const UPLINKS: [([u8; 6], u32); 2] = [([2, 0, 0, 0, 0, 0xa0], 2), ([2, 0, 0, 0, 0, 0xa1], 3)];

const HZ: u32 = 1000;

thread_local! {
    static FRESH: RefCell<(World, Settings)> = RefCell::new(fresh());
}

/// The world of the other packet tests.
fn fresh() -> (World, Settings) {
    let ops = world::ops(HZ, UPLINKS);
    let mut world = world::simulate(&ops);
    // Made anew for each input: what is zero is as good as not there.
    world.filter.retain(|_, word| *word != 0);
    let (mac, ifindex) = UPLINKS[0];
    both::routes(&mut world, ifindex, mac);
    (world, world::settings(HZ))
}

/// Records, each behind a byte that says of what kind.
///
/// 0 to 9: a frame, behind its length (16 bits). 10: an answer to the frame that left last. 11: time passes. 12 to 15:
/// a service, backend, next hop, slot or member is garbage from now on.
pub(super) fn run(bytes: &[u8]) {
    play(bytes);
}

/// What is there in the end.
fn play(bytes: &[u8]) -> Path {
    let (world, settings) = FRESH.with_borrow(Clone::clone);
    let mut input = Input(bytes);
    let knobs = input.u8();
    let mut path = Path {
        world,
        settings,
        left: None,
        both_ways: false,
        leaves: false,
        garbled: false,
    };
    path.world.at_tc = knobs & 1 != 0;
    path.both_ways = knobs & 4 != 0;
    if knobs & 2 != 0 {
        path.world.reject_tokens.set(1);
        path.world.flow_tokens.set(1);
        path.world.fragment_tokens.set(1);
    }
    let mut frames = 0;
    while !input.is_empty() && frames < MOST {
        match input.u8() & 15 {
            0..10 => {
                let length = usize::from(input.u16()).min(LONGEST);
                frames += 1;
                path.take(input.bytes(length));
            }
            10 => {
                frames += 1;
                if let Some(answer) = path.answer() {
                    path.take(&answer);
                }
            }
            11 => path.world.now = path.world.now.wrapping_add(input.u32().into()),
            kind => path.garble(kind, &mut input),
        }
    }
    path
}

struct Path {
    world: World,
    settings: Settings,
    /// The frame that left last.
    left: Option<Vec<u8>>,
    /// Every other frame leaves the host, behind the stack.
    both_ways: bool,
    leaves: bool,
    /// The tables are no agent's any more: a frame that leaves need not be sound.
    garbled: bool,
}

impl Path {
    /// What the path does with a frame, and whether it may.
    fn take(&mut self, bytes: &[u8]) {
        let mut frame = Frame {
            bytes: bytes.to_vec(),
            ingress: UPLINKS[0].1,
        };
        self.world.steps.borrow_mut().clear();
        let before = self.counted();
        let mut scratch = Scratch::default();
        self.leaves = self.both_ways && !self.leaves;
        let (world, settings) = (&self.world, &self.settings);
        let verdict = if self.leaves {
            pipeline::egress_reply(&mut frame, world, settings, &mut scratch)
        } else {
            pipeline::process(&mut frame, world, settings, &mut scratch)
        };
        let counted = self.counted() - before;
        let steps = self.world.steps.borrow();
        match verdict {
            Verdict::NotOurs => {
                assert_eq!(frame.bytes, bytes, "changed, and not ours: {steps:?}");
                assert_eq!(counted, 0, "{steps:?}");
            }
            Verdict::Pass(reason) => {
                assert_eq!(frame.bytes, bytes, "changed, and passed: {steps:?}");
                assert!(reason.passes(), "{reason:?}");
                assert_eq!(counted, 1, "{reason:?} after {steps:?}");
            }
            Verdict::Drop(reason) => {
                assert!(!reason.passes(), "{reason:?}");
                assert_eq!(counted, 1, "{reason:?} after {steps:?}");
            }
            Verdict::Transmit
            | Verdict::Redirect { .. }
            | Verdict::Neighbour { .. }
            | Verdict::Rewritten => {
                let (came, leaves) = (bytes.len(), frame.bytes.len());
                assert!(leaves >= 34, "{came} bytes left as {leaves}: {steps:?}");
                assert!(
                    leaves <= came + ROOM,
                    "{came} bytes left as {leaves}: {steps:?}"
                );
                assert!(counted <= 1, "{steps:?}");
                assert!(
                    self.garbled || !is_sound(bytes) || is_sound(&frame.bytes),
                    "{steps:?}\n{bytes:02x?}\nleft as\n{:02x?}",
                    frame.bytes
                );
                drop(steps);
                self.left = Some(frame.bytes);
            }
        }
    }

    /// Reasons counted so far.
    fn counted(&self) -> u64 {
        self.world.reasons.borrow().values().sum()
    }

    /// The frame that left last with its ends exchanged, as its receiver would send one back: no checksum changes by
    /// that.
    fn answer(&self) -> Option<Vec<u8>> {
        let mut frame = self.left.clone()?;
        // Addresses, and the offset of the ports where there are no options.
        let (from, length, ports) = match frame.get(12..14)? {
            [8, 0] => (26, 4, 34),
            [0x86, 0xdd] => (22, 16, 54),
            _ => return None,
        };
        let mut exchange = |at: usize, length: usize| {
            let ends = frame.get_mut(at..at + 2 * length)?;
            ends.rotate_left(length);
            Some(())
        };
        exchange(0, 6)?;
        exchange(from, length)?;
        exchange(ports, 2)?;
        Some(frame)
    }

    fn garble(&mut self, kind: u8, input: &mut Input<'_>) {
        self.garbled = true;
        let world = &mut self.world;
        let id = u32::from(input.u8() & 15);
        match kind {
            12 => {
                let service = Service {
                    table: input.u64(),
                    members: input.u64(),
                    flags: input.u64(),
                    reserved: 0,
                };
                world.services.insert(id, service);
            }
            13 => {
                let backend = Backend {
                    address: address(input),
                    source: address(input),
                    target: address(input),
                    port: Be16::new(input.u16()),
                    mode: input.u8(),
                    pad: 0,
                    generation: input.u32(),
                    next_hop: input.u32(),
                    state: input.u32(),
                };
                world.backends.insert(id, backend);
            }
            14 => {
                let next_hop = NextHop {
                    destination: input.u64(),
                    source: input.u64(),
                    segment: Segment {
                        ifindex: input.u32(),
                        tags: input.u32(),
                    },
                    gateway: address(input),
                };
                world.next_hops.insert(id, next_hop);
            }
            _ => {
                let slots = &mut world.slots;
                let words = if id & 1 == 0 {
                    slots
                } else {
                    &mut world.members
                };
                words.insert(input.u16().into(), input.u64());
            }
        }
    }
}

fn address(input: &mut Input<'_>) -> Addr {
    Addr([input.u32(), input.u32(), input.u32(), input.u32()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_get_deep_into_the_path() {
        let v4 = play(include_bytes!("../../fuzz/corpus/frames/nat-v4"));
        assert!(v4.left.is_some_and(|frame| is_sound(&frame)));
        assert!(!v4.world.v4.established.borrow().is_empty());
        let v6 = play(include_bytes!("../../fuzz/corpus/frames/nat-v6"));
        assert!(!v6.world.v6.established.borrow().is_empty());
        let garbage = play(include_bytes!("../../fuzz/corpus/frames/garbage-tables"));
        let probes: [&[u8]; 2] = [
            include_bytes!("../../fuzz/corpus/frames/probe-v4"),
            include_bytes!("../../fuzz/corpus/frames/probe-v6"),
        ];
        for probe in probes {
            let answered = play(probe).left.expect("an answer");
            assert!(is_sound(&answered) && answered.len() < probe.len());
        }
        assert!(garbage.garbled);
        assert!(garbage.counted() > 0);
    }
}
