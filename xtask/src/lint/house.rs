//! The rules of this house that no other tool knows (style.md): imports follow the flow of data, files stay short, the
//! packet logic needs no std, and nothing of the machine it was written on is in the tree.

mod imports;
mod machine_traces;

use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of a source file without its test module.
const LINE_CEILING: usize = 500;

/// Prints each breach; false if there is any.
pub(super) fn check(root: &Path) -> Result<bool> {
    let traces = machine_traces::Traces::probe(root);
    let mut breaches = Vec::new();
    for path in files(root)? {
        // What is no text holds no rule of ours.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
        breaches.extend(traces.breaches(&name, &text));
        if path.extension().is_some_and(|extension| extension == "rs") {
            breaches.extend(imports::breaches(&name, &text));
            breaches.extend(too_long(&name, &text));
        }
    }
    let common = fs::read_to_string(root.join("lb-common/src/lib.rs")).context("lb-common")?;
    breaches.extend(needs_std(&common));
    for breach in &breaches {
        eprintln!("{breach}");
    }
    Ok(breaches.is_empty())
}

/// Every file of the checkout but build output and hidden folders that are not the project's.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    const HIDDEN: [&str; 3] = [".cargo", ".ci", ".config"];
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_file() {
                found.push(entry.path());
            } else if kind.is_dir()
                && name != "target"
                && (!name.starts_with('.') || HIDDEN.contains(&name.as_str()))
            {
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn too_long(name: &str, text: &str) -> Option<String> {
    if is_test(name) {
        return None;
    }
    let lines = production_lines(text).count();
    (lines > LINE_CEILING)
        .then(|| format!("{name}: {lines} lines, the ceiling is {LINE_CEILING}: cut it by topic"))
}

fn needs_std(lib: &str) -> Option<String> {
    let declared = lib
        .lines()
        .any(|line| line.starts_with("#![") && line.contains("no_std"));
    (!declared).then(|| "lb-common/src/lib.rs: no `#![no_std]`; the kernel has no std".to_owned())
}

fn is_test(name: &str) -> bool {
    name.starts_with("tests/") || name.contains("/tests/") || name.ends_with("/tests.rs")
}

/// Lines up to the test module at the bottom, with their numbers from 1.
fn production_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines: Vec<_> = text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "));
    let end = tests.unwrap_or(lines.len());
    lines
        .into_iter()
        .take(end)
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_counts_up_to_the_test_module() {
        let code = "x\n".repeat(LINE_CEILING);
        assert_eq!(
            too_long(
                "a/src/b.rs",
                &format!("{code}#[cfg(test)]\nmod tests {{\n}}\n")
            ),
            None
        );
        let breach = too_long("a/src/b.rs", &format!("{code}x\n")).expect("one line too many");
        assert!(breach.contains("501 lines"), "{breach}");
    }

    #[test]
    fn tests_may_be_long() {
        let code = "x\n".repeat(LINE_CEILING + 1);
        for name in [
            "tests/src/a.rs",
            "tests/tests/b.rs",
            "lb-common/src/hash/tests.rs",
        ] {
            assert_eq!(too_long(name, &code), None, "{name}");
        }
    }

    #[test]
    fn no_std_may_depend_on_a_feature() {
        assert_eq!(needs_std("//! doc\n#![no_std]\n"), None);
        assert_eq!(needs_std("#![cfg_attr(not(test), no_std)]\n"), None);
        assert!(needs_std("// #![no_std]\n").is_some());
    }
}
