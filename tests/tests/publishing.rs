//! The promise of design.md "Publishing": while the maps change as fast as they can, every packet goes to a backend of
//! its own service, and to a whole one.
//!
//! One thread plays the planner: tables are rebuilt in other regions, members move, ordinals change hands, services
//! come and go, and indices, ids and regions are handed on to other services after a grace period. Another runs the
//! real program on packets. Each backend's addresses spell out whose it is, in every word, so a mixture shows.
//!
//! What this finds: a wrong order, and a value that is not written in whole words. (In two million packets: 22 wrong ones
//! with a member published before its backend was written, 645 lost ones with a table published before its slots.) What
//! it cannot find: a missing grace period. The program holds a number for some ten nanoseconds, so without any wait
//! there were 0 wrong packets, too.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use lb_common::{
    abi::{
        Backend, Frontend, FrontendKey, Mode, NO_OWNER, NextHop, Region, Segment, Service,
        filter_bit, service_flag, slot_of,
    },
    bytes::{Addr, Be16, V4},
    pipeline::Verdict,
};
use lb_tests::{
    is_root,
    kernel::{self, Kernel, SMALL},
};
use lb_userspace::{
    dataplane::{Bpf, Dataplane as _},
    plan::Op,
};

const SERVICES: u32 = 8;
/// The first ones are there all the time: no packet of theirs may miss.
const PERMANENT: u32 = 4;
/// Elements of a member region. Each service uses ordinals of its own, so that a slot of another one leads nowhere.
const MEMBERS: u32 = 64;
const BACKENDS: u32 = 8;
const SLOTS: u32 = 256;
/// What is handed on: indices of `SERVICES`, regions, ids of backends and next hops.
const INDICES: u32 = 24;
const SLOT_REGIONS: u32 = 32;
const MEMBER_REGIONS: u32 = 16;
const IDS: u32 = 200;

/// Different flows of each service.
const FRAMES: u16 = 512;

/// The loopback device of every namespace, where test runs come in.
const INTERFACE: u32 = 1;

/// Numbers in use, free, and waiting for a grace period.
#[derive(Default)]
struct Pool {
    free: Vec<u32>,
    quarantine: Vec<u32>,
}

impl Pool {
    fn of(numbers: impl Iterator<Item = u32>) -> Self {
        Self {
            free: numbers.collect(),
            quarantine: Vec::new(),
        }
    }
}

/// A stand-in for the planner that knows nothing but the order of publishing.
struct Updater {
    bpf: Bpf,
    random: u64,
    pools: [Pool; 4],
    services: Vec<Option<Live>>,
    graces: u64,
    updates: u64,
}

struct Live {
    index: u32,
    slots: u32,
    members: u32,
    ids: Vec<u32>,
    generation: u32,
}

const INDEX: usize = 0;
const SLOT: usize = 1;
const MEMBER: usize = 2;
const ID: usize = 3;

impl Updater {
    fn new(bpf: Bpf) -> Result<Self> {
        let mut updater = Self {
            bpf,
            random: 0x9e37_79b9_7f4a_7c15,
            pools: [
                Pool::of(1..INDICES),
                Pool::of(0..SLOT_REGIONS),
                Pool::of(0..MEMBER_REGIONS),
                Pool::of(1..IDS),
            ],
            services: (0..SERVICES).map(|_| None).collect(),
            graces: 0,
            updates: 0,
        };
        updater.bpf.apply(&[Op::Settings(kernel::settings())])?;
        for service in 0..SERVICES {
            let (index, bit) = filter_bit(&vip(service));
            let word = (0..SERVICES)
                .map(|other| filter_bit(&vip(other)))
                .filter(|(other, _)| *other == index)
                .fold(bit, |word, (_, bit)| word | bit);
            updater.bpf.apply(&[Op::Address { index, word }])?;
            updater.create(service)?;
        }
        Ok(updater)
    }

    /// xorshift64
    fn below(&mut self, bound: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 32) * u64::from(bound) >> 32) as u32
    }

    /// The number freed last comes first: the sharpest test of the wait.
    fn take(&mut self, pool: usize) -> Result<u32> {
        if self.pools[pool].free.is_empty() {
            self.bpf.apply(&[Op::Grace])?;
            self.graces += 1;
            for pool in &mut self.pools {
                pool.free.append(&mut pool.quarantine);
            }
        }
        self.pools[pool]
            .free
            .pop()
            .context("more in use than there is")
    }

    fn release(&mut self, pool: usize, number: u32) {
        self.pools[pool].quarantine.push(number);
    }

    fn update(&mut self) -> Result<()> {
        let service = self.below(SERVICES);
        match self.below(8) {
            0..3 => self.rebuild(service)?,
            3..6 => self.replace(service)?,
            6 => self.move_members(service)?,
            _ if service < PERMANENT => {}
            _ if self.services[service as usize].is_some() => self.delete(service)?,
            _ => self.create(service)?,
        }
        self.updates += 1;
        Ok(())
    }

    fn backend(&mut self, service: u32) -> Result<u32> {
        let id = self.take(ID)?;
        let generation = self.below(u32::MAX) | 1;
        let hop = NextHop {
            destination: NextHop::destination_word(
                mac(service, id),
                NextHop::RESOLVED | NextHop::XDP_SEND,
            ),
            source: NextHop::source_word(mac(service, id), 1500),
            segment: Segment {
                ifindex: INTERFACE,
                tags: 0,
            },
            ..NextHop::default()
        };
        let value = Backend {
            address: address(service, id),
            source: address(service, id),
            mode: mode(service) as u8,
            generation,
            next_hop: id,
            state: 1,
            ..Backend::default()
        };
        self.bpf
            .apply(&[Op::NextHop { id, value: hop }, Op::Backend { id, value }])?;
        Ok(id)
    }

    fn table(&mut self, service: u32, generation: u32) -> Result<(u32, u64)> {
        let region = self.take(SLOT)?;
        // Of some of the ordinals, in runs that differ each time.
        let (first, count) = (self.below(BACKENDS), 1 + self.below(BACKENDS));
        let slots = (0..SLOTS)
            .map(|slot| {
                let ordinal = service * BACKENDS + (first + slot % count) % BACKENDS;
                slot_of([ordinal as u16, NO_OWNER, NO_OWNER, NO_OWNER])
            })
            .collect();
        let base = region * SLOTS;
        self.bpf.apply(&[Op::Slots { base, slots }])?;
        Ok((region, Region::new(base, SLOTS.ilog2() as u8, generation).0))
    }

    fn members(&mut self, service: u32, ids: &[u32], generation: u32) -> Result<(u32, u64)> {
        let region = self.take(MEMBER)?;
        let base = region * MEMBERS;
        let mut members = vec![0; MEMBERS as usize];
        for (ordinal, id) in (service * BACKENDS..).zip(ids) {
            members[ordinal as usize] = u64::from(*id);
        }
        self.bpf.apply(&[Op::Members { base, members }])?;
        Ok((
            region,
            Region::new(base, MEMBERS.ilog2() as u8, generation).0,
        ))
    }

    fn create(&mut self, service: u32) -> Result<()> {
        let index = self.take(INDEX)?;
        let ids: Vec<u32> = (0..BACKENDS)
            .map(|_| self.backend(service))
            .collect::<Result<_>>()?;
        let (members, member_word) = self.members(service, &ids, 1)?;
        let (slots, table) = self.table(service, 1)?;
        let value = Service {
            table,
            members: member_word,
            flags: service_flag::LIVE,
            reserved: 0,
        };
        let key = key(service);
        let frontend = Frontend {
            service: index,
            id: service + 1,
        };
        self.bpf.apply(&[
            Op::Service { index, value },
            Op::InsertFrontend4 {
                key,
                value: frontend,
            },
        ])?;
        self.services[service as usize] = Some(Live {
            index,
            slots,
            members,
            ids,
            generation: 1,
        });
        Ok(())
    }

    fn delete(&mut self, service: u32) -> Result<()> {
        let key = key(service);
        self.bpf.apply(&[Op::RemoveFrontend4 { key }])?;
        let live = self.services[service as usize]
            .take()
            .context("not there")?;
        self.release(INDEX, live.index);
        self.release(SLOT, live.slots);
        self.release(MEMBER, live.members);
        for id in live.ids {
            self.release(ID, id);
        }
        Ok(())
    }

    fn rebuild(&mut self, service: u32) -> Result<()> {
        let Some(mut live) = self.services[service as usize].take() else {
            return Ok(());
        };
        live.generation += 1;
        let (region, table) = self.table(service, live.generation)?;
        let op = Op::Table {
            service: live.index,
            table,
        };
        self.bpf.apply(&[op])?;
        self.release(SLOT, std::mem::replace(&mut live.slots, region));
        self.services[service as usize] = Some(live);
        Ok(())
    }

    /// Another backend takes over an ordinal.
    fn replace(&mut self, service: u32) -> Result<()> {
        let Some(mut live) = self.services[service as usize].take() else {
            return Ok(());
        };
        let id = self.backend(service)?;
        let backend = self.below(BACKENDS);
        let op = Op::Members {
            base: live.members * MEMBERS + service * BACKENDS + backend,
            members: vec![u64::from(id)],
        };
        self.bpf.apply(&[op])?;
        self.release(ID, std::mem::replace(&mut live.ids[backend as usize], id));
        self.services[service as usize] = Some(live);
        Ok(())
    }

    fn move_members(&mut self, service: u32) -> Result<()> {
        let Some(mut live) = self.services[service as usize].take() else {
            return Ok(());
        };
        live.generation += 1;
        let (region, members) = self.members(service, &live.ids, live.generation)?;
        let op = Op::MemberRegion {
            service: live.index,
            members,
        };
        self.bpf.apply(&[op])?;
        self.release(MEMBER, std::mem::replace(&mut live.members, region));
        self.services[service as usize] = Some(live);
        Ok(())
    }
}

fn vip(service: u32) -> V4 {
    V4::from(Ipv4Addr::new(192, 0, 2, 1 + service as u8))
}

fn key(service: u32) -> FrontendKey<V4> {
    FrontendKey::new(vip(service), Be16::new(80), 6)
}

/// `l2` shows one word of a backend, `ipip` all of them.
const fn mode(service: u32) -> Mode {
    if service.is_multiple_of(2) {
        Mode::L2
    } else {
        Mode::Ipip
    }
}

fn mac(service: u32, id: u32) -> [u8; 6] {
    let [high, low] = (id as u16).to_be_bytes();
    [
        2,
        service as u8,
        high,
        low,
        !service as u8,
        high ^ low ^ 0x55,
    ]
}

/// The owner in each of the four words.
fn address(service: u32, id: u32) -> Addr {
    let word = 0xfd << 24 | service << 16 | id;
    Addr([word, !word, word.rotate_left(16), !word.rotate_left(16)].map(u32::to_be))
}

fn frames(service: u32) -> Vec<Vec<u8>> {
    (0..FRAMES)
        .map(|port| {
            let vip = [192, 0, 2, 1 + service as u8];
            let packet = PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4([198, 51, 100, 7], vip, 64)
                .tcp(1024 + port, 80, 1, 1024);
            let mut frame = Vec::new();
            packet.write(&mut frame, &[]).expect("a vector takes all");
            frame
        })
        .collect()
}

/// Whose the frame is as it leaves: `None` if its words tell different stories.
fn owner(frame: &[u8], mode: Mode) -> Option<u32> {
    let service = u32::from(*frame.get(1)?);
    let id = u32::from(u16::from_be_bytes([*frame.get(2)?, *frame.get(3)?]));
    let mac = mac(service, id);
    let mut whole = frame[..6] == mac && frame[6..12] == mac;
    if mode == Mode::Ipip {
        let expected = match address(service, id).to_ip() {
            IpAddr::V6(ip) => ip,
            IpAddr::V4(_) => return None,
        };
        let outer = |at: usize| -> Option<Ipv6Addr> {
            Some(Ipv6Addr::from(
                <[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?,
            ))
        };
        // Of an outer IPv6 header (RFC 8200, section 3) behind the Ethernet one.
        whole &= outer(38) == Some(expected);
        whole &= outer(22) == Some(expected);
    }
    whole.then_some(service)
}

#[derive(Default, Debug)]
struct Seen {
    packets: u64,
    missed: u64,
    absent: u64,
    foreign: u64,
    torn: u64,
}

fn read(kernel: &mut Kernel, going: &AtomicBool, count: &AtomicU64) -> Result<Seen> {
    let frames: Vec<_> = (0..SERVICES).map(frames).collect();
    let mut seen = Seen::default();
    while going.load(Ordering::Relaxed) {
        for round in 0..FRAMES {
            for (service, frames) in (0..).zip(&frames) {
                let (action, out) = kernel.run(&frames[usize::from(round)], INTERFACE)?;
                seen.packets += 1;
                if action != kernel::action(Verdict::Transmit) {
                    if service < PERMANENT {
                        seen.missed += 1;
                    } else {
                        seen.absent += 1;
                    }
                    continue;
                }
                match owner(&out, mode(service)) {
                    Some(owner) if owner == service => {}
                    Some(_) => seen.foreign += 1,
                    None => seen.torn += 1,
                }
            }
        }
        count.store(seen.packets, Ordering::Relaxed);
    }
    Ok(seen)
}

#[test]
fn a_busy_updater_sends_no_packet_astray() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let quick = std::env::var_os("MILLRACE_QUICK").is_some();
    let (packets, graces) = if quick {
        (200_000, 20)
    } else {
        (2_000_000, 200)
    };
    let mut kernel = Kernel::load("publishing", SMALL)?;
    let mut updater = Updater::new(Bpf::open(&kernel.folder)?)?;
    let (going, count) = (AtomicBool::new(true), AtomicU64::new(0));
    let deadline = Instant::now() + Duration::from_mins(5);
    let seen = thread::scope(|scope| -> Result<_> {
        let reader = scope.spawn(|| read(&mut kernel, &going, &count));
        let mut updated = Ok(());
        while updated.is_ok()
            && !reader.is_finished()
            && (count.load(Ordering::Relaxed) < packets || updater.graces < graces)
            && Instant::now() < deadline
        {
            updated = updater.update();
        }
        going.store(false, Ordering::Relaxed);
        let seen = reader.join().expect("reader")?;
        updated.map(|()| seen)
    })?;
    println!(
        "{} updates, {} grace periods, {seen:?}",
        updater.updates, updater.graces
    );
    ensure!(
        seen.packets >= packets && updater.graces >= graces,
        "too slow"
    );
    ensure!(seen.absent > 0, "nothing came and went");
    assert_eq!((seen.foreign, seen.torn, seen.missed), (0, 0, 0));
    Ok(())
}
