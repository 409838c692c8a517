//! What is wrong with a config file, where, and how to mend it.

use std::fmt;

use thiserror::Error;

/// Line and column in a file, both from 1; columns count characters. The default (0, 0) is "unknown".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Place {
    pub line: u64,
    pub column: u64,
}

/// One fault.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConfigError {
    pub at: Place,
    /// Path of the field, as `services[0].frontends[1]`; empty where there is none.
    pub field: String,
    pub what: String,
    pub fix: String,
}

/// All faults of one file, in the order of the file; never empty.
#[derive(Clone, PartialEq, Eq, Error, Debug)]
pub struct ConfigErrors {
    pub file: String,
    pub errors: Vec<ConfigError>,
}

/// One line each: `FILE:LINE:COLUMN: field: what; fix`.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:", self.file)?;
            if error.at.line > 0 {
                write!(f, "{}:{}:", error.at.line, error.at.column)?;
            }
            if !error.field.is_empty() {
                write!(f, " {}:", error.field)?;
            }
            write!(f, " {}", error.what)?;
            if !error.fix.is_empty() {
                write!(f, "; {}", error.fix)?;
            }
        }
        Ok(())
    }
}

/// A value that does not read: what is wrong and the fix, place and field unknown.
#[derive(Clone, PartialEq, Eq, Error, Debug)]
#[error("{what}; {fix}")]
pub struct Invalid {
    pub what: String,
    pub fix: String,
}

impl Invalid {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: fix.into(),
        }
    }
}
