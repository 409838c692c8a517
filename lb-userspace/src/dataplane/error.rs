//! What can go wrong when a plan meets the maps.

use std::io;

use crate::plan::Op;

/// The op that failed, and why. Ops before it are applied, it and those after it are not.
#[derive(Debug, thiserror::Error)]
#[error("op {at}, {op}: {cause}")]
pub struct ApplyError {
    /// Position in the list of ops.
    pub at: usize,
    /// What the op does, with its index or key.
    pub op: String,
    #[source]
    pub cause: Cause,
}

/// Why an op failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("map {map} is full ({max} of {max} entries): {fix}")]
    Full {
        map: &'static str,
        max: u32,
        /// Which setting raises the size.
        fix: &'static str,
    },
    #[error("index {index} is outside of map {map} ({max} entries): {fix}")]
    Outside {
        map: &'static str,
        index: u32,
        max: u32,
        fix: &'static str,
    },
    /// An entry of this key with another value: entries are never changed in place.
    #[error("map {map} has another entry of this key")]
    Exists { map: &'static str },
    #[error("map {map}: {source}")]
    Kernel {
        map: &'static str,
        source: io::Error,
    },
    #[error("wait for a grace period: {0}")]
    Grace(io::Error),
    #[error("fault on purpose")]
    OnPurpose,
}

/// A map that cannot be read back.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {source}")]
pub struct DumpError {
    pub map: &'static str,
    pub source: io::Error,
}

/// The setting that raises the size of a map.
pub(super) fn fix(map: &str) -> &'static str {
    match map {
        "FRONTENDS4" | "FRONTENDS6" | "SERVICES" | "FRONTEND_STATS" | "REASONS" | "ANNOUNCED4"
        | "ANNOUNCED6" => "raise limits.frontends",
        "BACKENDS" | "MEMBERS" | "SLOTS" | "NEXT_HOPS" | "BACKEND_STATS" | "TARGETS4"
        | "TARGETS6" => "raise limits.backends",
        "FLOWS4" | "FLOWS6" | "HALF_OPEN4" | "HALF_OPEN6" => "raise limits.flows",
        "SOURCES4" | "SOURCES6" => "use fewer or wider sourceRanges",
        _ => "no setting raises it",
    }
}

/// An op in few words: what it does, and to which index or key.
pub(super) fn describe(op: &Op) -> String {
    match op {
        Op::Slots { base, slots } => format!("Slots {{ base: {base}, {} slots }}", slots.len()),
        Op::Members { base, members } => {
            format!("Members {{ base: {base}, {} members }}", members.len())
        }
        other => format!("{other:?}"),
    }
}
