//! One frame, decided by the kernel and by the host over the same tables: they must agree, always.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{Announced, AnnouncedKey, Hop, Mode, NextHop, Reason, Segment, Settings},
    bytes::{Addr, Address as _, Mac, Macs, V4, V6},
    pipeline::{self, Scratch, Step, Verdict},
    sim::{Frame, World},
    tables::Route,
};
use lb_userspace::{
    dataplane::{Counters, Dataplane as _},
    plan::Op,
};

use crate::{
    kernel::{LOOPBACK, action, is_at_least},
    leftovers,
    netns::Netns,
    place::Place,
    world::{self, FRONTEND_IDS},
};

/// So slow that nothing ages while a test runs, unless it asks for that.
const TICKS_PER_SECOND: u32 = 1 << 26;

/// Both homes of the pipeline.
#[derive(Debug)]
pub struct Both {
    pub place: Place,
    pub host: World,
    pub settings: Settings,
    /// MAC and index of the interface that frames come in by, and of the other one. Where the kernel lets frames come
    /// in by `lo` only, its index stands in for the first one's in all but the kernel's own routes.
    pub uplinks: [([u8; 6], u32); 2],
    /// Index of the interface that the kernel's routes lead out by: that of the first uplink.
    routed: u32,
    counters: Counters,
    /// All that both hold.
    ops: Vec<Op>,
}

/// What became of a frame.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    /// As it leaves, or as it came where it does not.
    pub frame: Vec<u8>,
    pub steps: Vec<Step>,
}

impl Outcome {
    /// Id of the backend that got the packet.
    pub fn backend(&self) -> Option<u32> {
        self.steps.iter().rev().find_map(|step| match step {
            Step::Backend { id, .. } => Some(*id),
            _ => None,
        })
    }

    /// The reason that was counted.
    pub fn reason(&self) -> Option<Reason> {
        self.steps.iter().find_map(|step| match step {
            Step::End(reason) => Some(*reason),
            _ => None,
        })
    }
}

impl Both {
    /// In the namespace of the calling thread, which is `netns`.
    pub fn new(netns: &Netns) -> Result<Self> {
        let place = Place::make(netns)?;
        let mut uplinks = [place.interface("eth0")?, place.interface("eth1")?];
        let (mac, routed) = uplinks[0];
        // `BPF_PROG_TEST_RUN` takes the interface that a frame comes in by since 5.15.
        if !is_at_least(5, 15) {
            uplinks[0].1 = LOOPBACK;
        }
        let mut ops = world::ops(TICKS_PER_SECOND, uplinks);
        ops.push(Op::InsertDevice { ifindex: routed });
        // What names interfaces; the rest is in place.
        let mut changed = Vec::new();
        for op in &ops {
            match op {
                Op::NextHop { .. } | Op::InsertDevice { .. } => changed.push(op.clone()),
                Op::InsertAnnounced {
                    ifindex, address, ..
                } if *ifindex != routed => {
                    let (ifindex, address) = (routed, *address);
                    changed.push(Op::RemoveAnnounced { ifindex, address });
                    changed.push(op.clone());
                }
                _ => {}
            }
        }
        place.installation.dataplane()?.apply(&changed)?;
        let settings = world::settings(TICKS_PER_SECOND);
        let mut host = world::simulate(&ops);
        routes(&mut host, routed, mac);
        let counters = place.installation.counters()?;
        let mut both = Self {
            place,
            host,
            settings,
            uplinks,
            routed,
            counters,
            ops,
        };
        both.set(settings)?;
        Ok(both)
    }

    /// As they were made: no flows, nothing counted, every value that a test changes as it was. Loading the programs
    /// anew, which takes the verifier a second, and ten on an emulated CPU, does no more.
    pub fn reset(&mut self) -> Result<()> {
        leftovers::clear(self.place.installation.maps())?;
        // Questions are counted in the entries, of which a test may have made more.
        let mut ops: Vec<_> = self
            .announced()
            .into_keys()
            .map(|(ifindex, address)| Op::RemoveAnnounced { ifindex, address })
            .collect();
        for op in &self.ops {
            match op {
                Op::NextHop { .. }
                | Op::Backend { .. }
                | Op::Slots { .. }
                | Op::Service { .. }
                | Op::InsertTarget4 { .. }
                | Op::InsertTarget6 { .. }
                | Op::InsertAnnounced { .. } => ops.push(op.clone()),
                _ => {}
            }
        }
        self.place.installation.dataplane()?.apply(&ops)?;
        self.host = world::simulate(&self.ops);
        let mac = self.uplinks[0].0;
        routes(&mut self.host, self.routed, mac);
        self.counters = self.place.installation.counters()?;
        self.set(world::settings(TICKS_PER_SECOND))
    }

    /// Other settings for both.
    pub fn set(&mut self, settings: Settings) -> Result<()> {
        self.settings = settings;
        self.place
            .installation
            .dataplane()?
            .apply(&[Op::Settings(settings)])?;
        Ok(())
    }

    /// Other flags of a service for both.
    pub fn set_flags(&mut self, service: u32, flags: u64) -> Result<()> {
        let known = self.host.services.get_mut(&service);
        known.context("no such service")?.flags = flags;
        self.place
            .installation
            .dataplane()?
            .apply(&[Op::ServiceFlags { service, flags }])?;
        Ok(())
    }

    /// Gives all backends on other nodes another state, for both.
    pub fn set_states_elsewhere(&mut self, state: u32) -> Result<()> {
        let mut ops = Vec::new();
        for (id, backend) in &mut self.host.backends {
            if backend.mode == Mode::Dsr as u8 {
                backend.state = state;
                ops.push(Op::BackendLink {
                    id: *id,
                    next_hop: backend.next_hop,
                    state,
                });
            }
        }
        self.apply(&ops)
    }

    /// Gives the slots of services with backends on other nodes to the others of these, with or without knowing whose they
    /// were, for both.
    pub fn swap_owners_elsewhere(&mut self, history: bool) -> Result<()> {
        let ops = world::swapped_owners(history);
        for op in &ops {
            if let Op::Slots { base, slots } = op {
                self.host.slots.extend((*base..).zip(slots.iter().copied()));
            }
        }
        self.apply(&ops)
    }

    /// Empties both filters of moved connections.
    pub fn forget_moved(&mut self) -> Result<()> {
        self.host.moved.borrow_mut().clear();
        leftovers::forget_moved(self.place.installation.maps())
    }

    /// Takes the names of this node's backends from both.
    pub fn forget_targets(&mut self) -> Result<()> {
        let v4 = self.host.v4.targets.drain().map(|(key, _)| key);
        let v6 = self.host.v6.targets.drain().map(|(key, _)| key);
        let ops: Vec<_> = v4
            .map(|key| Op::RemoveTarget4 { key })
            .chain(v6.map(|key| Op::RemoveTarget6 { key }))
            .collect();
        self.apply(&ops)
    }

    /// Gives both, for each name of a backend of this node, the id of one with another address or port.
    pub fn mix_targets_up(&mut self) -> Result<()> {
        let backends = &self.host.backends;
        let socket = |id: &u32| (backends[id].address, backends[id].port);
        let other = |ids: &[u32], id: u32| {
            let other = ids.iter().find(|other| socket(other) != socket(&id));
            other.copied().context("backends at several sockets")
        };
        let mut ops = Vec::new();
        let ids: Vec<_> = self.host.v4.targets.values().copied().collect();
        for (&key, id) in &mut self.host.v4.targets {
            *id = other(&ids, *id)?;
            ops.extend([
                Op::RemoveTarget4 { key },
                Op::InsertTarget4 { key, id: *id },
            ]);
        }
        let ids: Vec<_> = self.host.v6.targets.values().copied().collect();
        for (&key, id) in &mut self.host.v6.targets {
            *id = other(&ids, *id)?;
            ops.extend([
                Op::RemoveTarget6 { key },
                Op::InsertTarget6 { key, id: *id },
            ]);
        }
        self.apply(&ops)
    }

    /// Gives both another next hop.
    pub fn change_next_hop(&mut self, id: u32, change: impl FnOnce(&mut NextHop)) -> Result<()> {
        let mut value = self.host.next_hops[&id];
        change(&mut value);
        self.host.next_hops.insert(id, value);
        self.apply(&[Op::NextHop { id, value }])
    }

    /// Tells both that frames of a segment are an interface's.
    pub fn insert_interface(&mut self, segment: Segment, ifindex: u32) -> Result<()> {
        self.host.interfaces.insert(segment, ifindex);
        self.apply(&[Op::InsertInterface { segment, ifindex }])
    }

    /// Announces a VIP of IPv4 on an interface, for both.
    pub fn announce(&mut self, ifindex: u32, address: Ipv4Addr, mac: Mac) -> Result<()> {
        let key = AnnouncedKey {
            ifindex,
            address: V4::from(address),
        };
        let value = Announced::new(mac);
        self.host.v4.announced.borrow_mut().insert(key, value);
        let address = address.into();
        self.apply(&[Op::InsertAnnounced {
            ifindex,
            address,
            mac,
        }])
    }

    /// What the host has announced, by interface and VIP.
    fn announced(&self) -> BTreeMap<(u32, IpAddr), Announced> {
        let mut all = BTreeMap::new();
        for (key, value) in self.host.v4.announced.borrow().iter() {
            all.insert((key.ifindex, key.address.to_addr().to_ip()), *value);
        }
        for (key, value) in self.host.v6.announced.borrow().iter() {
            all.insert((key.ifindex, key.address.to_addr().to_ip()), *value);
        }
        all
    }

    /// Applies ops in the kernel alone.
    pub fn apply(&mut self, ops: &[Op]) -> Result<()> {
        Ok(self.place.installation.dataplane()?.apply(ops)?)
    }

    /// Decides a frame twice; an error where the two differ.
    pub fn run(&mut self, bytes: &[u8]) -> Result<Outcome> {
        let ingress = self.uplinks[0].1;
        let mut frame = Frame {
            bytes: bytes.to_vec(),
            ingress,
        };
        self.host.steps.borrow_mut().clear();
        let mut scratch = Scratch::default();
        let verdict = pipeline::process(&mut frame, &self.host, &self.settings, &mut scratch);
        let steps = self.host.steps.borrow().clone();
        let (did, left) = self.place.inject(bytes, ingress)?;
        let gone = matches!(verdict, Verdict::Drop(_));
        ensure!(
            action(verdict) == did && (gone || frame.bytes == left),
            "\n{bytes:02x?}\nhost {verdict:?}\n{:02x?}\nby {steps:?}\nkernel {did}\n{left:02x?}",
            frame.bytes,
        );
        let back = Verdict::Redirect {
            ifindex: self.routed,
        };
        Ok(Outcome {
            verdict: if verdict == back {
                Verdict::Transmit
            } else {
                verdict
            },
            frame: frame.bytes,
            steps,
        })
    }

    /// The same for a frame that leaves behind the stack.
    pub fn leave(&mut self, bytes: &[u8]) -> Result<Outcome> {
        let mut frame = Frame {
            bytes: bytes.to_vec(),
            ingress: self.uplinks[0].1,
        };
        self.host.steps.borrow_mut().clear();
        let mut scratch = Scratch::default();
        let verdict = pipeline::egress_reply(&mut frame, &self.host, &self.settings, &mut scratch);
        let steps = self.host.steps.borrow().clone();
        let (did, left) = self.place.inject_at_egress(bytes)?;
        // TC_ACT_SHOT, TC_ACT_UNSPEC
        let expected = if matches!(verdict, Verdict::Drop(_)) {
            2
        } else {
            -1
        };
        ensure!(
            did == expected && frame.bytes == left,
            "\n{bytes:02x?}\nhost {verdict:?}\n{:02x?}\nby {steps:?}\nkernel {did}\n{left:02x?}",
            frame.bytes,
        );
        Ok(Outcome {
            verdict,
            frame: frame.bytes,
            steps,
        })
    }

    /// Whether both have counted the same questions for announced VIPs since the start.
    pub fn check_announced(&self) -> Result<()> {
        let expected = self.announced().into_iter();
        let expected: Vec<_> = expected
            .map(|(key, value)| (key, value.mac(), value.requests, value.responses))
            .collect();
        let counted = self.counters.announced()?.into_iter();
        let counted: Vec<_> = counted
            .map(|(key, (mac, asked))| (key, mac, asked.requests, asked.responses))
            .collect();
        ensure!(counted == expected, "{counted:?}, not {expected:?}");
        Ok(())
    }

    /// Whether both have counted the same reasons since the start.
    pub fn check_reasons(&self) -> Result<()> {
        let host = self.host.reasons.borrow();
        for (id, counted) in (0..).zip(self.counters.reasons(0..FRONTEND_IDS)?) {
            for reason in Reason::ALL {
                let expected = host.get(&(id, reason)).copied().unwrap_or(0);
                let counted = counted[reason as usize];
                ensure!(
                    counted == expected,
                    "frontend {id}, {reason:?}: {counted}, not {expected}"
                );
            }
        }
        Ok(())
    }
}

/// What the namespace's routing table says, as [`Place`] has set it up.
pub fn routes(world: &mut World, ifindex: u32, mac: [u8; 6]) {
    let addr = |text: &str| Addr::from(text.parse::<IpAddr>().expect("an address"));
    // Before, `bpf_fib_lookup` does not say it.
    let mtu = if is_at_least(5, 12) { 1500 } else { u16::MAX };
    let hop = |last: u8, gateway: &str| Route::Hop {
        hop: Hop {
            segment: Segment { ifindex, tags: 0 },
            macs: Macs::new([2, 0, 0, 0, 0, last], mac),
        },
        mtu,
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
        (v4("10.0.0.254"), 32, hop(0xfe, "10.0.0.254")),
        // The host's own and broadcast addresses, and who else may be on link: of no matter but to frames made at random.
        (v4("10.0.0.0"), 31, Route::Unknown),
        (v4("10.0.0.255"), 32, Route::Unknown),
        (v4("10.1.0.0"), 31, Route::Unknown),
        (v4("10.1.0.255"), 32, Route::Unknown),
        (v4("10.0.0.0"), 24, neighbour("0.0.0.0")),
        (v4("10.1.0.0"), 24, neighbour("0.0.0.0")),
        (v4("0.0.0.0"), 0, hop(0xfe, "10.0.0.254")),
    ];
    world.v6.routes = vec![
        (v6("2001:db8:1::13"), 128, hop(0x13, "2001:db8:1::13")),
        (v6("2001:db8:1::77"), 128, neighbour("2001:db8:1::77")),
        (v6("2001:db8:1::fe"), 128, hop(0xfe, "2001:db8:1::fe")),
        (v6("2001:db8:1::"), 127, Route::Unknown),
        (v6("2001:db8:2::"), 127, Route::Unknown),
        (v6("2001:db8:1::"), 64, neighbour("::")),
        (v6("2001:db8:2::"), 64, neighbour("::")),
        (v6("::"), 0, hop(0xfe, "2001:db8:1::fe")),
    ];
}
