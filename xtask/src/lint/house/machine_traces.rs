//! Nothing of the machine that the code was written on may stay in it: paths of the checkout and the home folder, hosts
//! of the package mirrors that it happens to use. They are read from the machine at run time, so this file names none.

use std::{env, fs, path::Path};

pub(super) struct Traces {
    paths: Vec<String>,
    hosts: Vec<String>,
}

impl Traces {
    pub(super) fn probe(root: &Path) -> Self {
        let home = env::home_dir().unwrap_or_default();
        let cargo_home = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), Into::into);
        let paths = [root, home.as_path()]
            .into_iter()
            .filter(|path| path.components().count() > 1)
            .map(|path| path.display().to_string())
            .collect();
        let mut hosts = Vec::new();
        for name in ["config.toml", "config"] {
            hosts.extend(config_hosts(
                &fs::read_to_string(cargo_home.join(name)).unwrap_or_default(),
            ));
        }
        for (name, value) in env::vars() {
            if name.starts_with("CARGO_REGISTR")
                || name == "GOPROXY"
                || name.ends_with("_INDEX_URL")
            {
                hosts.extend(urls(&value).map(str::to_owned));
            }
        }
        hosts.retain(|host| !PUBLIC.iter().any(|known| host == known));
        Self { paths, hosts }
    }

    pub(super) fn breaches(&self, name: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let place = format!("{name}:{}", index + 1);
            let path = self.paths.iter().find(|path| holds_path(line, path));
            found.extend(path.map(|path| format!("{place}: a path of this machine ({path})")));
            let host = self.hosts.iter().find(|host| line.contains(host.as_str()));
            found.extend(
                host.map(|host| format!("{place}: this machine's package mirror ({host})")),
            );
        }
        if name.starts_with(".cargo/") {
            found
                .extend(config_hosts(text).map(|host| {
                    format!("{name}: a package source ({host}): leave it to the user")
                }));
        }
        found
    }
}

/// Hosts that everybody's cargo and go name.
const PUBLIC: [&str; 4] = [
    "github.com",
    "index.crates.io",
    "static.crates.io",
    "crates.io",
];

/// Hosts in the settings of a cargo config that choose a package source.
fn config_hosts(config: &str) -> impl Iterator<Item = String> {
    config.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        let key = key.trim().rsplit('.').next().unwrap_or_default();
        matches!(key, "registry" | "index" | "proxy" | "dl" | "api")
            .then(|| urls(value).next().map(str::to_owned))?
    })
}

/// Hosts of the URLs in a text, without credentials and port.
fn urls(text: &str) -> impl Iterator<Item = &str> {
    text.split("://").skip(1).filter_map(|rest| {
        let authority = rest.split(['/', '"', '\'', ',', '|', ' ']).next()?;
        let host = authority.rsplit('@').next()?.split(':').next()?;
        (!host.is_empty()).then_some(host)
    })
}

/// Whether a line names the path itself or something below it, and not a longer name that merely begins so.
fn holds_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + path.len()..].chars().next();
        let part_of_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}');
        !before.is_some_and(part_of_name) && !after.is_some_and(|c| part_of_name(c) && c != '.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_machine_are_found_whole() {
        let traces = Traces {
            paths: vec!["/srv/ada".into()],
            hosts: Vec::new(),
        };
        let text = "cd /srv/ada/src\n\"/srv/ada\"\nno: /srv/adam, $x/srv/ada2, dir/srv/ada\n";
        let found = traces.breaches("README.md", text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("README.md:1:"), "{found:?}");
    }

    #[test]
    fn mirrors_of_the_machine_are_found() {
        let hosts: Vec<_> =
            config_hosts("[source.x]\nregistry = \"sparse+http://me:pw@mirror.example:8080/i/\"\n")
                .collect();
        assert_eq!(hosts, ["mirror.example"]);
        let traces = Traces {
            paths: Vec::new(),
            hosts,
        };
        assert_eq!(
            traces
                .breaches("Cargo.lock", "source = \"http://mirror.example/x\"")
                .len(),
            1
        );
    }

    #[test]
    fn the_projects_cargo_config_chooses_no_source() {
        let traces = Traces {
            paths: Vec::new(),
            hosts: Vec::new(),
        };
        assert_eq!(
            traces
                .breaches(".cargo/config.toml", "index = \"http://a.example\"")
                .len(),
            1
        );
        assert_eq!(
            traces.breaches(".cargo/config.toml", "linker = \"bpf-linker\""),
            Vec::<String>::new()
        );
    }
}
