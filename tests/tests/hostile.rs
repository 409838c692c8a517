//! What the fuzzers start from and what they have found, as plain tests; and some thousand inputs close to those, the
//! same in each run.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use lb_tests::hostile::Target;

#[test]
fn frames_have_a_defined_end() -> Result<()> {
    run(Target::Frames)
}

#[test]
fn config_files_are_served_or_refused() -> Result<()> {
    run(Target::Config)
}

#[test]
fn requests_are_answered_or_refused() -> Result<()> {
    run(Target::Requests)
}

#[test]
fn netlink_datagrams_leave_facts_that_can_be_worked_with() -> Result<()> {
    run(Target::Netlink)
}

/// Inputs made of each one of the corpus. `MILLRACE_NEIGHBOURS` asks for another number.
fn neighbours() -> usize {
    let asked = std::env::var("MILLRACE_NEIGHBOURS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(40)
}

fn run(target: Target) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target.name());
    let mut files: Vec<_> = fs::read_dir(&folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    ensure!(!files.is_empty(), "{}: no corpus", folder.display());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let bytes = fs::read(file).with_context(|| file.display().to_string())?;
        eprintln!("{}: {name}", target.name());
        target.run(&bytes);
        for number in 0..neighbours() {
            let neighbour = neighbour(&bytes, &mut random);
            eprintln!("{}: {name}, neighbour {number}", target.name());
            target.run(&neighbour);
        }
    }
    Ok(())
}

/// Xorshift (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }
}

/// A few bytes changed, left out or doubled.
fn neighbour(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let end = bytes.len().min(at + 1 + random.below(16));
        match random.below(4) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.below(256) as u8;
                }
            }
        }
    }
    bytes
}
