//! The machine's own Debian mirror, read from its apt sources: what is fetched beside them comes from the same place.
//!
//! Both formats of sources.list(5): deb822 (`*.sources`) and one line per source (`*.list`).

use std::{fs, path::Path};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) uri: String,
    /// Keyring file, if the source names one.
    pub(super) signed_by: Option<String>,
}

/// Mirrors in `etc_apt` that serve the suite `codename`, without repeats.
pub(super) fn mirrors(etc_apt: &Path, codename: &str) -> Vec<Mirror> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc_apt.join("sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut found: Vec<Mirror> = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let mirrors = match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => deb822(&text, codename),
            Some("list") => one_line(&text, codename),
            _ => continue,
        };
        for mirror in mirrors {
            if !found.iter().any(|known| known.uri == mirror.uri) {
                found.push(mirror);
            }
        }
    }
    found
}

fn deb822(text: &str, codename: &str) -> Vec<Mirror> {
    let mut found = Vec::new();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push(' ');
                    value.push_str(line.trim());
                }
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.to_lowercase(), value.trim().to_owned()));
            }
        }
        let field = |name: &str| {
            fields
                .iter()
                .find(|(n, _)| n == name)
                .map_or("", |(_, v)| v.as_str())
        };
        let has = |name: &str, word: &str| field(name).split_whitespace().any(|w| w == word);
        if !has("types", "deb") || !has("suites", codename) || has("enabled", "no") {
            continue;
        }
        // Signed-By may also hold the key itself.
        let key = field("signed-by");
        let signed_by = key.starts_with('/').then(|| key.to_owned());
        found.extend(field("uris").split_whitespace().map(|uri| Mirror {
            uri: uri.to_owned(),
            signed_by: signed_by.clone(),
        }));
    }
    found
}

fn one_line(text: &str, codename: &str) -> Vec<Mirror> {
    text.lines()
        .filter_map(|line| one_source(line, codename))
        .collect()
}

/// `deb [option=value …] URI SUITE COMPONENT…`
fn one_source(line: &str, codename: &str) -> Option<Mirror> {
    let line = line.split('#').next()?;
    let rest = line.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(tail) => tail.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let uri = words.next()?;
    if words.next()? != codename {
        return None;
    }
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="))
        .map(str::to_owned);
    Some(Mirror {
        uri: uri.to_owned(),
        signed_by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(uri: &str, key: Option<&str>) -> Mirror {
        Mirror {
            uri: uri.into(),
            signed_by: key.map(Into::into),
        }
    }

    #[test]
    fn deb822_stanza_of_the_suite_is_found() {
        let text = "\
Types: deb
# the mirror
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
";
        let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
        assert_eq!(
            deb822(text, "bookworm"),
            [mirror("http://mirror.example/debian", Some(key))]
        );
    }

    #[test]
    fn deb822_fields_continue_on_indented_lines_and_ignore_case() {
        let text = "types: deb deb-src\nuris: http://a.example/debian\n http://b.example/debian\nsuites:\n bookworm\n";
        let found = deb822(text, "bookworm");
        assert_eq!(
            found,
            [
                mirror("http://a.example/debian", None),
                mirror("http://b.example/debian", None)
            ]
        );
    }

    #[test]
    fn disabled_and_source_only_stanzas_are_left_out() {
        let disabled = "Types: deb\nURIs: http://a.example\nSuites: bookworm\nEnabled: no\n";
        let sources = "Types: deb-src\nURIs: http://a.example\nSuites: bookworm\n";
        let inline_key = "Types: deb\nURIs: http://a.example\nSuites: bookworm\nSigned-By:\n -----BEGIN PGP\n .\n";
        assert_eq!(deb822(disabled, "bookworm"), []);
        assert_eq!(deb822(sources, "bookworm"), []);
        assert_eq!(
            deb822(inline_key, "bookworm"),
            [mirror("http://a.example", None)]
        );
    }

    #[test]
    fn one_line_sources_with_and_without_options() {
        let text = "\
# deb http://old.example/debian bookworm main
deb http://a.example/debian bookworm main contrib # ours
deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://b.example/debian bookworm main
deb-src http://c.example/debian bookworm main
deb http://d.example/debian bookworm-updates main
";
        assert_eq!(
            one_line(text, "bookworm"),
            [
                mirror("http://a.example/debian", None),
                mirror("http://b.example/debian", Some("/usr/share/keyrings/k.gpg")),
            ]
        );
    }
}
