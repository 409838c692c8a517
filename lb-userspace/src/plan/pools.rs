//! Everything that is given out and taken back, and the one grace period after which it may be given again.

use std::collections::BTreeMap;

use super::{Limits, Op, PlanError, ids::Ids, limits::NEXT_HOPS, regions::Regions};

#[derive(Debug)]
pub(super) struct Pools {
    pub slots: Regions,
    pub members: Regions,
    pub backends: Ids,
    pub next_hops: Ids,
    pub frontends: Ids,
    pub services: Ids,
    /// Elements of `MEMBERS` that name a backend which left, and whom. No table names their ordinals, but packets that
    /// read an older one may.
    pub stale: BTreeMap<u32, u32>,
    /// Nothing may be given out before a grace period: who used it before is not known.
    unsettled: bool,
    /// Keys of frontends that were removed since the last grace period; with some kernels an insert reuses the memory
    /// of a removed entry at once, and a packet that still holds the entry reads another key's value.
    removed_frontends: Vec<(std::net::IpAddr, u16, u8)>,
    removed_sources: bool,
}

impl Pools {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            slots: Regions::new(limits.slots()),
            members: Regions::new(limits.members()),
            backends: Ids::new(limits.backend_ids()),
            next_hops: Ids::new(NEXT_HOPS),
            frontends: Ids::new(limits.frontend_ids()),
            services: Ids::new(limits.services()),
            stale: BTreeMap::new(),
            unsettled: false,
            removed_frontends: Vec::new(),
            removed_sources: false,
        }
    }

    /// The maps come from another agent.
    pub(super) fn unsettle(&mut self) {
        self.unsettled = true;
    }

    /// Waits, and frees what rested.
    pub(super) fn grace(&mut self, ops: &mut Vec<Op>) {
        ops.push(Op::Grace);
        for (word, _) in std::mem::take(&mut self.stale) {
            ops.push(Op::Members {
                base: word,
                members: vec![0],
            });
        }
        self.slots.settle();
        self.members.settle();
        for ids in [
            &mut self.backends,
            &mut self.next_hops,
            &mut self.frontends,
            &mut self.services,
        ] {
            ids.settle();
        }
        self.unsettled = false;
        self.removed_frontends.clear();
        self.removed_sources = false;
    }

    /// Before anything is given out.
    pub(super) fn settle(&mut self, ops: &mut Vec<Op>) {
        if self.unsettled {
            self.grace(ops);
        }
    }

    pub(super) fn id(
        &mut self,
        what: &'static str,
        pool: fn(&mut Self) -> &mut Ids,
        ops: &mut Vec<Op>,
    ) -> Result<u32, PlanError> {
        self.settle(ops);
        if let Some(id) = pool(self).take() {
            return Ok(id);
        }
        if pool(self).has_quarantine() {
            self.grace(ops);
        }
        let capacity = pool(self).capacity();
        pool(self)
            .take()
            .ok_or(PlanError::full(what, u64::from(capacity) + 1, capacity))
    }

    pub(super) fn region(
        &mut self,
        what: &'static str,
        pool: fn(&mut Self) -> &mut Regions,
        log2: u8,
        ops: &mut Vec<Op>,
    ) -> Result<u32, PlanError> {
        self.settle(ops);
        if let Some(base) = pool(self).take(log2) {
            return Ok(base);
        }
        if pool(self).has_quarantine() {
            self.grace(ops);
        }
        let (used, capacity) = (pool(self).used(), pool(self).capacity());
        pool(self).take(log2).ok_or(PlanError::full(
            what,
            u64::from(used) + (1 << log2),
            capacity,
        ))
    }

    pub(super) fn frontend_removed(&mut self, key: (std::net::IpAddr, u16, u8)) {
        self.removed_frontends.push(key);
    }

    /// Before a frontend's entry is inserted. An entry of the same key may follow at once: who holds the old one gets
    /// the new one.
    pub(super) fn before_frontend(&mut self, key: (std::net::IpAddr, u16, u8), ops: &mut Vec<Op>) {
        if self.unsettled || self.removed_frontends.iter().any(|removed| *removed != key) {
            self.grace(ops);
        }
    }

    pub(super) fn source_removed(&mut self) {
        self.removed_sources = true;
    }

    pub(super) fn before_source(&mut self, ops: &mut Vec<Op>) {
        if self.unsettled || self.removed_sources {
            self.grace(ops);
        }
    }
}
