//! The maps behind the answers.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::view;
use crate::{
    attach::Clock,
    dataplane::{Counters, FlowRow, FlowState, Flows, OpenError, settings, usage},
    state::{Protocol, State},
};

/// Pinned maps, opened for reading.
#[derive(Debug)]
pub(super) struct Maps {
    folder: PathBuf,
    pub(super) counters: Counters,
    flows: Flows,
    clock: Arc<Clock>,
    /// Jiffies per second.
    hz: u32,
}

impl Maps {
    pub(super) fn open(folder: &Path, clock: Arc<Clock>) -> Result<Self, OpenError> {
        let settings = settings(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            counters: Counters::open(folder)?,
            flows: Flows::open(folder)?,
            clock,
            hz: settings.hz.max(1),
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn clock(&self) -> Arc<Clock> {
        Arc::clone(&self.clock)
    }

    /// How full the maps are: those the agent writes by its own books, those of the program by counting.
    pub(super) fn usage(&self, state: &State) -> io::Result<Vec<view::Map>> {
        let counted = usage(&self.folder)?;
        let own = state.maps.iter().map(|map| view::Map {
            name: map.name.clone(),
            used: map.used,
            max: map.max,
        });
        let flows = |name: &str, maps: [&str; 2]| {
            let mut sum = view::Map {
                name: name.to_owned(),
                used: 0,
                max: 0,
            };
            for map in counted.iter().filter(|map| maps.contains(&map.map)) {
                sum.used += u64::from(map.used);
                sum.max += u64::from(map.max);
            }
            sum
        };
        Ok(own
            .chain([
                flows("flows", ["FLOWS4", "FLOWS6"]),
                flows("halfOpen", ["HALF_OPEN4", "HALF_OPEN6"]),
            ])
            .collect())
    }

    /// Flows between these ends, `limit` at most.
    pub(super) fn flows(
        &self,
        to: Option<view::Endpoint>,
        from: Option<view::Endpoint>,
        limit: usize,
    ) -> io::Result<view::Flows> {
        let mut found = view::Flows {
            flows: Vec::new(),
            more: 0,
        };
        self.flows.each(self.clock.now()? as u32, |row| {
            if to.is_some_and(|to| !to.holds(row.frontend))
                || from.is_some_and(|from| !from.holds(row.client))
            {
                return true;
            }
            if found.flows.len() < limit {
                found.flows.push(self.flow(row));
            } else {
                found.more += 1;
            }
            true
        })?;
        found
            .flows
            .sort_by_key(|flow| (flow.frontend, flow.client, flow.backend));
        Ok(found)
    }

    fn flow(&self, row: &FlowRow) -> view::Flow {
        view::Flow {
            protocol: if row.protocol == 17 {
                Protocol::Udp
            } else {
                Protocol::Tcp
            },
            client: row.client,
            frontend: row.frontend,
            backend: row.backend,
            nat: row.nat,
            mode: row.mode.name().to_owned(),
            state: match row.state {
                FlowState::Half => "half",
                FlowState::Established => "est",
                FlowState::Closing => "closing",
            }
            .to_owned(),
            // A packet may have come in since: "in the future" is now.
            idle_seconds: u64::from(u32::try_from(row.idle as i32).unwrap_or(0) / self.hz),
        }
    }
}
