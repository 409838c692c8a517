//! The flow tables as the CLI reads and empties them.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    abi::{Flow, Hop, Tuple, flow_state},
    bytes::{Be16, V4},
};
use lb_tests::is_root;
use lb_userspace::dataplane::{FlowState, usage};

use super::Maps;

/// A flow and its opposite, as the program writes them.
fn flow(client: u16, seen: u32, reply_state: u32) -> [(Tuple<V4>, Flow<V4>); 2] {
    let ip = |last| V4::from(Ipv4Addr::new(10, 0, 0, last));
    let tuple = Tuple {
        source: ip(1),
        destination: ip(2),
        source_port: Be16::new(client),
        destination_port: Be16::new(80),
        protocol: 6,
        pad: [0; 3],
    };
    let forward = Flow {
        source: ip(3),
        destination: ip(4),
        source_port: Be16::new(client),
        destination_port: Be16::new(8080),
        hop: Hop::default(),
        backend: 11,
        generation: 1,
        frontend: 12,
        seen,
        resolved: 0,
        isn: 0,
        state: flow_state::REPLIED,
    };
    let reply = Flow {
        source: tuple.destination,
        destination: tuple.source,
        source_port: tuple.destination_port,
        destination_port: tuple.source_port,
        state: flow_state::REPLY | reply_state,
        ..forward
    };
    [(tuple, forward), (forward.opposite(6), reply)]
}

#[test]
fn flows_are_listed_once_each_and_removed_whole() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let maps = Maps::make()?;
    let open = |name: &str| -> Result<HashMap<MapData, Tuple<V4>, Flow<V4>>> {
        let data = MapData::from_pin(maps.folder().join(name))?;
        Ok(HashMap::try_from(Map::LruHashMap(data))?)
    };
    let (mut established, mut half_open) = (open("FLOWS4")?, open("HALF_OPEN4")?);
    for (key, value) in flow(1000, 90, 0)
        .into_iter()
        .chain(flow(1001, 80, flow_state::FIN))
    {
        established.insert(key, value, 0)?;
    }
    for (key, value) in flow(1002, 99, 0) {
        half_open.insert(key, value, 0)?;
    }
    let mut flows = maps.installation.flows()?;
    let mut rows = BTreeMap::new();
    flows.each(100, |row| {
        rows.insert(row.client.port(), *row);
        true
    })?;
    let told: Vec<_> = rows.values().map(|row| (row.state, row.idle)).collect();
    assert_eq!(
        told,
        [
            (FlowState::Established, 10),
            (FlowState::Closing, 20),
            (FlowState::Half, 1)
        ]
    );
    assert_eq!(rows[&1000].backend.to_string(), "10.0.0.4:8080");
    assert_eq!(rows[&1000].nat.to_string(), "10.0.0.3:1000");

    let used = |name: &str| -> Result<u32> {
        let all = usage(maps.folder())?;
        Ok(all
            .iter()
            .find(|usage| usage.map == name)
            .map_or(0, |usage| usage.used))
    };
    assert_eq!((used("FLOWS4")?, used("HALF_OPEN4")?), (4, 2));
    flows.remove(&rows[&1000])?;
    flows.remove(&rows[&1002])?;
    flows.remove(&rows[&1002])?;
    assert_eq!((used("FLOWS4")?, used("HALF_OPEN4")?), (2, 0));
    Ok(())
}

#[test]
fn flows_beyond_one_batch_are_all_seen() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let maps = Maps::make()?;
    let data = MapData::from_pin(maps.folder().join("FLOWS4"))?;
    let mut established: HashMap<_, Tuple<V4>, Flow<V4>> =
        HashMap::try_from(Map::LruHashMap(data))?;
    let mut written = 0;
    for client in 1..=3000 {
        for (key, value) in flow(client, 0, 0) {
            established.insert(key, value, 0)?;
            written += 1;
        }
    }
    let mut seen = 0;
    maps.installation.flows()?.each(0, |_| {
        seen += 1;
        true
    })?;
    // An LRU map may already have evicted a few.
    ensure!(written == 6000 && (2500..=3000).contains(&seen), "{seen}");
    Ok(())
}
