//! Exit codes: part of the product's API, so scripts and units can tell what went wrong.

use std::{fmt, process::ExitCode};

use crate::attach::{AttachError, Kind};

/// How the program ends. Numbers never change their meaning; 64 and above stay free for the system's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done. `explain`: the packet is forwarded.
    Ok = 0,
    /// Something failed that has no number of its own. `explain`: the packet is dropped or answered.
    Failed = 1,
    /// Wrong arguments, or a configuration that is refused (clap's number for usage errors, too).
    Usage = 2,
    /// `explain`: the packet is not ours and goes to the kernel's stack.
    NotOurs = 3,
    /// No agent answers on the socket.
    NoAgent = 4,
    /// Capabilities (or root) are missing.
    Privileges = 5,
    /// The kernel is too old, or lacks something the packet path needs.
    Kernel = 6,
    /// An interface is missing or vanished.
    Interface = 7,
    /// A foreign XDP or tc program is in the way.
    ForeignProgram = 8,
    /// Another agent serves this interface or this pin folder.
    SecondAgent = 9,
    /// Pinned objects that are not ours, or not as this version makes them.
    ForeignPin = 10,
    /// The service, backend or frontend named does not exist.
    NotFound = 11,
    /// `doctor`: it works here, with limits.
    Limits = 12,
    /// `doctor`: it does not work here. An interface that is unfit as it is set up.
    Unfit = 13,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Kernel => Self::Kernel,
            Kind::Privileges => Self::Privileges,
            Kind::Interface => Self::Interface,
            Kind::Unfit => Self::Unfit,
            Kind::ForeignProgram => Self::ForeignProgram,
            Kind::SecondAgent => Self::SecondAgent,
            Kind::ForeignPin => Self::ForeignPin,
            Kind::Other => Self::Failed,
        }
    }
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        Self::new(error.kind().into(), error)
    }
}

/// An error with the code the process ends with.
pub struct Failure {
    pub exit: Exit,
    pub error: anyhow::Error,
}

impl Failure {
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
        }
    }
}

/// The cause chain in one line, each cause once.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            exit: Exit::Failed,
            error,
        }
    }
}

/// Gives errors their exit code: `open(path).exit(Exit::ForeignPin)?`.
pub trait ExitWith<T> {
    fn exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> ExitWith<T> for Result<T, E> {
    fn exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(exit, error))
    }
}
