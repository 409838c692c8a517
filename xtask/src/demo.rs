//! `cargo xtask demo`: the whole balancer at work in network namespaces.

use crate::{Outcome, cargo, setup};

pub(crate) fn run() -> Outcome {
    setup::ensure()?;
    cargo::run_harness("demo", &[], None)
}
