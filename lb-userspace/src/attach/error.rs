//! What keeps the program from where it should be. Each kind ends the agent with a code of its own.

use std::{fmt, io, path::PathBuf};

use crate::dataplane::OpenError;

/// Why loading, pinning or attaching did not work, with the fix.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("kernel {release} is older than {}.{}: it lacks what the packet path needs", .needed.0, .needed.1)]
    KernelTooOld { release: String, needed: (u8, u8) },
    #[error(
        "missing {}: start as root, or give the process these capabilities (`setcap`, or the container's `capabilities.add`)",
        .0.join(", ")
    )]
    NoPrivileges(Vec<&'static str>),
    #[error("no interface {0}: see `ip link`")]
    NoInterface(String),
    #[error(
        "interface {interface}: {program} is attached already, and foreign programs are never replaced: remove it with \
         its own tool, or `{removal}`"
    )]
    ForeignProgram {
        interface: String,
        program: Program,
        removal: String,
    },
    #[error(
        "interface {interface}: {program} belongs to another Millrace with another pin folder: stop and `millrace detach` that one first"
    )]
    SecondAgent { interface: String, program: Program },
    #[error("another agent{} uses the pin folder of lock {}: one agent a folder", by(*.pid), .lock.display())]
    Locked { lock: PathBuf, pid: Option<u32> },
    #[error("{} is not ours: {what}; remove it, or choose another pin folder", .path.display())]
    ForeignPin { path: PathBuf, what: String },
    #[error("{} lies on no BPF filesystem and none could be mounted: `mount -t bpf bpf /sys/fs/bpf`", .0.display())]
    NoBpffs(PathBuf),
    #[error("interface {interface}: {what}; {fix}")]
    Unfit {
        interface: String,
        what: String,
        fix: String,
    },
    /// What the verifier says is in the cause.
    #[error("program {program}: {source}")]
    Load {
        program: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Map(#[from] OpenError),
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
}

/// What a caller decides by: the exit code, and whether trying again can help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Kernel,
    Privileges,
    /// Missing or vanished.
    Interface,
    /// An interface as it is set up now; it stands aside until that is mended.
    Unfit,
    ForeignProgram,
    SecondAgent,
    ForeignPin,
    Other,
}

/// A BPF program, as people look for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    pub id: u32,
    /// Empty if it is gone or has none.
    pub name: String,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, name } = self;
        if name.is_empty() {
            write!(f, "program {id}")
        } else {
            write!(f, "program {id} ({name})")
        }
    }
}

impl AttachError {
    pub const fn kind(&self) -> Kind {
        match self {
            Self::KernelTooOld { .. } => Kind::Kernel,
            Self::NoPrivileges(_) => Kind::Privileges,
            Self::NoInterface(_) => Kind::Interface,
            Self::Unfit { .. } => Kind::Unfit,
            Self::ForeignProgram { .. } => Kind::ForeignProgram,
            Self::SecondAgent { .. } | Self::Locked { .. } => Kind::SecondAgent,
            Self::ForeignPin { .. } => Kind::ForeignPin,
            Self::NoBpffs(_) | Self::Load { .. } | Self::Map(_) | Self::System { .. } => {
                Kind::Other
            }
        }
    }

    /// For `map_err`: what was tried when the system said no.
    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

fn by(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}
