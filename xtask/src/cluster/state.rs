//! What is up, as a file: written after each start, so that an interrupted `up` can be taken down too.
//!
//! The harness reads the same file (`tests/src/cluster.rs`).

use super::{layout::Layout, process::Process};
use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

const FILE: &str = "state.json";

pub(super) struct State {
    pub(super) layout: Layout,
    nodes: u8,
    /// Facts for whoever uses the cluster, by name.
    facts: Map<String, Value>,
    pub(super) processes: Vec<Process>,
}

impl State {
    pub(super) fn new(folder: &Path, nodes: u8) -> Self {
        Self {
            layout: Layout::new(folder, nodes),
            nodes,
            facts: Map::new(),
            processes: Vec::new(),
        }
    }

    /// None where no cluster is up.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let state = Self::parse(folder, &text);
        Ok(Some(state.with_context(|| {
            format!("{} is no state of a cluster", path.display())
        })?))
    }

    fn parse(folder: &Path, text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let nodes = u8::try_from(value["nodes"].as_u64()?).ok()?;
        let processes = value["processes"].as_array()?;
        Some(Self {
            layout: Layout::new(folder, nodes),
            nodes,
            facts: value["facts"].as_object()?.clone(),
            processes: processes
                .iter()
                .map(Process::from_json)
                .collect::<Option<_>>()?,
        })
    }

    pub(super) fn text(&self) -> String {
        let processes: Vec<_> = self.processes.iter().map(Process::to_json).collect();
        let places: Map<_, _> = self
            .layout
            .places()
            .map(|place| {
                let addresses = self.layout.addresses(&place);
                let about = json!({
                    "namespace": self.layout.namespace(&place),
                    "addresses": [addresses.v4, addresses.v6],
                });
                (place, about)
            })
            .collect();
        let value = json!({
            "nodes": self.nodes,
            "places": places,
            "facts": self.facts,
            "processes": processes,
        });
        format!("{value:#}\n")
    }

    pub(super) fn save(&self) -> Result<()> {
        let path = self.layout.file(FILE);
        // By way of a new file: half a state could not be taken down.
        let fresh = path.with_extension("new");
        fs::write(&fresh, self.text()).with_context(|| fresh.display().to_string())?;
        fs::rename(&fresh, &path).with_context(|| path.display().to_string())
    }

    /// Instead of one of the same name, if there was one.
    pub(super) fn started(&mut self, process: Process) -> Result<()> {
        let before = self
            .processes
            .iter_mut()
            .find(|old| old.name == process.name);
        match before {
            Some(old) => *old = process,
            None => self.processes.push(process),
        }
        self.save()
    }

    pub(super) fn process(&self, name: &str) -> Result<&Process> {
        let found = self.processes.iter().find(|process| process.name == name);
        found.with_context(|| {
            let names: Vec<_> = self.processes.iter().map(|one| one.name.as_str()).collect();
            format!("the cluster has no {name}: one of {}", names.join(", "))
        })
    }

    pub(super) fn tell(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// A fact that is a path.
    pub(super) fn path(&self, name: &str) -> Result<PathBuf> {
        let text = self.facts.get(name).and_then(Value::as_str);
        Ok(text
            .with_context(|| format!("the cluster's state names no {name}"))?
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = Path::new("/a/cluster");
        let mut state = State::new(folder, 2);
        state.tell("kubectl", "/bin/kubectl");
        let read = State::parse(folder, &state.text()).expect("a state");
        assert_eq!(read.layout, state.layout);
        assert_eq!(read.path("kubectl").ok(), Some("/bin/kubectl".into()));
        assert!(read.path("kubelet").is_err());
    }
}
