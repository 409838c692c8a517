//! Apply: plans become map contents.
//!
//! In: ordered [`Op`]s. Out: maps that the program reads while they change ([`Bpf`]), the same contents in memory
//! ([`Fake`]), or an error on purpose ([`Faulty`]). The reading side, [`Counters`] and [`Flows`], works beside the
//! writing one on handles of its own. Nothing here knows services, config or time; what to write is decided in `plan`.

mod announced;
mod bpf;
mod counters;
mod dump;
mod error;
mod fake;
mod faulty;
mod flows;
mod grace;
mod open;
mod per_cpu;
pub(crate) mod syscall;
mod tunnels;
mod usage;
mod window;

pub use self::{
    announced::{AnnouncedMaps, AnnouncedVips, Asked},
    bpf::Bpf,
    counters::{Counters, ReasonCounts},
    error::{ApplyError, Cause, DumpError},
    fake::Fake,
    faulty::Faulty,
    flows::{FlowRow, FlowState, Flows},
    open::{OpenError, settings},
    tunnels::Tunnels,
    usage::{MapUsage, usage},
};

use self::error::describe;
use crate::plan::{Dump, Op};

/// Something that ops can be applied to.
pub trait Dataplane {
    /// Applies one op.
    fn apply_one(&mut self, op: &Op) -> Result<(), Cause>;

    /// Applies the ops in order; stops at the first that fails, which the error names. What was applied before stays.
    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        for (at, op) in ops.iter().enumerate() {
            self.apply_one(op).map_err(|cause| ApplyError {
                at,
                op: describe(op),
                cause,
            })?;
        }
        Ok(())
    }

    /// Reads back what ops have written.
    fn dump(&mut self) -> Result<Dump, DumpError>;
}

impl<D: Dataplane + ?Sized> Dataplane for Box<D> {
    fn apply_one(&mut self, op: &Op) -> Result<(), Cause> {
        (**self).apply_one(op)
    }

    fn dump(&mut self) -> Result<Dump, DumpError> {
        (**self).dump()
    }
}
