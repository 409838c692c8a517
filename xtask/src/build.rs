//! `cargo xtask build`: the release binary.

use crate::{Outcome, cargo, setup};
use std::process::ExitCode;

pub(crate) fn run() -> Outcome {
    setup::ensure()?;
    let binary = cargo::build_millrace("release")?;
    eprintln!("built {}", binary.display());
    Ok(ExitCode::SUCCESS)
}
