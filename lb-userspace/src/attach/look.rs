//! What is in the kernel of ours, seen without an agent and without a change.

use std::path::{Path, PathBuf};

use aya::programs::SchedClassifier;

use super::{
    AttachError, Mode, Nic, Program, name_of, netlink,
    pins::{Home, Root},
    tc::Side,
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
    /// None if the interface is gone.
    pub index: Option<u32>,
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
            index: found.as_ref().map(|found| found.index),
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

/// An interface as it is, for who judges it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspected {
    pub nic: Nic,
    pub xdp: Option<(Program, Mode)>,
    /// The XDP program is that of the pins.
    pub ours: bool,
    /// Programs of others at its tc ingress and egress.
    pub tc: Vec<Program>,
}

/// None if there is no such interface in the calling thread's network namespace.
pub fn inspect(pin_root: &Path, interface: &str) -> Result<Option<Inspected>, AttachError> {
    let failed = || AttachError::system(format!("interface {interface}"));
    let Some(found) = netlink::interface(interface).map_err(failed())? else {
        return Ok(None);
    };
    let ours = match Root::existing(pin_root) {
        None => false,
        Some(root) => root
            .link(Home::Xdp, interface)
            .open()?
            .is_some_and(|(_, info)| info.ifindex == found.index),
    };
    let xdp = found.xdp.map(|xdp| {
        let program = Program {
            id: xdp.program,
            name: name_of(xdp.program).unwrap_or_default(),
        };
        (program, Mode::of(xdp.generic))
    });
    let mut tc = Vec::new();
    for side in Side::BOTH {
        let filters = netlink::filters(found.index, side.parent()).map_err(failed())?;
        tc.extend(filters.into_iter().map(|filter| Program {
            id: filter.program,
            name: filter.name,
        }));
        // Before 6.6 the kernel knows no TCX.
        if let Ok((_, programs)) = SchedClassifier::query_tcx(interface, side.of_clsact()) {
            tc.extend(programs.iter().map(|program| Program {
                id: program.id(),
                name: program.name_as_str().unwrap_or_default().to_owned(),
            }));
        }
    }
    tc.retain(|program| Side::BOTH.iter().all(|side| program.name != side.program()));
    Ok(Some(Inspected {
        nic: Nic::read(&found).map_err(failed())?,
        xdp,
        ours,
        tc,
    }))
}
