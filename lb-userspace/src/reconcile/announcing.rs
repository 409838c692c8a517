//! The announcer at work: facts and claims in, map entries, multicast addresses and frames out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use tokio::time::Instant;

use super::Engine;
use crate::{
    announce::{self, Announcer, Claim, Packets, Send, Stage},
    attach::{AttachError, Installation},
    dataplane::Dataplane,
    net::Facts,
    state,
};

/// All of it; without sockets where nothing is to be announced.
#[derive(Debug)]
pub struct Announcing {
    announcer: Announcer,
    packets: Option<Packets>,
    /// The facts or the config have changed since they were looked at.
    stale: bool,
    /// A claim was heard: the report is different.
    claimed: bool,
    /// To be said when the maps are ready for the answers.
    waiting: Vec<Send>,
}

impl Announcing {
    /// Goes on from what the program answers for already.
    pub fn start<D: Dataplane>(engine: &Engine<D>, packets: Option<Packets>) -> Self {
        Self {
            announcer: Announcer::adopt(engine.announced(), Instant::now()),
            packets,
            stale: true,
            claimed: false,
            waiting: Vec::new(),
        }
    }

    /// What is to be announced, or where, may be different now.
    pub const fn look_again(&mut self) {
        self.stale = true;
    }

    /// When there is something to do.
    pub fn next(&self) -> Option<Instant> {
        self.announcer.next()
    }

    /// Someone else says that an address is his.
    pub fn heard(&mut self, claim: &Claim, facts: &Facts) {
        // What we say ourselves, back from another interface.
        let own = facts.links.values().any(|link| link.mac == Some(claim.mac));
        if own || !self.announcer.heard(claim, Instant::now()) {
            return;
        }
        self.claimed = true;
        let (address, mac) = (claim.address, mac_text(claim.mac));
        let interface = name(facts, claim.ifindex);
        tracing::error!(%address, interface, mac, "another host has this VIP");
    }

    /// Does what is due, up to the frames; those go out by [`Self::say`]. The report, if anything became different.
    pub fn act<D: Dataplane>(
        &mut self,
        engine: &mut Engine<D>,
        installation: &mut Installation,
    ) -> Option<Vec<state::Announcement>> {
        let now = Instant::now();
        let fresh = std::mem::take(&mut self.stale);
        if fresh {
            let wanted = announce::wanted(engine.config(), engine.facts());
            self.announcer.want(&wanted, now);
        }
        let claimed = std::mem::take(&mut self.claimed);
        if !fresh && !claimed && self.announcer.next().is_none_or(|next| next > now) {
            return None;
        }
        self.waiting.extend(self.announcer.due(now));
        let announced = self.announcer.announced();
        if let Err(error) = follow_groups(installation, engine.facts(), announced.keys()) {
            tracing::error!(%error, "neighbours may not find IPv6 VIPs; trying again");
            self.stale = true;
        }
        engine.set_announced(announced);
        Some(self.report(engine.facts()))
    }

    /// Says what waits.
    pub fn say(&mut self) {
        for send in self.waiting.drain(..) {
            let Some(packets) = &self.packets else { return };
            if let Err(error) = packets.send(&send) {
                tracing::debug!(%error, address = %send.address, what = ?send.what, "not said");
            }
        }
    }

    /// As it is now.
    pub fn report(&self, facts: &Facts) -> Vec<state::Announcement> {
        let stages = self.announcer.stages();
        stages
            .map(
                |((ifindex, address), stage, announcements)| state::Announcement {
                    interface: name(facts, ifindex),
                    address,
                    state: match stage {
                        Stage::Probing => state::Announced::Probing,
                        Stage::Announced { claimed_by } => state::Announced::Announced {
                            claimed_by: claimed_by.map(mac_text),
                        },
                        Stage::Conflict { with } => state::Announced::Conflict {
                            with: mac_text(with),
                        },
                    },
                    announcements,
                },
            )
            .collect()
    }
}

/// Where neighbours ask for the announced addresses of IPv6.
fn follow_groups<'a>(
    installation: &mut Installation,
    facts: &Facts,
    announced: impl Iterator<Item = &'a (u32, IpAddr)>,
) -> Result<(), AttachError> {
    let mut names = BTreeMap::new();
    let mut groups = BTreeSet::new();
    for (ifindex, address) in announced {
        if let Some(mac) = announce::group_mac(*address) {
            let name = names
                .entry(*ifindex)
                .or_insert_with(|| name(facts, *ifindex));
            groups.insert((*ifindex, name.clone(), mac));
        }
    }
    installation.take_in(&groups)
}

fn name(facts: &Facts, ifindex: u32) -> String {
    let link = facts.links.get(&ifindex);
    link.map(|link| link.name.clone()).unwrap_or_default()
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
