//! Our programs and maps in the kernel, as one thing.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{Ebpf, programs::ProgramInfo};
use lb_common::ABI_VERSION;

use super::{
    AttachError, Attached, Clock, Mode, Options, TcChoice, fit,
    layout::{self, Difference, Layout},
    lock::Lock,
    lock_file, netlink, object,
    pins::{Generation, Home, Root},
    run_folder, tc, xdp,
};
use crate::dataplane::{Bpf, Counters, Flows, OpenError};

/// Loaded programs and pinned maps. Dropping it leaves everything in the kernel as it is.
#[derive(Debug)]
pub struct Installation {
    root: Root,
    run_folder: PathBuf,
    tc: TcChoice,
    generation: Generation,
    fresh: bool,
    replaces: Option<Replaces>,
    ebpf: Ebpf,
    _lock: Lock,
}

/// Another set of maps that is in use until [`Installation::attach`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replaces {
    pub abi: u32,
    /// Why it cannot be adopted.
    pub why: String,
    /// Flows of `nat` in it: the new maps do not have them, and most of them break.
    pub flows: u64,
}

impl Installation {
    /// Loads the programs. Takes 0.1 to 1 s; nothing that is attached changes.
    pub fn open(options: &Options) -> Result<Self, AttachError> {
        fit::check()?;
        let run_folder = run_folder(&options.run_folder, &options.pin_root);
        let lock = Lock::take(&lock_file(&run_folder))?;
        let root = Root::prepare(&options.pin_root)?;
        let layouts = layout::expected(object::bytes(), &options.limits)?;
        let Choice {
            generation,
            fresh,
            replaces,
        } = choose(&root, &layouts)?;
        if fresh {
            fs::create_dir_all(&generation.folder)
                .map_err(AttachError::system(generation.folder.display().to_string()))?;
        }
        let ebpf = object::load(&generation.folder, &layouts, options.log_level)?;
        Ok(Self {
            root,
            run_folder,
            tc: options.tc,
            generation,
            fresh,
            replaces,
            ebpf,
            _lock: lock,
        })
    }

    /// Folder of the pinned maps.
    pub fn maps(&self) -> &Path {
        &self.generation.folder
    }

    /// Whether the maps were made just now, so that nothing is in them.
    pub const fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The set of maps that attached programs use and that these maps take the place of.
    pub const fn replaces(&self) -> Option<&Replaces> {
        self.replaces.as_ref()
    }

    pub fn dataplane(&self) -> Result<Bpf, OpenError> {
        Bpf::open(self.maps())
    }

    pub fn counters(&self) -> Result<Counters, OpenError> {
        Counters::open(self.maps())
    }

    pub fn flows(&self) -> Result<Flows, OpenError> {
        Flows::open(self.maps())
    }

    pub fn clock(&mut self) -> Result<Clock, AttachError> {
        let clock = object::clock(&mut self.ebpf)?;
        program_fd(clock.fd()).map(Clock::new)
    }

    /// The loaded object, for reading the packet path's log.
    pub const fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Puts the programs on an interface of the calling thread's network namespace, in the place of those of ours that
    /// are there.
    pub fn attach(&mut self, interface: &str, mode: Mode) -> Result<Attached, AttachError> {
        self.follow_names()?;
        let found = netlink::interface(interface)
            .map_err(AttachError::system(format!("interface {interface}")))?
            .ok_or_else(|| AttachError::NoInterface(interface.to_owned()))?;
        // tc first: from its first packet on XDP may hand something up.
        let program = object::tc(&mut self.ebpf)?;
        let tc = tc::attach(&self.root, &self.run_folder, &found, self.tc, program)?;
        let program = program_fd(object::main(&mut self.ebpf)?.fd())?;
        let xdp = xdp::attach(&self.root, &found, mode, program.as_fd())?;
        Ok(Attached {
            interface: found.name,
            ifindex: found.index,
            mode,
            xdp,
            tc,
        })
    }

    /// Takes the programs off an interface that is no longer ours to serve. It may be gone already.
    pub fn release(&self, interface: &str) -> Result<(), AttachError> {
        for home in [Home::Xdp, Home::Tc] {
            let pin = self.root.link(home, interface);
            if pin.open()?.is_some() {
                pin.remove()?;
            }
        }
        let found = netlink::interface(interface)
            .map_err(AttachError::system(format!("interface {interface}")))?;
        if let Some(found) = found {
            tc::detach_clsact(&self.run_folder, &found)?;
        }
        Ok(())
    }

    /// Interfaces that have our XDP program by a pinned link, by name.
    pub fn attached(&self) -> Result<BTreeSet<String>, AttachError> {
        let links = self.root.links()?;
        Ok(links
            .into_iter()
            .filter(|pin| pin.home == Home::Xdp)
            .map(|pin| pin.interface)
            .collect())
    }

    /// Removes every other set of maps. To be called when all interfaces run the new programs; says how many.
    pub fn retire(&mut self) -> Result<usize, AttachError> {
        let mut removed = 0;
        for generation in self.root.generations()? {
            if generation != self.generation {
                generation.remove()?;
                removed += 1;
            }
        }
        self.replaces = None;
        Ok(removed)
    }

    /// Links whose interface is gone lose their pin; those whose interface was renamed get it under the new name.
    fn follow_names(&self) -> Result<(), AttachError> {
        let interfaces = netlink::interfaces().map_err(AttachError::system("interfaces"))?;
        for pin in self.root.links()? {
            let Some((_, info)) = pin.open()? else {
                continue;
            };
            let now = interfaces
                .iter()
                .find(|interface| interface.index == info.ifindex);
            match now {
                None => pin.remove()?,
                Some(now) if now.name != pin.interface => {
                    let right = self.root.link(pin.home, &now.name);
                    if right.open()?.is_none() {
                        fs::rename(&pin.path, &right.path)
                            .map_err(AttachError::system(right.path.display().to_string()))?;
                    }
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Which set of maps to use.
struct Choice {
    generation: Generation,
    fresh: bool,
    replaces: Option<Replaces>,
}

/// Takes the pinned set that is as this build needs it, if attached programs use it or none are attached; else a new
/// one. A set that nobody uses beside one in
/// use is what an interrupted start left; it is removed.
fn choose(root: &Root, layouts: &[Layout]) -> Result<Choice, AttachError> {
    let used_maps = used_maps(root)?;
    let mut adoptable = Vec::new();
    let mut active: Option<(Generation, Vec<Difference>)> = None;
    let generations = root.generations()?;
    let next = generations.last().map_or(1, |last| last.number + 1);
    for generation in generations {
        let used = generation
            .map_ids()?
            .iter()
            .any(|id| used_maps.contains(id));
        let differences = differences(&generation, layouts)?;
        if differences.is_empty() && generation.abi == ABI_VERSION {
            adoptable.push((generation, used));
        } else if used {
            active = Some((generation, differences));
        } else {
            generation.remove()?;
        }
    }
    let nothing_used = active.is_none() && !adoptable.iter().any(|(_, used)| *used);
    let mut chosen = None;
    for (generation, used) in adoptable.into_iter().rev() {
        if chosen.is_none() && (used || nothing_used) {
            chosen = Some(generation);
        } else if !used {
            generation.remove()?;
        }
    }
    if let Some(generation) = chosen {
        return Ok(Choice {
            generation,
            fresh: false,
            replaces: None,
        });
    }
    let replaces = active.map(|(generation, differences)| Replaces {
        abi: generation.abi,
        why: why(&generation, &differences),
        flows: flows(&generation),
    });
    Ok(Choice {
        generation: root.generation(ABI_VERSION, next),
        fresh: true,
        replaces,
    })
}

fn differences(
    generation: &Generation,
    layouts: &[Layout],
) -> Result<Vec<Difference>, AttachError> {
    let mut all = Vec::new();
    for layout in layouts {
        match layout.compare(&generation.folder)? {
            Some(differences) => all.extend(differences),
            None => all.push(Difference {
                map: layout.name.clone(),
                what: "missing".into(),
            }),
        }
    }
    Ok(all)
}

fn why(generation: &Generation, differences: &[Difference]) -> String {
    if generation.abi != ABI_VERSION {
        return format!("ABI {}, not {ABI_VERSION}", generation.abi);
    }
    let shown: Vec<String> = differences
        .iter()
        .map(|difference| format!("{}: {}", difference.map, difference.what))
        .collect();
    shown.join("; ")
}

/// Ids of the maps that programs on pinned links use.
fn used_maps(root: &Root) -> Result<BTreeSet<u32>, AttachError> {
    let mut used = BTreeSet::new();
    for pin in root.links()? {
        let Some((_, info)) = pin.open()? else {
            continue;
        };
        let program = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .find(|program| program.id() == info.program);
        let maps = program.and_then(|program| ProgramInfo::map_ids(&program).ok().flatten());
        used.extend(maps.unwrap_or_default());
    }
    Ok(used)
}

/// Flows in another set of maps, as far as they can be read.
fn flows(generation: &Generation) -> u64 {
    let mut count = 0;
    let counted = Flows::open(&generation.folder).map(|flows| {
        flows.each(0, |_| {
            count += 1;
            true
        })
    });
    if !matches!(counted, Ok(Ok(()))) {
        tracing::debug!("flows of {} cannot be read", generation.folder.display());
    }
    count
}

fn program_fd(
    fd: Result<&aya::programs::ProgramFd, aya::programs::ProgramError>,
) -> Result<OwnedFd, AttachError> {
    fd.map_err(|error| object::failed("program", error))?
        .as_fd()
        .try_clone_to_owned()
        .map_err(AttachError::system("descriptor of a program"))
}
