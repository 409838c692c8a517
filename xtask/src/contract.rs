//! `cargo xtask contract`: each line of the Service contract, the tests that cite it, and how they ended last.
//!
//! A test cites lines by a doc line that holds nothing but their numbers: `/// A4.1, A4.3`. Results are those that
//! `cargo xtask test` leaves beside the build's output.

pub(crate) mod results;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};

use crate::{Outcome, cargo};

const LINES: &str = include_str!("contract/lines.txt");

/// Folders whose tests may cite lines.
const SOURCES: [&str; 4] = [
    "lb-common/src",
    "lb-userspace/src",
    "tests/src",
    "tests/tests",
];

#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    number: &'a str,
    text: &'a str,
    /// Why no test covers it.
    reason: Option<&'a str>,
}

#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
pub(crate) fn run() -> Outcome {
    let root = cargo::root();
    let lines: Vec<_> = LINES.lines().filter_map(line).collect();
    let mut tests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in SOURCES.iter().flat_map(|folder| files(&root.join(folder))) {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        for (number, test) in citations(&text) {
            if !lines.iter().any(|line| line.number == number) {
                bail!(
                    "{}: {test} cites {number}, which is no line",
                    file.display()
                );
            }
            tests.entry(number).or_default().push(test);
        }
    }
    let results = results::read()?;
    let (mut covered, mut bare) = (0, 0);
    for line in &lines {
        println!("{} {}", line.number, line.text);
        let cited = tests
            .get(line.number)
            .map(Vec::as_slice)
            .unwrap_or_default();
        for test in cited {
            let result = results::of(&results, test).unwrap_or("not run");
            println!("    {result:<8} {test}");
        }
        match (cited.is_empty(), line.reason) {
            (false, _) => covered += 1,
            (true, Some(reason)) => println!("    -        {reason}"),
            (true, None) => {
                bare += 1;
                println!("    MISSING  no test cites it, and nobody says why");
            }
        }
    }
    let explained = lines.len() - covered - bare;
    println!(
        "{} lines: {covered} covered, {explained} with a reason, {bare} missing",
        lines.len()
    );
    Ok(if bare == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn line(text: &str) -> Option<Line<'_>> {
    let (number, rest) = text.split_once(' ').filter(|_| !text.starts_with('#'))?;
    let (text, reason) = match rest.split_once(" | ") {
        Some((text, reason)) => (text, Some(reason)),
        None => (rest, None),
    };
    Some(Line {
        number,
        text,
        reason,
    })
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Numbers and the tests below them.
fn citations(text: &str) -> Vec<(String, String)> {
    let mut cited: Vec<String> = Vec::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(numbers) = line.strip_prefix("/// ").and_then(numbers) {
            cited = numbers;
        } else if let Some(rest) = line.split("fn ").nth(1).filter(|_| is_head(line)) {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            found.extend(cited.drain(..).map(|number| (number, name.to_owned())));
        } else if !line.starts_with('#') && !line.starts_with("//") {
            cited.clear();
        }
    }
    found
}

fn is_head(line: &str) -> bool {
    ["fn ", "async fn ", "pub fn ", "pub(super) fn "]
        .iter()
        .any(|head| line.starts_with(head))
}

/// `A4.1, A4.3`; none where there is anything else.
fn numbers(text: &str) -> Option<Vec<String>> {
    let number = |part: &str| {
        let part = part.trim();
        let (section, line) = part.strip_prefix('A')?.split_once('.')?;
        let good = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        (good(section) && good(line)).then(|| part.to_owned())
    };
    text.split(',').map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_cited_by_a_line_of_numbers_alone() {
        let text = "/// A4.1, A4.3\n#[test]\nfn one() {\n}\n\
                    /// As A4.2 says.\n#[test]\nfn two() {}\n\
                    /// A1.1\n#[tokio::test(start_paused = true)]\nasync fn three() {}\n\
                    /// A9.9\nlet x = 1;\nfn four() {}\n";
        let pair = |number: &str, test: &str| (number.to_owned(), test.to_owned());
        assert_eq!(
            citations(text),
            [
                pair("A4.1", "one"),
                pair("A4.3", "one"),
                pair("A1.1", "three")
            ]
        );
    }

    #[test]
    fn the_lines_are_well_formed_and_in_order() {
        let lines: Vec<_> = LINES.lines().filter_map(line).collect();
        let key = |line: &Line<'_>| -> (u32, u32) {
            let (section, number) = line.number[1..].split_once('.').expect("a number");
            (
                section.parse().expect("digits"),
                number.parse().expect("digits"),
            )
        };
        assert!(lines.iter().all(|line| numbers(line.number).is_some()));
        // A8.5 and A8.6 stand the other way round in the contract.
        assert!(lines.is_sorted_by_key(key));
        assert_eq!(lines[0].text, "ExternalName programs nothing");
    }
}
