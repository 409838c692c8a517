//! What may be depended on: which crates not, under which licences, and from where.

use crate::cargo;
use anyhow::{Context as _, Result};
use serde_json::Value;
use spdx::{Expression, ParseMode};

/// Crates that something smaller or better kept stands in for, and why.
const BANNED: [(&str, &str); 3] = [
    (
        "openssl-sys",
        "a C library to ship and patch; use rustls with ring",
    ),
    ("aws-lc-sys", "wants a C toolchain and cmake; use ring"),
    ("serde_yaml", "archived; use serde-saphyr"),
];

/// Licences (SPDX) that may be shipped in a binary under MIT or Apache-2.0.
const LICENCES: [&str; 10] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Zlib",
];

/// Prints each package that breaks a rule; false if any does.
pub(super) fn check() -> Result<bool> {
    let mut command = cargo::cargo(["metadata", "--locked", "--format-version", "1"]);
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata failed");
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let faults: Vec<_> = packages
        .iter()
        .filter_map(|package| {
            let text = |field: &str| package[field].as_str();
            let name = text("name").unwrap_or_default();
            let fault = fault(name, text("license"), text("source"))?;
            Some(format!(
                "{name} {}: {fault}",
                text("version").unwrap_or_default()
            ))
        })
        .collect();
    for fault in &faults {
        eprintln!("{fault}");
    }
    Ok(faults.is_empty())
}

/// What is wrong with a package; `source` is none for one of this workspace.
fn fault(name: &str, licence: Option<&str>, source: Option<&str>) -> Option<String> {
    if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
        return Some(format!("banned: {why}"));
    }
    if source.is_some_and(|source| !source.starts_with("registry+")) {
        return Some(format!(
            "comes from {}, not from the registry",
            source.unwrap_or_default()
        ));
    }
    let Some(licence) = licence else {
        return Some("names no licence".into());
    };
    // Old crates write a slash for "or".
    let Ok(expression) = Expression::parse_mode(licence, ParseMode::LAX) else {
        return Some(format!("licence `{licence}` is no SPDX expression"));
    };
    let allowed = expression.evaluate(|asked| LICENCES.contains(&asked.to_string().as_str()));
    (!allowed).then(|| format!("licence `{licence}` is not among those allowed"))
}

#[cfg(test)]
mod tests {
    use super::fault;

    const REGISTRY: Option<&str> = Some("registry+somewhere");

    #[test]
    fn each_rule_finds_its_fault() {
        let asked = [
            ("serde", Some("MIT OR Apache-2.0"), REGISTRY, None),
            ("old", Some("MIT/Apache-2.0"), REGISTRY, None),
            ("either", Some("GPL-3.0 OR MIT"), REGISTRY, None),
            (
                "llvm",
                Some("Apache-2.0 WITH LLVM-exception"),
                REGISTRY,
                None,
            ),
            ("ours", Some("MIT OR Apache-2.0"), None, None),
            (
                "both",
                Some("MIT AND GPL-3.0"),
                REGISTRY,
                Some("not among those allowed"),
            ),
            ("silent", None, REGISTRY, Some("names no licence")),
            ("odd", Some("as you like"), REGISTRY, Some("no SPDX")),
            (
                "fork",
                Some("MIT"),
                Some("git+somewhere"),
                Some("not from the registry"),
            ),
            ("serde_yaml", Some("MIT"), REGISTRY, Some("banned")),
        ];
        for (name, licence, source, expected) in asked {
            let found = fault(name, licence, source);
            match expected {
                None => assert_eq!(found, None, "{name}"),
                Some(part) => assert!(
                    found.as_ref().is_some_and(|found| found.contains(part)),
                    "{name}: {found:?}"
                ),
            }
        }
    }
}
