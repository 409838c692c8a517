//! How full the maps are.

use std::{io, os::fd::AsFd as _, path::Path};

use aya::{Pod, maps::MapData};
use lb_common::{
    abi::{Flow, Frontend, FrontendKey, Tuple},
    bytes::{V4, V6},
};

use super::{open, syscall};

/// Entries of one map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapUsage {
    pub map: &'static str,
    pub used: u32,
    pub max: u32,
}

/// Counts the entries of the hash maps pinned in `folder`. Reads them all: measured, 0.5 s for a
/// million flows, so it is nothing to do more often than people look.
pub fn usage(folder: &Path) -> io::Result<Vec<MapUsage>> {
    Ok(vec![
        count::<FrontendKey<V4>, Frontend>(folder, "FRONTENDS4")?,
        count::<FrontendKey<V6>, Frontend>(folder, "FRONTENDS6")?,
        count::<Tuple<V4>, Flow<V4>>(folder, "FLOWS4")?,
        count::<Tuple<V6>, Flow<V6>>(folder, "FLOWS6")?,
        count::<Tuple<V4>, Flow<V4>>(folder, "HALF_OPEN4")?,
        count::<Tuple<V6>, Flow<V6>>(folder, "HALF_OPEN6")?,
    ])
}

fn count<K: Pod, V: Pod>(folder: &Path, name: &'static str) -> io::Result<MapUsage> {
    const BATCH: usize = 8192;
    let (data, info): (MapData, _) = open::map(folder, name).map_err(io::Error::other)?;
    if (info.key_size() as usize, info.value_size() as usize) != (size_of::<K>(), size_of::<V>()) {
        return Err(io::Error::other(format!("map {name} has another layout")));
    }
    let (mut used, mut from) = (0, None);
    loop {
        let batch = syscall::lookup_batch::<K, V>(data.fd().as_fd(), from, BATCH)?;
        used += batch.keys.len() as u32;
        match batch.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    Ok(MapUsage {
        map: name,
        used,
        max: info.max_entries(),
    })
}
