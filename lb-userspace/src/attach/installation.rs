//! Our programs and maps in the kernel, as one thing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{Ebpf, programs::loaded_programs};
use lb_common::{ABI_VERSION, abi::setting_flag, bytes::Mac};

use super::{
    AttachError, Attached, How, Mode, Options, TcChoice, fit,
    layout::{self, Difference, Layout},
    lock::Lock,
    lock_file,
    multicast::Multicast,
    netlink::{self, Interface},
    nic, object,
    pins::{Generation, Home, Root},
    run_folder,
    tc::{self, Side},
    xdp,
};
use crate::dataplane::{Bpf, Counters, Flows, OpenError, settings};

/// Loaded programs and pinned maps. Dropping it leaves everything in the kernel as it is, but for new maps that no
/// interface got to use: those of a start that was refused.
#[derive(Debug)]
pub struct Installation {
    root: Root,
    run_folder: PathBuf,
    tc: TcChoice,
    multicast: Multicast,
    generation: Generation,
    fresh: bool,
    replaces: Option<Replaces>,
    ebpf: Ebpf,
    /// Names of all programs when this one was loaded, while there were the rights to ask.
    names: BTreeMap<u32, String>,
    /// Whether an interface has run a program on these maps since.
    attached: bool,
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
    /// Everything passes by command: the new maps are to do the same.
    pub bypass: bool,
}

impl Installation {
    /// Loads the programs. Nothing that is attached changes. Measured, 1 to 2 s with new maps of the default limits
    /// on a busy machine: the kernel zeroes them.
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
        let names = names_of_programs();
        let loaded = object::load(&generation.folder, &layouts, options);
        let ebpf = match loaded {
            Ok(ebpf) => ebpf,
            Err(error) => {
                if fresh {
                    generation.remove()?;
                    root.remove_if_empty()
                        .map_err(AttachError::system(options.pin_root.display().to_string()))?;
                }
                return Err(error);
            }
        };
        let mut installation = Self {
            root,
            multicast: Multicast::new(&run_folder),
            run_folder,
            tc: options.tc,
            fresh,
            replaces,
            ebpf,
            names,
            attached: false,
            generation,
            _lock: lock,
        };
        installation.remember_program()?;
        Ok(installation)
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
        if let Err(error) = nic::check(&found, mode) {
            // It stands aside whole, whatever it had before.
            self.release(&found.name)?;
            return Err(error);
        }
        // The way out first, then tc's way in: from its first packet on XDP may send to a backend that answers, or hand
        // something up.
        let egress = self.attach_tc(&found, Side::Egress)?;
        let tc = match self.attach_tc(&found, Side::Ingress) {
            Ok(tc) => tc,
            Err(error) => {
                if egress == How::Attached {
                    self.take_off_tc(&found.name)?;
                }
                return Err(error);
            }
        };
        object::link(&mut self.ebpf)?;
        let program = program_fd(object::main(&mut self.ebpf)?.fd())?;
        let xdp = match xdp::attach(&self.root, &found, mode, program.as_fd(), &self.names) {
            Ok(xdp) => xdp,
            Err(error) => {
                // An interface that is refused is left as it was.
                if tc == How::Attached || egress == How::Attached {
                    self.take_off_tc(&found.name)?;
                }
                return Err(error);
            }
        };
        self.attached = true;
        Ok(Attached {
            interface: found.name,
            ifindex: found.index,
            mode,
            xdp,
            tc,
            egress,
        })
    }

    fn attach_tc(&mut self, found: &Interface, side: Side) -> Result<How, AttachError> {
        let program = object::tc(&mut self.ebpf, side)?;
        tc::attach(&self.root, &self.run_folder, found, side, self.tc, program)
    }

    /// Takes the programs off an interface that is no longer ours to serve. It may be gone already.
    pub fn release(&self, interface: &str) -> Result<(), AttachError> {
        self.root.link(Home::Xdp, interface).remove()?;
        self.take_off_tc(interface)
    }

    fn take_off_tc(&self, interface: &str) -> Result<(), AttachError> {
        for side in Side::BOTH {
            self.root.link(side.home(), interface).remove()?;
        }
        let found = netlink::interface(interface)
            .map_err(AttachError::system(format!("interface {interface}")))?;
        if let Some(found) = found {
            tc::detach_clsact(&self.run_folder, &found)?;
        }
        Ok(())
    }

    /// Has interfaces take in frames to these multicast MACs, by interface index and name, and of ours no others. Stays when
    /// this process ends.
    pub fn take_in(&mut self, wanted: &BTreeSet<(u32, String, Mac)>) -> Result<(), AttachError> {
        self.multicast.follow(wanted)
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
        self.remember_program()?;
        self.replaces = None;
        Ok(removed)
    }

    /// Pins this program beside its maps, and forgets those that nothing runs any more.
    fn remember_program(&mut self) -> Result<(), AttachError> {
        let program = object::main(&mut self.ebpf)?;
        let id = program
            .info()
            .map_err(|error| object::failed("program", error))?
            .id();
        let fd = program_fd(program.fd())?;
        if !self
            .generation
            .programs()?
            .iter()
            .any(|(_, known)| *known == id)
        {
            self.generation.pin_program(fd.as_fd(), id)?;
        }
        self.generation.forget_programs(&self.root.running()?, id)
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
                None => {
                    pin.remove()?;
                }
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

impl Drop for Installation {
    fn drop(&mut self) {
        if !self.fresh || self.attached {
            return;
        }
        let removed = self.generation.remove();
        if let Err(error) = removed {
            tracing::warn!(%error, "maps that nothing uses stay pinned");
        } else if let Err(error) = self.root.remove_if_empty() {
            tracing::warn!(%error, "an empty pin folder stays");
        }
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
    let running = root.running()?;
    let mut adoptable = Vec::new();
    let mut active: Option<(Generation, Vec<Difference>)> = None;
    let generations = root.generations()?;
    let next = generations.last().map_or(1, |last| last.number + 1);
    for generation in generations {
        generation.check()?;
        let used = generation.is_used(&running)?;
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
        bypass: bypass(&generation),
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

/// Whether another set of maps lets everything pass, as far as its settings can be read.
fn bypass(generation: &Generation) -> bool {
    settings(&generation.folder).is_ok_and(|settings| settings.flags & setting_flag::BYPASS != 0)
}

/// Names of all loaded programs by id; none without `CAP_SYS_ADMIN`.
fn names_of_programs() -> BTreeMap<u32, String> {
    loaded_programs()
        .filter_map(Result::ok)
        .filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned())))
        .collect()
}

fn program_fd(
    fd: Result<&aya::programs::ProgramFd, aya::programs::ProgramError>,
) -> Result<OwnedFd, AttachError> {
    fd.map_err(|error| object::failed("program", error))?
        .as_fd()
        .try_clone_to_owned()
        .map_err(AttachError::system("descriptor of a program"))
}
