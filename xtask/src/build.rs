//! `cargo xtask build`: the release binary.

use crate::{Outcome, cargo, setup};
use std::process::ExitCode;

pub(crate) fn run() -> Outcome {
    setup::ensure()?;
    let folder = cargo::build_binaries(&["lb-userspace"], "release")?;
    eprintln!("built {}", folder.join("millrace").display());
    Ok(ExitCode::SUCCESS)
}
