//! `millrace check FILE`: is the configuration good for this host, and what would it do? Nothing is changed, and no
//! agent is needed; where one runs, the differences to what it serves are shown.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use serde::Serialize;
use tokio::runtime;

use super::{Exit, ExitWith as _, Failure, Global, client, show::show, table::table};
use crate::{
    config::{Config, ConfigErrors},
    desired::{self, Desired, Drains},
    health::View,
    net::{self, Facts},
    state::{Service, State},
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Configuration file
    file: PathBuf,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let file = args.file.display().to_string();
    let text = fs::read_to_string(&args.file)
        .with_context(|| file.clone())
        .exit(Exit::Usage)?;
    let config = Config::parse(&text, &file).exit(Exit::Usage)?;
    let facts = facts()?;
    let desired = desired::build(&config, &facts, &View::default(), &Drains::default())
        .map_err(|errors| ConfigErrors { file, errors })
        .exit(Exit::Usage)?;
    let running = client::get::<State>(&global.socket, "/v1/state").ok();
    let picture = picture(&config, &desired, &facts, running.as_ref());
    show(global, || Ok(picture.clone()), |picture, _| draw(picture))?;
    Ok(Exit::Ok)
}

fn facts() -> Result<Facts, Failure> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime")?;
    let facts = runtime.block_on(net::snapshot(net::xdp_send));
    let mut facts = facts.context("this host's network")?;
    // Without the right to ask the agent will say it.
    facts.masquerades = net::masquerades().unwrap_or_default();
    Ok(facts)
}

/// What the configuration would do.
#[derive(Clone, PartialEq, Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Picture {
    interfaces: Vec<String>,
    services: Vec<Row>,
    /// Served now, and not any more.
    removed: Vec<String>,
    /// Good, but perhaps not meant.
    notes: Vec<String>,
}

#[derive(Clone, PartialEq, Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    frontends: Vec<String>,
    mode: &'static str,
    backends: usize,
    /// Backends that would get new flows, if their health is good.
    usable: usize,
    /// Against the agent that runs; absent without one.
    change: Option<&'static str>,
}

fn picture(config: &Config, desired: &Desired, facts: &Facts, running: Option<&State>) -> Picture {
    let interfaces = net::interfaces(facts, &config.interfaces);
    let mut notes = Vec::new();
    for name in &interfaces {
        if !facts.links.values().any(|link| link.name == *name) {
            notes.push(format!("interface {name} is not there"));
        }
    }
    if interfaces.is_empty() {
        notes.push("no interface matches: nothing would be attached".to_owned());
    }
    let mut services = Vec::new();
    for service in &config.services {
        let name = service.name.to_string();
        let groups = desired.services.get(&service.name);
        let groups = groups.map(|service| service.groups.as_slice());
        let backends = || {
            groups
                .into_iter()
                .flatten()
                .flat_map(|group| &group.backends)
        };
        let usable: BTreeSet<_> = backends()
            .filter(|backend| backend.usable())
            .map(|backend| backend.socket)
            .collect();
        let lost: BTreeSet<_> = backends()
            .filter(|backend| backend.path.is_none())
            .map(|backend| backend.socket)
            .collect();
        for backend in lost {
            notes.push(format!("{name}: no route to {backend}"));
        }
        if usable.is_empty() {
            notes.push(format!("{name}: no backend would get flows"));
        }
        services.push(Row {
            frontends: service.frontends.iter().map(ToString::to_string).collect(),
            mode: service.mode.name(),
            backends: service.backends.len(),
            usable: usable.len(),
            change: running.map(|state| change(service, state.services.get(&name))),
            name,
        });
    }
    let removed = running.map_or_else(Vec::new, |state| {
        let kept = |name: &&String| services.iter().any(|row| row.name == **name);
        let gone = state.services.keys().filter(|name| !kept(name));
        gone.cloned().collect()
    });
    Picture {
        interfaces: interfaces.into_iter().collect(),
        services,
        removed,
        notes,
    }
}

/// How a service would differ from the one that runs.
fn change(asked: &crate::config::Service, running: Option<&Arc<Service>>) -> &'static str {
    let Some(running) = running else {
        return "new";
    };
    let frontends: BTreeSet<_> = asked.frontends.iter().map(ToString::to_string).collect();
    let served: BTreeSet<_> = running
        .frontends
        .iter()
        .map(crate::observe::view::frontend)
        .collect();
    let members: BTreeSet<_> = asked
        .backends
        .iter()
        .map(|backend| (asked.socket(backend), u32::from(backend.weight)))
        .collect();
    let in_use: BTreeSet<_> = running
        .backends
        .iter()
        .map(|backend| (backend.address, backend.weight))
        .collect();
    if frontends != served {
        "frontends"
    } else if members != in_use {
        "backends"
    } else if asked.mode.name() != running.mode
        || asked.affinity.map(|time| time.as_secs()) != running.affinity
        || asked.source_ranges != running.source_ranges
    {
        "settings"
    } else {
        "same"
    }
}

fn draw(picture: &Picture) -> String {
    let mut parts = vec![format!("good; on {}", picture.interfaces.join(", "))];
    let compared = picture.services.iter().any(|row| row.change.is_some());
    let rows = || {
        picture.services.iter().map(|row| {
            [
                row.name.clone(),
                row.frontends.join(" "),
                row.mode.to_owned(),
                format!("{}/{}", row.usable, row.backends),
            ]
        })
    };
    if compared {
        let rows = rows().zip(&picture.services).map(|(row, service)| {
            let [name, frontends, mode, backends] = row;
            let change = service.change.unwrap_or_default().to_owned();
            [name, frontends, mode, backends, change]
        });
        parts.push(table(
            ["NAME", "FRONTENDS", "MODE", "BACKENDS", "CHANGE"],
            rows,
        ));
    } else {
        parts.push(table(["NAME", "FRONTENDS", "MODE", "BACKENDS"], rows()));
    }
    parts.extend(
        picture
            .removed
            .iter()
            .map(|name| format!("no longer served: {name}")),
    );
    parts.extend(picture.notes.iter().map(|note| format!("note: {note}")));
    parts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_says_what_would_change() {
        let row = |name: &str, change| Row {
            name: name.into(),
            frontends: vec!["192.0.2.10:443/tcp".into(), "[2001:db8::10]:443/tcp".into()],
            mode: "nat",
            backends: 3,
            usable: 2,
            change,
        };
        let picture = Picture {
            interfaces: vec!["eth0".into()],
            services: vec![row("web", Some("new")), row("mail", Some("same"))],
            removed: vec!["old".into()],
            notes: vec!["web: no route to 10.9.0.1:80".into()],
        };
        assert_eq!(
            draw(&picture),
            "\
good; on eth0
NAME  FRONTENDS                                  MODE  BACKENDS  CHANGE
web   192.0.2.10:443/tcp [2001:db8::10]:443/tcp  nat   2/3       new
mail  192.0.2.10:443/tcp [2001:db8::10]:443/tcp  nat   2/3       same
no longer served: old
note: web: no route to 10.9.0.1:80"
        );
    }
}
