//! The pin folder: what is where, and what of it is ours.
//!
//! ```text
//! ROOT/links/xdp-eth0      the link that keeps the XDP program on eth0
//! ROOT/links/tc-eth0       the same for the tc program at its ingress (TCX)
//! ROOT/links/egress-eth0   and at its egress
//! ROOT/abi1-3/SERVICES …   the maps: ABI version, and a number that counts the sets of maps
//! ROOT/abi1-3/program-57   an XDP program that uses these maps, by its id
//! ```
//! Links stand outside of the map folders: a link stays when its program goes over to another set of maps, even one of
//! another ABI. Which set a link's program uses is told by the program's pin: looking a program up by its id takes
//! `CAP_SYS_ADMIN`, which the agent need not have.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::statfs,
    mount::{MountFlags, mount},
};

use aya::programs::ProgramInfo;

use super::{
    AttachError, layout,
    link::{self, PinKind},
};

/// `BPF_FS_MAGIC`
const BPFFS: u64 = 0xcafe_4a11;
/// Where BPF filesystems are by custom.
const CUSTOMARY: &str = "/sys/fs/bpf";

/// What the names of pinned programs begin with; the id follows.
const PROGRAM: &str = "program-";

/// The pin folder.
#[derive(Clone, Debug)]
pub(super) struct Root(PathBuf);

/// A set of maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Generation {
    pub(super) abi: u32,
    pub(super) number: u32,
    pub(super) folder: PathBuf,
}

/// Where a program sits on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Home {
    Xdp,
    Tc,
    Egress,
}

/// A pinned link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LinkPin {
    pub(super) home: Home,
    pub(super) interface: String,
    pub(super) path: PathBuf,
}

impl Root {
    /// Makes the folder, and mounts a BPF filesystem if there is none where one belongs.
    pub(super) fn prepare(path: &Path) -> Result<Self, AttachError> {
        if path.starts_with(CUSTOMARY) && !is_bpffs(Path::new(CUSTOMARY)) {
            mount("bpf", CUSTOMARY, "bpf", MountFlags::empty(), None)
                .map_err(|_| AttachError::NoBpffs(path.to_owned()))?;
        }
        let root = Self(path.to_owned());
        // Asked before anything is made: on another filesystem nothing must be left behind.
        if !is_bpf_filesystem(path) {
            return Err(AttachError::NoBpffs(path.to_owned()));
        }
        fs::create_dir_all(root.links_folder()).map_err(AttachError::system(
            root.links_folder().display().to_string(),
        ))?;
        Ok(root)
    }

    /// The folder if it is there.
    pub(super) fn existing(path: &Path) -> Option<Self> {
        path.is_dir().then(|| Self(path.to_owned()))
    }

    fn links_folder(&self) -> PathBuf {
        self.0.join("links")
    }

    pub(super) fn link(&self, home: Home, interface: &str) -> LinkPin {
        let name = format!("{}-{}", home.prefix(), encode(interface));
        LinkPin {
            home,
            interface: interface.to_owned(),
            path: self.links_folder().join(name),
        }
    }

    /// All pinned links, sorted by path.
    pub(super) fn links(&self) -> Result<Vec<LinkPin>, AttachError> {
        let mut links: Vec<LinkPin> = names(&self.links_folder())?
            .iter()
            .filter_map(|name| {
                let (home, interface) = name.split_once('-')?;
                let home = [Home::Xdp, Home::Tc, Home::Egress]
                    .into_iter()
                    .find(|known| known.prefix() == home)?;
                Some(self.link(home, &decode(interface)))
            })
            .collect();
        links.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(links)
    }

    /// Ids of the programs that the pinned XDP links run.
    pub(super) fn running(&self) -> Result<BTreeSet<u32>, AttachError> {
        let mut running = BTreeSet::new();
        for pin in self.links()? {
            if pin.home == Home::Xdp
                && let Some((_, info)) = pin.open()?
            {
                running.insert(info.program);
            }
        }
        Ok(running)
    }

    /// All sets of maps, the newest last.
    pub(super) fn generations(&self) -> Result<Vec<Generation>, AttachError> {
        let mut generations: Vec<Generation> = names(&self.0)?
            .iter()
            .filter_map(|name| {
                let (abi, number) = name.strip_prefix("abi")?.split_once('-')?;
                Some(self.generation(abi.parse().ok()?, number.parse().ok()?))
            })
            .collect();
        generations.sort_by_key(|generation| generation.number);
        Ok(generations)
    }

    pub(super) fn generation(&self, abi: u32, number: u32) -> Generation {
        Generation {
            abi,
            number,
            folder: self.0.join(format!("abi{abi}-{number}")),
        }
    }

    /// Takes the folder itself away when nothing is left in it.
    pub(super) fn remove_if_empty(&self) -> io::Result<()> {
        for folder in [self.links_folder(), self.0.clone()] {
            match fs::remove_dir(&folder) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Generation {
    /// An error if something in the folder is not ours.
    pub(super) fn check(&self) -> Result<(), AttachError> {
        for name in names(&self.folder)? {
            if !name.starts_with(PROGRAM) {
                layout::own_map(&self.folder.join(name))?;
            }
        }
        self.programs().map(drop)
    }

    /// Programs that use these maps: their pins and ids.
    pub(super) fn programs(&self) -> Result<Vec<(PathBuf, u32)>, AttachError> {
        let mut programs = Vec::new();
        for name in names(&self.folder)? {
            if !name.starts_with(PROGRAM) {
                continue;
            }
            let path = self.folder.join(name);
            let foreign = |what: String| AttachError::ForeignPin {
                path: path.clone(),
                what,
            };
            let pinned = link::open(&path).map_err(|error| foreign(error.to_string()))?;
            if pinned.kind != PinKind::Program {
                return Err(foreign("a BPF object, but no program".into()));
            }
            let info = ProgramInfo::from_pin(&path).map_err(|error| foreign(error.to_string()))?;
            programs.push((path, info.id()));
        }
        Ok(programs)
    }

    /// Whether a link runs a program that uses these maps. `running`: ids of the links' programs.
    pub(super) fn is_used(&self, running: &BTreeSet<u32>) -> Result<bool, AttachError> {
        let programs = self.programs()?;
        Ok(programs.iter().any(|(_, id)| running.contains(id)))
    }

    /// Remembers that a program uses these maps.
    pub(super) fn pin_program(&self, program: BorrowedFd<'_>, id: u32) -> Result<(), AttachError> {
        let path = self.folder.join(format!("{PROGRAM}{id}"));
        link::pin(program, &path).map_err(AttachError::system(path.display().to_string()))
    }

    /// Forgets the programs that no link runs, but for `kept`. The kernel frees them with their last user.
    pub(super) fn forget_programs(
        &self,
        running: &BTreeSet<u32>,
        kept: u32,
    ) -> Result<(), AttachError> {
        for (path, id) in self.programs()? {
            if id != kept && !running.contains(&id) {
                fs::remove_file(&path).map_err(AttachError::system(path.display().to_string()))?;
            }
        }
        Ok(())
    }

    /// Unpins all maps. The kernel frees them when no program uses them any more.
    pub(super) fn remove(&self) -> Result<(), AttachError> {
        // Nothing is removed before everything was looked at.
        self.check()?;
        for name in names(&self.folder)? {
            let path = self.folder.join(name);
            fs::remove_file(&path).map_err(AttachError::system(path.display().to_string()))?;
        }
        fs::remove_dir(&self.folder).map_err(AttachError::system(self.folder.display().to_string()))
    }
}

impl LinkPin {
    /// The link and what it holds; `None` if there is no pin. Something else under this name is an error.
    pub(super) fn open(&self) -> Result<Option<(link::Pinned, link::Info)>, AttachError> {
        let foreign = |what: &str| AttachError::ForeignPin {
            path: self.path.clone(),
            what: what.to_owned(),
        };
        let pinned = match link::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(foreign(&error.to_string())),
            Ok(pinned) => pinned,
        };
        if pinned.kind != PinKind::Link {
            return Err(foreign("a BPF object, but no link"));
        }
        let info = link::info(pinned.fd.as_fd())
            .map_err(AttachError::system(self.path.display().to_string()))?;
        let wanted = match self.home {
            Home::Xdp => link::Info::XDP,
            Home::Tc | Home::Egress => link::Info::TCX,
        };
        if info.kind != wanted {
            return Err(foreign("a link of another type"));
        }
        Ok(Some((pinned, info)))
    }

    /// Takes the program off the interface and removes the pin; says whether there was one.
    ///
    /// Removing the pin alone would do, but later: the kernel lets go of a pinned link after an RCU grace period, and
    /// until then the interface is taken (measured: 7 of 40 attachments right after met EEXIST).
    pub(super) fn remove(&self) -> Result<bool, AttachError> {
        let failed = || AttachError::system(self.path.display().to_string());
        let Some((pinned, _)) = self.open()? else {
            return Ok(false);
        };
        link::detach(pinned.fd.as_fd()).map_err(failed())?;
        fs::remove_file(&self.path).map_err(failed())?;
        Ok(true)
    }
}

impl Home {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Egress => "egress",
        }
    }
}

/// Whether `path`, or what of it is there, lies on a BPF filesystem.
pub fn is_bpf_filesystem(path: &Path) -> bool {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(is_bpffs)
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.f_type as u64 & 0xffff_ffff == BPFFS)
}

/// Names in a folder; none if the folder is not there.
fn names(folder: &Path) -> Result<Vec<String>, AttachError> {
    let failed = || AttachError::system(folder.display().to_string());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed())?,
    };
    entries
        .map(|entry| {
            Ok(entry
                .map_err(failed())?
                .file_name()
                .to_string_lossy()
                .into_owned())
        })
        .collect()
}

/// bpffs takes no dots in names, which VLAN interfaces have.
fn encode(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn decode(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_survive_the_way_into_a_file_name() {
        for name in ["eth0", "eth0.100", "a%2eb", "%25", "br-lan", "x.%y"] {
            assert!(!encode(name).contains('.'));
            assert_eq!(decode(&encode(name)), name);
        }
    }
}
