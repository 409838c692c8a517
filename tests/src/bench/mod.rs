//! The measurements behind the README's figures: `cargo xtask bench packet|path|plan|cluster|kubernetes`.

mod assembler;
mod cluster;
mod contents;
mod established;
mod frames;
mod kernel;
mod kubernetes;
mod machine;
#[cfg(test)]
mod many;
mod packet;
mod path;
mod plan;

use anyhow::{Result, bail, ensure};

/// Runs the subject that the arguments name; `--json` prints JSON and nothing else.
pub fn run(arguments: &[String]) -> Result<()> {
    let json = arguments.iter().any(|word| word == "--json");
    let subjects: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|word| *word != "--json")
        .collect();
    ensure!(
        crate::is_root(),
        "BPF programs can be loaded by root only: run as root"
    );
    match subjects[..] {
        ["packet"] => packet::run(json),
        ["path"] => path::run(json),
        ["plan"] => plan::run(json),
        ["cluster"] => cluster::run(json),
        ["kubernetes"] => kubernetes::run(json),
        _ => bail!("no such subject: packet, path, plan, cluster or kubernetes"),
    }
}
