//! Names and licences of the libraries that the binary is linked with, as those ask for.

use crate::cargo;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    process::Stdio,
};

/// What libraries call the files with their licences and notices.
const NAMES: [&str; 4] = ["LICENSE", "LICENCE", "COPYING", "NOTICE"];

/// Each library by name, version and licence; then every licence text once, with those that carry it.
pub(super) fn all(root: &Path) -> Result<String> {
    let output = cargo::cargo(["metadata", "--locked", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let linked = linked(&metadata);
    let mut list = String::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in array(&metadata["packages"]) {
        let (id, manifest) = (text(&package["id"]), text(&package["manifest_path"]));
        let folder = Path::new(manifest).parent().context(manifest.to_owned())?;
        if !linked.contains(id) || folder.starts_with(root) {
            continue;
        }
        let name = format!("{} {}", text(&package["name"]), text(&package["version"]));
        writeln!(list, "{name}: {}", text(&package["license"]))?;
        for notice in notices(folder)? {
            texts.entry(notice).or_default().insert(name.clone());
        }
    }
    for (text, names) in texts {
        let names = Vec::from_iter(names).join(", ");
        write!(
            list,
            "\n{}\n{names}\n\n{}\n",
            "=".repeat(80),
            text.trim_end()
        )?;
    }
    Ok(list)
}

/// Ids of the packages that `lb-userspace` needs when it runs, and of those that these need.
fn linked(metadata: &Value) -> BTreeSet<&str> {
    let nodes: BTreeMap<&str, &Value> = array(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| (text(&node["id"]), node))
        .collect();
    let first = array(&metadata["packages"])
        .iter()
        .find(|package| package["name"] == "lb-userspace");
    let mut open: Vec<&str> = first
        .map(|package| text(&package["id"]))
        .into_iter()
        .collect();
    let mut found = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !found.insert(id) {
            continue;
        }
        let dependencies = nodes.get(id).map_or(&[][..], |node| array(&node["deps"]));
        open.extend(
            dependencies
                .iter()
                // The kind of a plain dependency is null.
                .filter(|one| {
                    array(&one["dep_kinds"])
                        .iter()
                        .any(|kind| kind["kind"].is_null())
                })
                .map(|one| text(&one["pkg"])),
        );
    }
    found
}

fn notices(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        if path.is_file() && NAMES.iter().any(|known| name.starts_with(known)) {
            let text = fs::read(&path).with_context(|| path.display().to_string())?;
            found.push(String::from_utf8_lossy(&text).replace('\r', ""));
        }
    }
    Ok(found)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
