//! Frontends: their entries, the entries of their VIPs, and the bits that let their packets in.

use std::collections::BTreeMap;

use lb_common::abi::Frontend as Entry;

use super::{
    Op, Planner,
    addresses::{EntryKey, insert_entry, remove_entry},
    placed::Placed,
};
use crate::{config::Frontend, desired::GroupFrontend};

/// A frontend that has an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    /// Index into `SERVICES` that the entry names.
    pub index: u32,
    pub id: u32,
    /// Counts for its VIP's own entry.
    pub owns_address: bool,
}

/// An address with frontends.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Vip {
    pub frontends: u32,
    /// Of these, those that own the whole address.
    pub owners: u32,
}

impl Planner {
    /// Lists frontends under the index of `placed`, after everything that their packets need. New ones take `ids`.
    pub(super) fn list(
        &mut self,
        placed: &mut Placed,
        wanted: &[GroupFrontend],
        mut ids: Vec<u32>,
        ops: &mut Vec<Op>,
    ) {
        let mut changes = Changes::default();
        for one in wanted {
            let (frontend, index) = (one.frontend, placed.index);
            let key = entry_key(&frontend);
            placed.frontends.insert(frontend);
            let id = match self.frontends.get(&frontend) {
                Some(listed) if listed.index == index => listed.id,
                Some(listed) => {
                    // It comes from another group: entries are immutable, so it goes and comes.
                    let id = listed.id;
                    self.pools.before_frontend(key, ops);
                    ops.push(remove_entry(key));
                    ops.push(insert_entry(key, Entry { service: index, id }));
                    self.pools.frontend_removed(key);
                    id
                }
                None => {
                    let Some(id) = ids.pop() else { continue };
                    ops.push(Op::ZeroFrontend { id });
                    self.pools.before_frontend(key, ops);
                    ops.push(insert_entry(key, Entry { service: index, id }));
                    id
                }
            };
            let listed = Listed {
                index,
                id,
                owns_address: one.owns_address,
            };
            let before = self.frontends.insert(frontend, listed);
            changes.add(&frontend, before, Some(listed));
        }
        self.apply_vips(&changes, ops);
    }

    /// Removes frontends of `placed` that are not `wanted`, unless another group has taken them.
    pub(super) fn unlist(
        &mut self,
        placed: &mut Placed,
        wanted: impl Fn(&Frontend) -> bool,
        ops: &mut Vec<Op>,
    ) {
        let mut changes = Changes::default();
        let gone: Vec<Frontend> = placed
            .frontends
            .extract_if(.., |frontend| !wanted(frontend))
            .filter(|frontend| {
                let listed = self.frontends.get(frontend);
                listed.is_some_and(|listed| listed.index == placed.index)
            })
            .collect();
        for frontend in &gone {
            changes.add(frontend, self.frontends.remove(frontend), None);
        }
        self.apply_vips(&changes, ops);
        for frontend in &gone {
            let key = entry_key(frontend);
            ops.push(remove_entry(key));
            self.pools.frontend_removed(key);
        }
        for listed in changes.gone {
            self.pools.frontends.release(listed.id);
        }
    }

    fn apply_vips(&mut self, changes: &Changes, ops: &mut Vec<Op>) {
        for (address, (frontends, owners)) in &changes.vips {
            let vip = self.vips.entry(*address).or_default();
            let before = *vip;
            vip.frontends = vip.frontends.saturating_add_signed(*frontends);
            vip.owners = vip.owners.saturating_add_signed(*owners);
            let after = *vip;
            if after.frontends == 0 {
                self.vips.remove(address);
                self.filter.remove(*address, ops);
            }
            let own = (*address, 0, 0);
            match (before.owners, after.owners) {
                (0, 1..) => {
                    self.pools.before_frontend(own, ops);
                    ops.push(insert_entry(own, Entry::default()));
                }
                (1.., 0) => {
                    ops.push(remove_entry(own));
                    self.pools.frontend_removed(own);
                }
                _ => {}
            }
            if before.frontends == 0 && after.frontends > 0 {
                self.filter.add(*address, ops);
            }
        }
    }
}

/// What a step changes in the use of VIPs: frontends and owners more (or less).
#[derive(Default)]
struct Changes {
    vips: BTreeMap<std::net::IpAddr, (i32, i32)>,
    gone: Vec<Listed>,
}

impl Changes {
    fn add(&mut self, frontend: &Frontend, before: Option<Listed>, after: Option<Listed>) {
        let count = |listed: Option<Listed>| {
            listed.map_or((0, 0), |listed| (1, i32::from(listed.owns_address)))
        };
        let ((f0, o0), (f1, o1)) = (count(before), count(after));
        let vip = self.vips.entry(frontend.address).or_default();
        *vip = (vip.0 + f1 - f0, vip.1 + o1 - o0);
        if after.is_none() {
            self.gone.extend(before);
        }
    }
}

pub(super) fn entry_key(frontend: &Frontend) -> EntryKey {
    (frontend.address, frontend.port, frontend.protocol.number())
}
