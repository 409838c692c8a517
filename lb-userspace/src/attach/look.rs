//! What is in the kernel of ours, seen without an agent and without a change.

use std::path::{Path, PathBuf};

use super::{
    AttachError, Mode, netlink,
    pins::{Home, Root},
};

/// Pins of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Folder of the maps that attached programs use; of the newest ones if none are attached.
    pub maps: PathBuf,
    pub abi: u32,
    pub interfaces: Vec<SeenInterface>,
}

/// An interface whose link is pinned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenInterface {
    pub name: String,
    /// Bytes, without the Ethernet header.
    pub mtu: u32,
    /// None if no XDP program is on it any more.
    pub mode: Option<Mode>,
}

/// None if nothing is pinned in `pin_root`.
pub fn look(pin_root: &Path) -> Result<Option<Seen>, AttachError> {
    let Some(root) = Root::existing(pin_root) else {
        return Ok(None);
    };
    let running = root.running()?;
    let mut newest = None;
    for generation in root.generations()? {
        let used = generation.is_used(&running)?;
        newest = match newest {
            Some((kept, true)) if !used => Some((kept, true)),
            _ => Some((generation, used)),
        };
    }
    let Some((newest, _)) = newest else {
        return Ok(None);
    };
    let mut interfaces = Vec::new();
    for pin in root.links()? {
        if pin.home != Home::Xdp || pin.open()?.is_none() {
            continue;
        }
        let found = netlink::interface(&pin.interface)
            .map_err(AttachError::system(format!("interface {}", pin.interface)))?;
        interfaces.push(SeenInterface {
            name: pin.interface,
            mtu: found.as_ref().map_or(0, |found| found.mtu),
            mode: found
                .and_then(|found| found.xdp)
                .map(|xdp| Mode::of(xdp.generic)),
        });
    }
    Ok(Some(Seen {
        maps: newest.folder,
        abi: newest.abi,
        interfaces,
    }))
}
