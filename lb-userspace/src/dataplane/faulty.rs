//! A dataplane that fails when it is told to, so that the code that retries is tested.

use super::{ApplyError, Cause, Dataplane, DumpError, error::describe};
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
    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        match self.left {
            Some(left) if left < ops.len() => {
                self.left = None;
                self.inner.apply(&ops[..left])?;
                Err(ApplyError {
                    at: left,
                    op: describe(&ops[left]),
                    cause: Cause::OnPurpose,
                })
            }
            left => {
                self.left = left.map(|left| left - ops.len());
                self.inner.apply(ops)
            }
        }
    }

    fn dump(&mut self) -> Result<Dump, DumpError> {
        self.inner.dump()
    }
}
