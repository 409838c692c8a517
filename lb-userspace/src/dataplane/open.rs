//! Pinned maps, opened for what they are: type and sizes are compared before anything is read or written.

use std::{io, path::Path};

use aya::{
    Pod,
    maps::{Array, DevMapHash, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuHashMap},
};
use lb_common::abi::Settings;

/// A map that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("map {path}: {source}")]
    Pin { path: String, source: MapError },
    #[error(
        "map {map} has {what} {found} where this program needs {wanted}: remove the pin folder with `millrace detach`"
    )]
    Layout {
        map: &'static str,
        what: &'static str,
        found: u32,
        wanted: u32,
    },
    #[error("number of CPUs: {0}")]
    Cpus(io::Error),
}

/// The map pinned as `name` in `folder`.
pub(super) fn map(folder: &Path, name: &str) -> Result<(MapData, MapInfo), OpenError> {
    let path = folder.join(name);
    let pin = |source| OpenError::Pin {
        path: path.display().to_string(),
        source,
    };
    let map = MapData::from_pin(&path).map_err(pin)?;
    let info = map.info().map_err(pin)?;
    Ok((map, info))
}

pub(super) fn expect_size(
    map: &'static str,
    what: &'static str,
    found: u32,
    wanted: usize,
) -> Result<(), OpenError> {
    if found as usize == wanted {
        return Ok(());
    }
    Err(OpenError::Layout {
        map,
        what: match what {
            "key" => "a key size of",
            _ => "a value size of",
        },
        found,
        wanted: wanted as u32,
    })
}

/// aya compares type and sizes of what it opens, except those of a trie's key.
pub(super) fn hash<K: Pod, V: Pod>(
    folder: &Path,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, OpenError> {
    typed(folder, name)
}

pub(super) fn per_cpu_hash<K: Pod, V: Pod>(
    folder: &Path,
    name: &'static str,
) -> Result<PerCpuHashMap<MapData, K, V>, OpenError> {
    typed(folder, name)
}

pub(super) fn trie<K: Pod>(
    folder: &Path,
    name: &'static str,
) -> Result<LpmTrie<MapData, K, u32>, OpenError> {
    typed(folder, name)
}

pub(super) fn devices(folder: &Path, name: &'static str) -> Result<DevMapHash<MapData>, OpenError> {
    typed(folder, name)
}

/// What holds for every packet, by the maps pinned in `folder`.
pub fn settings(folder: &Path) -> Result<Settings, OpenError> {
    let map: Array<_, Settings> = typed(folder, "SETTINGS")?;
    map.get(&0, 0).map_err(|source| OpenError::Pin {
        path: folder.join("SETTINGS").display().to_string(),
        source,
    })
}

fn typed<T: TryFrom<Map, Error = MapError>>(
    folder: &Path,
    name: &'static str,
) -> Result<T, OpenError> {
    let (data, _) = map(folder, name)?;
    Map::from_map_data(data)
        .and_then(T::try_from)
        .map_err(|source| OpenError::Pin {
            path: folder.join(name).display().to_string(),
            source,
        })
}

/// The system's error in aya's.
pub(super) fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        MapError::KeyNotFound | MapError::ElementNotFound => {
            io::Error::from_raw_os_error(libc::ENOENT)
        }
        other => io::Error::other(other),
    }
}
