//! A director's maps while more TCP flows go through it to another node than it has room for anywhere.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    abi::{Flow, Reason, Tuple},
    bytes::V4,
};
use lb_userspace::{
    attach::Clock,
    dataplane::{Counters, Dataplane as _},
    plan::Limits,
};

use super::{
    contents::{self, Kind as Service},
    frames::{self, Fresh, Kind},
    kernel::{self, XDP_TX},
    packet::{CLIENT4, MACS},
};
use crate::{
    is_root,
    kernel::{Kernel, LOOPBACK},
};

const FLOWS: u32 = 1 << 20;
/// Flows that begin before the first of them goes on.
const LOT: u32 = 8192;

/// With maps as they are installed: no flow leaves anything in them.
#[test]
fn a_million_flows_take_a_director_no_memory() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut kernel = Kernel::load("many", &Limits::default().map_sizes())?;
    let next_hop = contents::next_hop(MACS[0], MACS[1], LOOPBACK);
    let ops = contents::ops(&next_hop, Clock::load()?.rate()?);
    kernel.dataplane.apply(&ops)?;
    let program = kernel.xdp()?.fd()?.try_clone()?;
    let packets = |kind| {
        let frame = frames::frame(MACS, CLIENT4.into(), Service::Dsr4.vip(), kind)?;
        Fresh::new(frame, FLOWS.into())
    };
    let send = |packets: &Fresh, count| -> Result<u32> {
        let program = packets.before(program.as_fd())?;
        Ok(kernel::run(program, &packets.frame, count)?)
    };
    let (syns, acks) = (packets(Kind::Syn)?, packets(Kind::Ack)?);
    let before = memory(&kernel)?;
    for _ in 0..FLOWS / LOT {
        for packets in [&syns, &acks] {
            assert_eq!(send(packets, LOT)?, XDP_TX);
        }
    }
    assert_eq!(memory(&kernel)?, before);
    for name in ["FLOWS4", "HALF_OPEN4"] {
        let pin = MapData::from_pin(kernel.folder.join(name))?;
        let flows: HashMap<_, Tuple<V4>, Flow<V4>> = Map::LruHashMap(pin).try_into()?;
        assert_eq!(flows.keys().count(), 0, "{name}");
    }

    // From the first on, one packet of each.
    assert_eq!(send(&acks, FLOWS)?, XDP_TX);
    let id = Service::Dsr4.frontend();
    let counters = Counters::open(&kernel.folder)?;
    assert_eq!(
        counters.frontends(id..id + 1)?[0].packets,
        3 * u64::from(FLOWS)
    );
    assert_eq!(
        counters.reasons(id..id + 1)?[0],
        [0; Reason::COUNT as usize]
    );
    Ok(())
}

/// Bytes that each map takes. What has its room from the start (all LRU maps) takes as much when it is full; of others the
/// kernel counts what is in them since 6.4.
fn memory(kernel: &Kernel) -> Result<BTreeMap<String, u64>> {
    let mut maps = BTreeMap::new();
    for pin in fs::read_dir(&kernel.folder)? {
        let pin = pin?;
        let map = MapData::from_pin(pin.path())?;
        let fd = map.fd().as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        let bytes = bytes.context("fdinfo: memlock")?.trim().parse()?;
        maps.insert(pin.file_name().to_string_lossy().into_owned(), bytes);
    }
    Ok(maps)
}
