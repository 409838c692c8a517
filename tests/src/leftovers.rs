//! What packets leave in the maps: emptied and zeroed, so that loaded programs serve another test.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use lb_common::{
    abi::{BackendCount, Bucket, Flow, Fragment, FragmentKey, FrontendCount, Tuple},
    bytes::{V4, V6},
};

/// All of it in the maps that are pinned in this folder.
pub fn clear(maps: &Path) -> Result<()> {
    empty::<Tuple<V4>, Flow<V4>>(maps, "FLOWS4")?;
    empty::<Tuple<V6>, Flow<V6>>(maps, "FLOWS6")?;
    empty::<Tuple<V4>, Flow<V4>>(maps, "HALF_OPEN4")?;
    empty::<Tuple<V6>, Flow<V6>>(maps, "HALF_OPEN6")?;
    empty::<FragmentKey<V4>, Fragment<V4>>(maps, "FRAGMENTS4")?;
    empty::<FragmentKey<V6>, Fragment<V6>>(maps, "FRAGMENTS6")?;
    forget_moved(maps)?;
    zero::<Bucket>(maps, "BUCKETS")?;
    zero::<FrontendCount>(maps, "FRONTEND_STATS")?;
    zero::<BackendCount>(maps, "BACKEND_STATS")?;
    zero::<u64>(maps, "REASONS")
}

fn empty<K: Pod, V: Pod>(maps: &Path, name: &str) -> Result<()> {
    let map = Map::LruHashMap(MapData::from_pin(maps.join(name))?);
    let mut map: HashMap<_, K, V> = map.try_into().context(name.to_owned())?;
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    for key in keys {
        map.remove(&key).context(name.to_owned())?;
    }
    Ok(())
}

pub(crate) fn forget_moved(maps: &Path) -> Result<()> {
    let map = Map::Array(MapData::from_pin(maps.join("MOVED"))?);
    let mut map: Array<_, u64> = map.try_into().context("MOVED")?;
    for index in 0..map.len() {
        if map.get(&index, 0)? != 0 {
            map.set(index, 0, 0)?;
        }
    }
    Ok(())
}

/// Elements that are zero already are left alone: reading is half of the work.
fn zero<V: Pod + Default + PartialEq>(maps: &Path, name: &str) -> Result<()> {
    let map = Map::PerCpuArray(MapData::from_pin(maps.join(name))?);
    let mut map: PerCpuArray<_, V> = map.try_into().context(name.to_owned())?;
    let cpus = nr_cpus().map_err(|(_, error)| error)?;
    for index in 0..map.len() {
        let values = map.get(&index, 0)?;
        if values.iter().any(|value| *value != V::default()) {
            let zeros = PerCpuValues::try_from(vec![V::default(); cpus])?;
            map.set(index, zeros, 0)?;
        }
    }
    Ok(())
}
