//! A dataplane that fails when it is told to, so that the code that retries is tested.

use super::{Cause, Dataplane, DumpError};
use crate::plan::{Dump, Op};

/// Passes ops on to `inner` until one is due to fail.
#[derive(Debug)]
pub struct Faulty<D> {
    pub inner: D,
    /// Ops to let through before the next failure; none: no failure.
    left: Option<usize>,
}

impl<D: Dataplane> Faulty<D> {
    pub const fn new(inner: D) -> Self {
        Self { inner, left: None }
    }

    /// The op after the next `ops` ones fails, once.
    pub const fn fail_after(&mut self, ops: usize) {
        self.left = Some(ops);
    }
}

impl<D: Dataplane> Dataplane for Faulty<D> {
    fn apply_one(&mut self, op: &Op) -> Result<(), Cause> {
        if self.left == Some(0) {
            self.left = None;
            return Err(Cause::OnPurpose);
        }
        self.left = self.left.map(|left| left - 1);
        self.inner.apply_one(op)
    }

    fn dump(&mut self) -> Result<Dump, DumpError> {
        self.inner.dump()
    }
}
