//! Leaving the host as it was.

use std::{collections::BTreeSet, io::ErrorKind, path::Path};

use super::{
    AttachError, Undone, fit,
    lock::Lock,
    lock_file, multicast, netlink, nft,
    pins::{Home, Root},
    replies, run_folder, tc, undo,
};

/// What was removed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Detached {
    /// Interfaces that had a program of ours.
    pub interfaces: BTreeSet<String>,
    /// Whether maps and folders are gone, too.
    pub all: bool,
    /// Changes of `doctor --fix`.
    pub undone: Undone,
}

/// Takes our programs off the given interfaces, or off all, and undoes what `doctor --fix` did to them; with the last one
/// go maps, folders and marks. Foreign
/// programs, filters and pins stay. A running agent would put everything back, so there must be none.
pub fn detach(
    pin_root: &Path,
    run_root: &Path,
    interfaces: Option<&[String]>,
) -> Result<Detached, AttachError> {
    let missing = fit::missing_capabilities();
    if !missing.is_empty() {
        return Err(AttachError::NoPrivileges(missing));
    }
    let run_folder = run_folder(run_root, pin_root);
    let lock = Lock::take(&lock_file(&run_folder))?;
    let root = Root::existing(pin_root);
    if let Some(root) = &root {
        // What is not ours is told before anything is removed.
        for pin in root.links()? {
            pin.open()?;
        }
        for generation in root.generations()? {
            generation.check()?;
        }
    }
    let mut done = Detached::default();
    let wanted = |name: &str| interfaces.is_none_or(|names| names.iter().any(|one| one == name));
    let mut left = 0;
    if let Some(root) = &root {
        let mut links = root.links()?;
        // What XDP sends to backends is not to be answered past us.
        links.sort_by_key(|pin| pin.home != Home::Xdp);
        for pin in links {
            if !wanted(&pin.interface) {
                left += usize::from(pin.home == Home::Xdp);
            } else if pin.remove()? {
                done.interfaces.insert(pin.interface);
            }
        }
    }
    for interface in netlink::interfaces().map_err(AttachError::system("interfaces"))? {
        if wanted(&interface.name) && tc::detach_clsact(&run_folder, &interface)? {
            done.interfaces.insert(interface.name.clone());
        }
        if wanted(&interface.name) {
            multicast::detach(&run_folder, &interface)?;
        }
    }
    let only = if left > 0 { interfaces } else { None };
    done.undone = undo(pin_root, run_root, only)?;
    if left > 0 {
        return Ok(done);
    }
    if let Some(root) = &root {
        for generation in root.generations()? {
            generation.remove()?;
        }
        root.remove_if_empty()
            .map_err(AttachError::system(pin_root.display().to_string()))?;
    }
    replies::remove(&mut nft::Nft::default())
        .map_err(AttachError::system("nftables: table inet millrace"))?;
    multicast::forget(&run_folder)?;
    lock.remove()
        .and_then(|()| std::fs::remove_dir(&run_folder))
        .map_err(AttachError::system(run_folder.display().to_string()))?;
    // The folder of all pin folders' locks, unless another agent or the agent's socket is in it.
    if run_root
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_none())
    {
        match std::fs::remove_dir(run_root) {
            // In a container it is a volume, and what it is mounted on cannot be written.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ResourceBusy | ErrorKind::ReadOnlyFilesystem
                ) => {}
            removed => removed.map_err(AttachError::system(run_root.display().to_string()))?,
        }
    }
    done.all = true;
    Ok(done)
}
