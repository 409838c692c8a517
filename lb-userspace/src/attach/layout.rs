//! What the object's maps look like, and whether pinned maps do.
//!
//! aya reuses a pinned map without a look (ecosystem.md section 3, trap 1): a value size that differs is silent memory
//! corruption. So every pin is compared first, in type, key, value, entries and flags; the definitions in the object
//! itself are what it is compared with, so a layout that changes under the same ABI number is noticed, too.

use std::{io, path::Path};

use aya::maps::{MapError, MapInfo};
use aya_obj::{EbpfSectionKind, Object};

use super::{
    AttachError,
    link::{self, PinKind},
};
use crate::plan::Limits;

/// A map as it is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub(super) name: String,
    kind: u32,
    key: u32,
    value: u32,
    pub(super) entries: u32,
    flags: u32,
}

/// How a pinned map differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Difference {
    pub(super) map: String,
    /// `entries 4096, not 8192`
    pub(super) what: String,
}

/// `BPF_F_RDONLY_PROG`: the kernel adds it to device maps by itself.
const ADDED_BY_KERNEL: u32 = 1 << 7;

/// A program's own work space: nothing in it outlives a packet.
const PRIVATE: &str = "SCRATCH";

/// The maps that are shared by all builds of an ABI. Constants (`.rodata`) and the log belong to one build.
pub(super) fn expected(object: &[u8], limits: &Limits) -> Result<Vec<Layout>, AttachError> {
    let object = Object::parse(object).map_err(|error| AttachError::Load {
        program: "object".into(),
        source: Box::new(error),
    })?;
    let sizes = limits.map_sizes();
    let mut layouts: Vec<Layout> = object
        .maps
        .iter()
        .filter(|(name, map)| {
            let section = matches!(
                map.section_kind(),
                EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps
            );
            section && !name.starts_with("AYA_") && name.as_str() != PRIVATE
        })
        .map(|(name, map)| Layout {
            name: name.clone(),
            kind: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            entries: sizes
                .iter()
                .find(|(sized, _)| sized == name)
                .map_or(map.max_entries(), |(_, entries)| *entries),
            flags: map.map_flags(),
        })
        .collect();
    layouts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(layouts)
}

impl Layout {
    /// How the map pinned in `folder` differs from this one; `None` if there is none. What cannot be one of ours is an
    /// error: nothing is overwritten or removed then.
    pub(super) fn compare(&self, folder: &Path) -> Result<Option<Vec<Difference>>, AttachError> {
        let path = folder.join(&self.name);
        let Some(info) = own_map(&path)? else {
            return Ok(None);
        };
        let kind = info.map_type().map_or(u32::MAX, |kind| kind as u32);
        let pairs = [
            ("type", kind, self.kind),
            ("key size", info.key_size(), self.key),
            ("value size", info.value_size(), self.value),
            ("entries", info.max_entries(), self.entries),
            (
                "flags",
                info.map_flags() & !ADDED_BY_KERNEL,
                self.flags & !ADDED_BY_KERNEL,
            ),
        ];
        Ok(Some(
            pairs
                .iter()
                .filter(|(_, found, wanted)| found != wanted)
                .map(|(what, found, wanted)| Difference {
                    map: self.name.clone(),
                    what: format!("{what} {found}, not {wanted}"),
                })
                .collect(),
        ))
    }
}

/// The map pinned at `path`, if it is one of ours: a map whose own name is that of the file (of which the kernel keeps
/// 15 characters).
pub(super) fn own_map(path: &Path) -> Result<Option<MapInfo>, AttachError> {
    let foreign = |what: &str| AttachError::ForeignPin {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    match link::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(foreign(&error.to_string())),
        Ok(pinned) if pinned.kind != PinKind::Map => {
            return Err(foreign("a BPF object, but no map"));
        }
        Ok(_) => {}
    }
    let info = MapInfo::from_pin(path).map_err(|error| AttachError::System {
        what: path.display().to_string(),
        source: match error {
            MapError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        },
    })?;
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let kept: String = file.chars().take(15).collect();
    let own = info.name_as_str().unwrap_or_default();
    if own != kept {
        return Err(foreign(&format!("a map that calls itself `{own}`")));
    }
    Ok(Some(info))
}
