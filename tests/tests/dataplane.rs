//! Ops on the real maps: what the kernel has afterwards, and what it refuses.

#[path = "dataplane/flows.rs"]
mod flows;

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::Result;
use aya::{
    Pod,
    maps::{Array, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use lb_common::{
    abi::{
        Backend, Frontend, FrontendCount, FrontendKey, NextHop, Reason, Region, Segment, Service,
        Settings, SourceKey, TargetKey, tag,
    },
    bytes::{Addr, Be16, V4, V6},
};
use lb_tests::{
    is_root,
    netns::{Folder, unique_name},
};
use lb_userspace::{
    attach::{Clock, Installation, Options},
    dataplane::{Bpf, Cause, Dataplane, Fake},
    plan::{Limits, Op},
};

/// Maps of their own, gone with the value.
struct Maps {
    installation: Installation,
    pins: PathBuf,
    _run: Folder,
}

const LIMITS: Limits = Limits {
    frontends: 64,
    backends: 30_000,
    flows: 4096,
};

impl Maps {
    fn make() -> Result<Self> {
        let run = Folder::create("run")?;
        let pins = PathBuf::from("/sys/fs/bpf").join(unique_name("maps"));
        let installation = Installation::open(&Options {
            pin_root: pins.clone(),
            run_folder: run.path().to_owned(),
            limits: LIMITS,
            ..Options::default()
        })?;
        Ok(Self {
            installation,
            pins,
            _run: run,
        })
    }

    fn bpf(&self) -> Result<Bpf> {
        Ok(self.installation.dataplane()?)
    }

    fn folder(&self) -> &Path {
        self.installation.maps()
    }

    fn array<T: Pod>(&self, name: &str) -> Result<Array<MapData, T>> {
        let map = MapData::from_pin(self.folder().join(name))?;
        Ok(Array::try_from(Map::Array(map))?)
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.pins));
    }
}

fn backend(id: u32) -> Backend {
    Backend {
        address: Addr([id, 2, 3, 4]),
        source: Addr([5, 6, 7, !id]),
        target: Addr([8, id, 9, 10]),
        port: Be16::new(id as u16),
        mode: 1,
        pad: 0,
        generation: id + 1,
        next_hop: id / 2,
        state: 1,
    }
}

fn next_hop(id: u32) -> NextHop {
    NextHop {
        destination: u64::from(id) << 20 | NextHop::RESOLVED,
        source: u64::from(!id),
        segment: Segment {
            ifindex: id + 1,
            tags: tag(id as u16, false),
        },
        gateway: Addr([id; 4]),
    }
}

fn segment(ifindex: u32, vlan: u16) -> Segment {
    let tags = tag(vlan, false);
    Segment { ifindex, tags }
}

fn key4(last: u8, port: u16) -> FrontendKey<V4> {
    FrontendKey::new(V4::from(Ipv4Addr::new(192, 0, 2, last)), Be16::new(port), 6)
}

fn key6(port: u16) -> FrontendKey<V6> {
    let ip = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    FrontendKey::new(V6::from(ip), Be16::new(port), 17)
}

fn target4(service: u32) -> TargetKey<V4> {
    let address = V4::from(Ipv4Addr::new(10, 0, 0, 1));
    TargetKey::new(service, address, Be16::new(8080))
}

fn target6(service: u32) -> TargetKey<V6> {
    let address = V6::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
    TargetKey::new(service, address, Be16::new(8080))
}

fn source4(service: u32) -> SourceKey<V4> {
    SourceKey {
        service_be: service.to_be(),
        client: V4::from(Ipv4Addr::new(198, 51, 100, 0)),
    }
}

fn source6(service: u32) -> SourceKey<V6> {
    SourceKey {
        service_be: service.to_be(),
        client: V6::from(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0)),
    }
}

/// One of each kind at least, at both ends of the arrays, and across the borders of mapped windows (2^19 bytes: between
/// backends 8191 and 8192, and within next hop 13,107, whose 40 bytes lie on both sides).
fn every_op() -> Vec<Op> {
    let last_slot = LIMITS.slots() - 1;
    let frontend = |service, id| Frontend { service, id };
    let mut ops = vec![
        Op::Settings(Settings {
            hash_key: [1, 2],
            flags: 1,
            hz: 250,
            nat_ports: 0xee48 | 0xffff << 16,
            ..Settings::default()
        }),
        Op::ZeroFrontend { id: 1 },
        Op::ZeroBackend { id: 1 },
        Op::NextHop {
            id: 1,
            value: next_hop(1),
        },
        Op::NextHop {
            id: 13_107,
            value: next_hop(13_107),
        },
        Op::Neighbour {
            id: 13_107,
            destination: 78,
        },
        Op::Neighbour {
            id: 1,
            destination: 77,
        },
        Op::Grace,
        Op::Members {
            base: 8,
            members: vec![1, 2, 3, 4],
        },
        Op::Slots {
            base: 65_536 - 64,
            slots: (0..128).collect(),
        },
        Op::Slots {
            base: last_slot,
            slots: vec![9],
        },
        Op::Service {
            index: 3,
            value: Service {
                table: Region::new(0, 3, 1).0,
                members: Region::EMPTY.0,
                flags: 1,
                reserved: 0,
            },
        },
        Op::MemberRegion {
            service: 3,
            members: Region::new(8, 2, 1).0,
        },
        Op::Table {
            service: 3,
            table: Region::new(65_536 - 64, 7, 2).0,
        },
        Op::ServiceFlags {
            service: 3,
            flags: 5,
        },
        Op::InsertSource4 {
            key: source4(3),
            bits: 24,
        },
        Op::InsertSource6 {
            key: source6(3),
            bits: 48,
        },
        Op::InsertSource4 {
            key: source4(4),
            bits: 25,
        },
        Op::InsertSource6 {
            key: source6(4),
            bits: 49,
        },
        Op::RemoveSource4 {
            key: source4(4),
            bits: 25,
        },
        Op::RemoveSource6 {
            key: source6(4),
            bits: 49,
        },
        Op::InsertTarget4 {
            key: target4(3),
            id: 1,
        },
        Op::InsertTarget6 {
            key: target6(3),
            id: 2,
        },
        Op::InsertTarget4 {
            key: target4(4),
            id: 3,
        },
        Op::InsertTarget6 {
            key: target6(4),
            id: 4,
        },
        Op::RemoveTarget4 { key: target4(4) },
        Op::RemoveTarget6 { key: target6(4) },
        Op::InsertFrontend4 {
            key: key4(1, 80),
            value: frontend(3, 1),
        },
        Op::InsertFrontend4 {
            key: key4(1, 81),
            value: frontend(3, 2),
        },
        Op::InsertFrontend6 {
            key: key6(53),
            value: frontend(3, 3),
        },
        Op::InsertFrontend6 {
            key: key6(54),
            value: frontend(3, 4),
        },
        Op::RemoveFrontend4 { key: key4(1, 81) },
        Op::RemoveFrontend6 { key: key6(54) },
        Op::Address {
            index: 4095,
            word: u64::MAX,
        },
        Op::Address { index: 0, word: 1 },
        // The loopback device is there in every namespace.
        Op::InsertDevice { ifindex: 1 },
        Op::RemoveDevice { ifindex: 1 },
        Op::InsertDevice { ifindex: 1 },
        Op::InsertInterface {
            segment: segment(2, 7),
            ifindex: 9,
        },
        Op::InsertInterface {
            segment: segment(2, 8),
            ifindex: 10,
        },
        Op::RemoveInterface {
            segment: segment(2, 7),
        },
        Op::InsertSegment {
            ifindex: 10,
            segment: segment(2, 8),
        },
        Op::InsertSegment {
            ifindex: 9,
            segment: segment(2, 7),
        },
        Op::RemoveSegment { ifindex: 9 },
    ];
    for id in [1, 2, 8191, 8192, LIMITS.backend_ids() - 1] {
        let value = backend(id);
        ops.push(Op::Backend { id, value });
    }
    ops.push(Op::BackendLink {
        id: 8192,
        next_hop: 1,
        state: 0,
    });
    ops
}

#[test]
fn every_op_is_in_the_kernel_as_the_fake_has_it() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let maps = Maps::make()?;
    let mut bpf = maps.bpf()?;
    let mut fake = Fake::new(LIMITS);
    let ops = every_op();
    bpf.apply(&ops)?;
    fake.apply(&ops)?;
    assert_eq!(bpf.dump()?, fake.dump()?);
    // Another handle, as after a restart.
    assert_eq!(maps.bpf()?.dump()?, fake.dump()?);
    // By system calls, not by the memory it was written through.
    for (id, value) in &fake.backends {
        assert_eq!(maps.array::<Backend>("BACKENDS")?.get(id, 0)?, *value);
    }
    for (index, word) in &fake.slots {
        assert_eq!(maps.array::<u64>("SLOTS")?.get(index, 0)?, *word);
    }
    assert_eq!(
        maps.array::<Service>("SERVICES")?.get(&3, 0)?,
        fake.services[&3]
    );
    for (id, value) in &fake.next_hops {
        assert_eq!(maps.array::<NextHop>("NEXT_HOPS")?.get(id, 0)?, *value);
    }
    assert_eq!(
        maps.array::<Settings>("SETTINGS")?.get(&0, 0)?,
        fake.settings
    );

    // What a plan that is tried again meets.
    bpf.apply(&ops)?;
    assert_eq!(bpf.dump()?, fake.dump()?);
    Ok(())
}

/// A pod's, for example, that goes while an agent starts.
#[test]
fn a_device_that_is_gone_is_left_out() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let maps = Maps::make()?;
    let mut bpf = maps.bpf()?;
    let (loopback, gone) = (1, i32::MAX as u32);
    bpf.apply(&[gone, loopback].map(|ifindex| Op::InsertDevice { ifindex }))?;
    assert_eq!(bpf.dump()?.devices, [loopback].into());
    bpf.apply(&[Op::RemoveDevice { ifindex: gone }])?;
    Ok(())
}

#[test]
fn what_does_not_fit_is_named_with_the_setting_that_helps() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let maps = Maps::make()?;
    let mut bpf = maps.bpf()?;
    let mut fake = Fake::new(LIMITS);
    let frontends: Vec<Op> = (1..=LIMITS.frontend_entries() + 1)
        .map(|port| Op::InsertFrontend4 {
            key: key4(1, port as u16),
            value: Frontend {
                service: 1,
                id: port,
            },
        })
        .collect();
    let outside = [
        Op::Table {
            service: LIMITS.services(),
            table: 0,
        },
        Op::Slots {
            base: LIMITS.slots() - 1,
            slots: vec![0, 0],
        },
        Op::ZeroFrontend {
            id: LIMITS.frontend_ids(),
        },
        Op::ZeroBackend {
            id: LIMITS.backend_ids(),
        },
    ];
    let both: [&mut dyn Dataplane; 2] = [&mut bpf, &mut fake];
    for dataplane in both {
        let error = dataplane.apply(&frontends).expect_err("one too many");
        assert_eq!(error.at, frontends.len() - 1);
        assert!(
            matches!(
                error.cause,
                Cause::Full {
                    map: "FRONTENDS4",
                    ..
                }
            ),
            "{error}"
        );
        assert!(
            error.to_string().contains("raise limits.frontends"),
            "{error}"
        );
        for op in &outside {
            let error = dataplane
                .apply(std::slice::from_ref(op))
                .expect_err("outside");
            assert!(matches!(error.cause, Cause::Outside { .. }), "{error}");
        }
        let other = Op::InsertFrontend4 {
            key: key4(1, 1),
            value: Frontend { service: 2, id: 1 },
        };
        let error = dataplane
            .apply(&[other])
            .expect_err("an entry never changes");
        assert!(matches!(error.cause, Cause::Exists { .. }), "{error}");
    }
    Ok(())
}

#[test]
fn counters_are_summed_over_cpus_and_zeroed_by_id() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let maps = Maps::make()?;
    let cpus = nr_cpus().map_err(|(_, error)| error)?;
    let count = |cpu: usize| FrontendCount {
        packets: 1 << cpu,
        bytes: 100,
        new_flows: 3,
        replies: u64::MAX,
    };
    let data = MapData::from_pin(maps.folder().join("FRONTEND_STATS"))?;
    let mut stats: PerCpuArray<_, FrontendCount> = PerCpuArray::try_from(Map::PerCpuArray(data))?;
    let data = MapData::from_pin(maps.folder().join("REASONS"))?;
    let mut reasons: PerCpuArray<_, u64> = PerCpuArray::try_from(Map::PerCpuArray(data))?;
    for id in [6, 7] {
        stats.set(
            id,
            PerCpuValues::try_from((0..cpus).map(count).collect::<Vec<_>>())?,
            0,
        )?;
        let index = id * Reason::COUNT + Reason::NoRoute as u32;
        reasons.set(index, PerCpuValues::try_from(vec![5; cpus])?, 0)?;
    }
    let counters = maps.installation.counters()?;
    let sum = FrontendCount {
        packets: (1 << cpus) - 1,
        bytes: 100 * cpus as u64,
        new_flows: 3 * cpus as u64,
        replies: 0u64.wrapping_sub(cpus as u64),
    };
    let none = FrontendCount::default();
    assert_eq!(counters.frontends(5..9)?, [none, sum, sum, none]);
    assert_eq!(
        counters.frontends(0..u32::MAX)?.len(),
        LIMITS.frontend_ids() as usize
    );
    let by_reason = counters.reasons(6..8)?;
    assert_eq!(by_reason.len(), 2);
    assert_eq!(by_reason[1][Reason::NoRoute as usize], 5 * cpus as u64);
    assert_eq!(by_reason[1].iter().sum::<u64>(), 5 * cpus as u64);

    maps.bpf()?.apply(&[Op::ZeroFrontend { id: 6 }])?;
    assert_eq!(counters.frontends(6..8)?, [none, sum]);
    assert_eq!(counters.reasons(6..7)?[0], [0; Reason::COUNT as usize]);
    assert_eq!(
        counters.reasons(7..8)?[0][Reason::NoRoute as usize],
        5 * cpus as u64
    );
    Ok(())
}

#[test]
fn the_clock_runs_at_a_rate_that_kernels_have() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let clock = Clock::load()?;
    let rate = clock.rate()?;
    println!("{rate} jiffies a second");
    assert!([100, 250, 300, 1000].contains(&rate));
    let before = clock.now()?;
    assert!(clock.now()? - before < u64::from(rate));
    Ok(())
}
