//! How tests ended last: a line each, `RESULT NAME`, beside the build's output. A run of some tests changes theirs only.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::cargo;

/// By name: `ok`, `FAILED`, `skipped`.
pub(crate) type Results = BTreeMap<String, String>;

fn file() -> Result<PathBuf> {
    Ok(cargo::target_dir()?.join("test-results.txt"))
}

pub(crate) fn read() -> Result<Results> {
    let file = file()?;
    let text = match fs::read_to_string(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text.with_context(|| file.display().to_string())?,
    };
    let pair = |line: &str| {
        let (result, name) = line.split_once(' ')?;
        Some((name.to_owned(), result.to_owned()))
    };
    Ok(text.lines().filter_map(pair).collect())
}

/// Adds results to those that are known.
pub(crate) fn add(new: Results) -> Result<()> {
    let mut all = read()?;
    all.extend(new);
    let lines = all
        .iter()
        .map(|(name, result)| format!("{result} {name}\n"));
    let file = file()?;
    fs::write(&file, lines.collect::<String>()).with_context(|| file.display().to_string())
}

/// The result of a test, by its name without modules; of several of one name the worst.
pub(crate) fn of<'a>(results: &'a Results, test: &str) -> Option<&'a str> {
    let named = results
        .iter()
        .filter(|(name, _)| name.rsplit("::").next() == Some(test));
    let worst = |result: &&str| match *result {
        "FAILED" => 2,
        "skipped" => 1,
        _ => 0,
    };
    named.map(|(_, result)| result.as_str()).max_by_key(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_found_without_its_modules_and_the_worst_counts() {
        let pair = |name: &str, result: &str| (name.to_owned(), result.to_owned());
        let results: Results = [
            pair("a::b::one", "ok"),
            pair("c::one", "FAILED"),
            pair("another_one", "skipped"),
        ]
        .into();
        assert_eq!(of(&results, "one"), Some("FAILED"));
        assert_eq!(of(&results, "another_one"), Some("skipped"));
        assert_eq!(of(&results, "two"), None);
    }
}
