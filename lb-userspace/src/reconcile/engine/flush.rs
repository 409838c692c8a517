//! Facts to maps: what is dirty is planned and applied; after a failed op the planner starts from what the maps hold.

use super::{Engine, FlushError, Flushed};
use crate::{
    config::ServiceName,
    dataplane::Dataplane,
    desired::{self, Desired},
    plan::{Op, PlanError, Planner},
};

/// Ops are applied when they are this many, so that a cold start does not hold all tables twice.
const CHUNK: usize = 256;

#[derive(Default)]
struct Batch {
    ops: Vec<Op>,
    applied: usize,
}

impl<D: Dataplane> Engine<D> {
    /// Whether there is anything to do for [`Engine::flush`].
    pub fn is_behind(&self) -> bool {
        if self.waits_for_cluster() {
            return self.general.dirty;
        }
        self.astray || self.general.dirty || !self.dirty.is_empty()
    }

    /// Brings the maps after the facts.
    pub fn flush(&mut self) -> Result<Flushed, FlushError> {
        if self.waits_for_cluster() {
            return self.flush_general();
        }
        if self.astray {
            self.restore()?;
        }
        let mut batch = Batch::default();
        // Without a single service nothing else would take away what another agent left.
        self.planner.sweep(&mut batch.ops);
        if self.general.dirty {
            self.plan_general(&mut batch.ops);
            self.planner
                .announced(self.announced.clone(), &mut batch.ops);
        }
        let (present, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.dirty)
            .into_iter()
            .partition(|name| self.is_wanted(name));
        // What is new or changed first: a frontend goes over to another service without a gap then.
        let mut result = self.plan_all(&present, &gone, &mut batch);
        if !self.astray {
            // Where a map is full, too, the planner believes in what it has planned.
            result = self.apply(&mut batch).and(result);
        }
        let unfit = match result {
            Ok(unfit) => unfit,
            Err(error) => {
                self.dirty.extend(present.into_iter().chain(gone));
                return Err(error);
            }
        };
        self.general.dirty = false;
        let flushed = Flushed {
            ops: batch.applied,
            triggers: self.take_triggers(&present, &unfit),
            services: present.into_iter().chain(gone).collect(),
        };
        if unfit.is_empty() {
            return Ok(flushed);
        }
        self.note_unfit(&unfit);
        self.unfit
            .extend(unfit.iter().map(|(name, _)| name.clone()));
        Err(FlushError::Plan { unfit, flushed })
    }

    pub fn has_unfit(&self) -> bool {
        !self.unfit.is_empty()
    }

    /// Services that did not fit are tried again with the next flush: others may have made room.
    pub fn retry_unfit(&mut self) {
        self.dirty.append(&mut self.unfit);
    }

    /// What holds for every packet, into maps whose services stay as they are. What they hold is read later.
    fn flush_general(&mut self) -> Result<Flushed, FlushError> {
        let mut ops = Vec::new();
        // It has read no maps, and must not believe in ops that may fail.
        self.planner = Planner::new(self.config.limits, self.general.hash_key);
        self.plan_general(&mut ops);
        self.dataplane.apply(&ops)?;
        self.general.dirty = false;
        Ok(Flushed {
            ops: ops.len(),
            ..Flushed::default()
        })
    }

    fn plan_general(&mut self, ops: &mut Vec<Op>) {
        let settings = self.settings();
        self.planner.settings(settings, ops);
        let links = self.facts.links.keys().copied();
        let sending = links.filter(|index| self.facts.xdp_sends(*index));
        self.planner.devices(sending.collect(), ops);
        self.planner.segments(self.facts.segments(), ops);
    }

    /// Gives back what did not fit; that stays as it was.
    fn plan_all(
        &mut self,
        present: &[ServiceName],
        gone: &[ServiceName],
        batch: &mut Batch,
    ) -> Result<Vec<(ServiceName, PlanError)>, FlushError> {
        let (mut room, mut unfit) = (Some(gone), Vec::new());
        for name in present {
            let desired = self.build(name);
            let mut planned = self.plan(name, desired.as_ref(), batch)?;
            if planned.is_err()
                && let Some(gone) = room.take()
            {
                // Only the other order fits.
                self.plan_gone(gone, batch)?;
                planned = self.plan(name, desired.as_ref(), batch)?;
            }
            if let Err(error) = planned {
                unfit.push((name.clone(), error));
            }
        }
        self.plan_gone(room.unwrap_or_default(), batch)?;
        Ok(unfit)
    }

    fn plan_gone(&mut self, gone: &[ServiceName], batch: &mut Batch) -> Result<(), FlushError> {
        for name in gone {
            self.build(name);
            // What goes needs no room.
            if let Err(error) = self.plan(name, None, batch)? {
                tracing::error!(%name, %error, "not removed");
            }
        }
        Ok(())
    }

    /// What the maps hold becomes what the planner believes; then every service is planned again.
    fn restore(&mut self) -> Result<(), FlushError> {
        let dump = self.dataplane.dump()?;
        let names = self.names();
        let services = names
            .iter()
            .filter_map(|name| Some((name.clone(), self.desired(name)?)));
        let desired = Desired {
            services: services.collect(),
        };
        self.planner = Planner::restore(self.config.limits, self.general.hash_key, dump, &desired);
        self.dirty.extend(names);
        self.general.dirty = true;
        self.astray = false;
        Ok(())
    }

    fn plan(
        &mut self,
        name: &ServiceName,
        desired: Option<&desired::Service>,
        batch: &mut Batch,
    ) -> Result<Result<(), PlanError>, FlushError> {
        let planned = self.planner.service(name, desired, &mut batch.ops);
        if batch.ops.len() >= CHUNK {
            self.apply(batch)?;
        }
        Ok(planned)
    }

    fn apply(&mut self, batch: &mut Batch) -> Result<(), FlushError> {
        self.astray = true;
        self.dataplane.apply(&batch.ops)?;
        self.astray = false;
        batch.applied += batch.ops.len();
        batch.ops.clear();
        Ok(())
    }
}

/// Names the first few.
pub(super) fn words(unfit: &[(ServiceName, PlanError)]) -> String {
    const MOST: usize = 5;
    let told = unfit.iter().take(MOST);
    let mut told: Vec<_> = told
        .map(|(name, error)| format!("service {name}: {error}"))
        .collect();
    if unfit.len() > MOST {
        told.push(format!("and {} more services", unfit.len() - MOST));
    }
    told.join("; ")
}
