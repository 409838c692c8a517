//! Getting the program into the kernel and keeping it there: load, pin, adopt, attach, replace, detach.
//!
//! In: the object that the build put into this binary, a pin folder, the sizes of the maps. Out: pinned maps for
//! `dataplane`, and programs on interfaces that go on forwarding when this process is gone.
//!
//! The steps of a start: [`Installation::open`] loads the programs against the pinned maps if those are exactly as this
//! build needs them, else against a new set beside them. The caller fills the maps. [`Installation::attach`] then puts
//! the programs on each interface; a link that is there already goes over to the new program in one step, and with it
//! to the new maps. [`Installation::retire`] removes sets of maps that nothing uses any more.

mod clock;
mod detach;
mod error;
mod fit;
mod installation;
mod layout;
mod link;
mod lock;
mod look;
mod mend;
mod multicast;
pub(crate) mod netlink;
mod nft;
mod nic;
mod object;
mod pins;
pub mod replies;
mod tc;
mod xdp;

use std::path::{Path, PathBuf};

use aya::programs::loaded_programs;

pub use self::{
    clock::Clock,
    detach::{Detached, detach},
    error::{AttachError, Kind, Program},
    fit::{has_generic, kernel_version, missing_capabilities, without_native},
    installation::{Installation, Replaces},
    look::{Inspected, Seen, SeenInterface, inspect, look},
    mend::{Mend, Undone, mend, undo},
    nft::Nft,
    nic::{Fault, Nic},
    object::{bytes as object, link as link_programs},
    pins::is_bpf_filesystem,
    tc::TcChoice,
};
use crate::plan::Limits;

/// Where pins are when nothing else is said.
pub const DEFAULT_PIN_ROOT: &str = "/sys/fs/bpf/millrace";
/// Where locks are when nothing else is said.
pub const DEFAULT_RUN_FOLDER: &str = "/run/millrace";

/// How to install.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder on a BPF filesystem, used by one agent at a time.
    pub pin_root: PathBuf,
    /// Folder of locks and marks; gone after a reboot, as all that is attached is.
    pub run_folder: PathBuf,
    /// What the maps are sized for.
    pub limits: Limits,
    /// aya-log's level of the packet path, 1 (error) to 5 (trace); 0: off, and free.
    pub log_level: u8,
    pub tc: TcChoice,
    /// Whether packets may come through tunnels: where there are none, the verifier is spared the program that takes
    /// them, a quarter of a start.
    pub tunnels: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pin_root: DEFAULT_PIN_ROOT.into(),
            run_folder: DEFAULT_RUN_FOLDER.into(),
            limits: Limits::default(),
            log_level: 0,
            tc: TcChoice::Best,
            tunnels: true,
        }
    }
}

/// Where in the kernel the XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the stack, after the socket buffer was made: works everywhere, costs most of the gain.
    Generic,
}

impl Mode {
    const fn of(generic: bool) -> Self {
        if generic { Self::Generic } else { Self::Native }
    }
}

/// What attaching came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Nothing of ours was there.
    Attached,
    /// The link or filter that was there runs this program now; no packet met neither.
    Replaced,
}

/// The programs on one interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    pub interface: String,
    pub ifindex: u32,
    pub mode: Mode,
    pub xdp: How,
    pub tc: How,
    pub egress: How,
}

/// The folder within the run folder that belongs to a pin folder.
fn run_folder(run_folder: &Path, pin_root: &Path) -> PathBuf {
    let flat = pin_root.to_string_lossy().replace('/', "-");
    run_folder.join(flat.trim_matches('-'))
}

fn lock_file(folder: &Path) -> PathBuf {
    folder.join("lock")
}

/// Name of a loaded program; none if it is gone, or without `CAP_SYS_ADMIN`.
fn name_of(id: u32) -> Option<String> {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
}
