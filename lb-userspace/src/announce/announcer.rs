//! Pure: the life of each announcement. Time comes in with every call.
//!
//! A VIP that is new on an interface is asked for first (RFC 5227, section 2.1; RFC 4862, section 5.4). If nobody answers it
//! is announced: the program answers for it from then on, and the neighbours are told a few times. If someone has it, it is
//! not announced, and asked for again later. Who claims an address that is announced already is told so, and nothing else
//! changes: a VIP that many use must not go away for one packet (RFC 5227, section 2.4, c).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use lb_common::bytes::Mac;
use tokio::time::Instant;

use super::Wanted;
use crate::plan;

/// Questions before an address counts as free, and the time for an answer to each. A second in all, as IPv6 waits; the
/// seven of RFC 5227 would be a long start.
const PROBES: u8 = 3;
const PROBE_PAUSE: Duration = Duration::from_millis(330);

/// Between the first announcements; the last is followed by none.
const BURST: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// Switches forget a multicast listener after 260 s (RFC 3810, section 9.4) where one asks and nobody answers.
const REPORT_PERIOD: Duration = Duration::from_mins(1);

/// How long an address that someone else has is left alone; and how often a claim is answered (`DEFEND_INTERVAL`).
const CONFLICT_PAUSE: Duration = Duration::from_secs(10);

/// Announcements that are made at once, and the time between two such rows: thousands of frames in one go would not fit
/// the interface's queue.
const ROW: usize = 100;
const ROW_PAUSE: Duration = Duration::from_millis(20);

/// A claim that was not repeated for so long is history.
const CLAIM_LIFE: Duration = Duration::from_mins(1);

/// What an interface brings to an announcement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    /// The interface's own.
    pub mac: Mac,
    /// Whether anybody can hear.
    pub carrier: bool,
    /// The interface's own.
    pub link_local: Option<Ipv6Addr>,
}

/// Someone says that an address is his.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    pub ifindex: u32,
    pub address: IpAddr,
    pub mac: Mac,
}

/// Something to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Send {
    pub ifindex: u32,
    pub address: IpAddr,
    pub seat: Seat,
    pub what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Has anybody this address?
    Probe,
    /// It is here.
    Announce,
    /// Its questions are to be sent here, too (IPv6).
    Report,
}

/// How far an announcement is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Asking whether the address is free.
    Probing,
    /// Answered for here. `claimed_by`: who says of late that it is his.
    Announced { claimed_by: Option<Mac> },
    /// Someone else has it.
    Conflict { with: Mac },
}

#[derive(Debug)]
struct Entry {
    seat: Seat,
    state: State,
    /// Nothing to do before.
    next: Instant,
    /// Announcements made.
    announcements: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// `sent`: questions since the last answer, if there was one.
    Asking { sent: u8, answer: Option<Mac> },
    Announced {
        /// Announcements made since the interface came up.
        made: usize,
        claim: Option<Claimed>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Claimed {
    by: Mac,
    last: Instant,
    /// When it was answered, and whether it is to be.
    answered: Instant,
    answer: bool,
}

const NEW: State = State::Asking {
    sent: 0,
    answer: None,
};
const ANNOUNCED: State = State::Announced {
    made: 0,
    claim: None,
};

/// Every announcement, by interface index and VIP.
#[derive(Default, Debug)]
pub struct Announcer {
    entries: BTreeMap<(u32, IpAddr), Entry>,
    /// The last row was full: the next is not before this.
    row: Option<Instant>,
}

impl Announcer {
    /// Goes on from what the program answers for already.
    pub fn adopt(held: &plan::Announced, now: Instant) -> Self {
        let entry = |mac: &Mac| Entry {
            seat: Seat {
                mac: *mac,
                carrier: false,
                link_local: None,
            },
            state: ANNOUNCED,
            next: now,
            announcements: 0,
        };
        let entries = held.iter().map(|(at, mac)| (*at, entry(mac)));
        Self {
            entries: entries.collect(),
            row: None,
        }
    }

    /// These are to be announced, and no others.
    pub fn want(&mut self, wanted: &Wanted, now: Instant) {
        self.entries.retain(|at, _| wanted.contains_key(at));
        for (at, seat) in wanted {
            let entry = self.entries.entry(*at).or_insert_with(|| Entry {
                seat: *seat,
                state: NEW,
                next: now,
                announcements: 0,
            });
            let came_up = seat.carrier && !entry.seat.carrier;
            if came_up || entry.seat.mac != seat.mac {
                entry.next = now;
                entry.state = match entry.state {
                    State::Asking { answer, .. } => State::Asking { sent: 0, answer },
                    State::Announced { .. } => ANNOUNCED,
                };
            }
            entry.seat = *seat;
        }
    }

    /// Someone else claims an address. True if that is news.
    pub fn heard(&mut self, claim: &Claim, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&(claim.ifindex, claim.address)) else {
            return false;
        };
        let by = claim.mac;
        match &mut entry.state {
            State::Asking { sent, answer } => {
                *sent = 0;
                entry.next = now + CONFLICT_PAUSE;
                answer.replace(by) != Some(by)
            }
            State::Announced { claim, .. } => {
                let before = claim.map(|before| before.by);
                let known = claim.filter(|known| now < known.answered + CONFLICT_PAUSE);
                *claim = Some(Claimed {
                    by,
                    last: now,
                    answered: known.map_or(now, |known| known.answered),
                    answer: known.is_none_or(|known| known.answer),
                });
                if known.is_none() {
                    entry.next = now;
                }
                before != Some(by)
            }
        }
    }

    /// What is to be said now.
    pub fn due(&mut self, now: Instant) -> Vec<Send> {
        let mut due = Vec::new();
        if self.row.is_some_and(|row| row > now) {
            return due;
        }
        let entries = self.entries.iter_mut();
        let mut waiting = entries.filter(|(_, entry)| entry.next <= now);
        for (&(ifindex, address), entry) in waiting.by_ref().take(ROW) {
            let seat = entry.seat;
            let say = |what| {
                due.push(Send {
                    ifindex,
                    address,
                    seat,
                    what,
                });
            };
            entry.act(address, now, say);
        }
        self.row = waiting.next().map(|_| now + ROW_PAUSE);
        due
    }

    /// When [`Self::due`] has something to say.
    pub fn next(&self) -> Option<Instant> {
        let first = self.entries.values().map(|entry| entry.next).min()?;
        Some(self.row.map_or(first, |row| first.max(row)))
    }

    /// What the program is to answer for.
    pub fn announced(&self) -> plan::Announced {
        let announced = |entry: &Entry| matches!(entry.state, State::Announced { .. });
        self.entries
            .iter()
            .filter(|(_, entry)| announced(entry))
            .map(|(at, entry)| (*at, entry.seat.mac))
            .collect()
    }

    /// Stage and number of announcements of each.
    pub fn stages(&self) -> impl Iterator<Item = ((u32, IpAddr), Stage, u64)> + '_ {
        self.entries.iter().map(|(at, entry)| {
            let stage = match entry.state {
                State::Asking { answer: None, .. } => Stage::Probing,
                State::Asking {
                    answer: Some(with), ..
                } => Stage::Conflict { with },
                State::Announced { claim, .. } => Stage::Announced {
                    claimed_by: claim.map(|claim| claim.by),
                },
            };
            (*at, stage, entry.announcements)
        })
    }
}

impl Entry {
    /// Does what is due.
    fn act(&mut self, address: IpAddr, now: Instant, mut say: impl FnMut(What)) {
        if !self.seat.carrier {
            // Nobody hears. An address is neither free nor taken then; `want` says when that changes.
            self.next = now + REPORT_PERIOD;
            return;
        }
        if let State::Asking { sent, .. } = &mut self.state {
            if *sent < PROBES {
                *sent += 1;
                self.next = now + PROBE_PAUSE;
                return say(What::Probe);
            }
            self.state = ANNOUNCED;
        }
        let State::Announced { made, claim } = &mut self.state else {
            return;
        };
        let answer = claim
            .as_mut()
            .is_some_and(|claim| std::mem::take(&mut claim.answer));
        if claim.is_some_and(|claim| now >= claim.last + CLAIM_LIFE) {
            *claim = None;
        }
        if address.is_ipv6() {
            say(What::Report);
        }
        let pause = BURST.get(*made).copied();
        if answer || *made <= BURST.len() {
            say(What::Announce);
            self.announcements += 1;
            *made += 1;
        }
        self.next = now + pause.unwrap_or(REPORT_PERIOD);
    }
}
