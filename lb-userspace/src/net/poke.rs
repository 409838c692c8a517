//! Keeps the neighbours that we send to resolved: XDP does not ask for them itself, and the kernel forgets what its own
//! stack does not use.
//!
//! A request with `NTF_USE` acts on an entry as a packet would: it is created and resolved, or confirmed if it is stale
//! (DELAY, then a unicast probe). Permanent entries are left alone: the request would make them age.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage},
};
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage},
};
use tokio::time::Instant;

use super::Facts;

/// The kernel gives up after three tries a second apart; so do not ask faster than that.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// How long an entry may stay stale.
const STALE_PAUSE: Duration = Duration::from_secs(10);

/// Which neighbours are wanted, and when each was asked for.
#[derive(Default, Debug)]
pub struct Pokes {
    wanted: HashMap<(u32, IpAddr), Attempt>,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    next: Instant,
    pause: Duration,
}

impl Pokes {
    /// Wants a neighbour from now on.
    pub fn want(&mut self, ifindex: u32, ip: IpAddr, now: Instant) {
        self.wanted.entry((ifindex, ip)).or_insert(Attempt {
            next: now,
            pause: FIRST_PAUSE,
        });
    }

    pub fn forget(&mut self, ifindex: u32, ip: IpAddr) {
        self.wanted.remove(&(ifindex, ip));
    }

    /// The neighbours to ask for now.
    pub fn due(&mut self, facts: &Facts, now: Instant) -> Vec<(u32, IpAddr)> {
        let mut due = Vec::new();
        for (key, attempt) in &mut self.wanted {
            if attempt.next > now {
                continue;
            }
            match facts.neighbours.get(key) {
                Some(known) if known.permanent || known.fresh => {
                    attempt.pause = FIRST_PAUSE;
                    continue;
                }
                Some(_) => attempt.next = now + STALE_PAUSE,
                None => {
                    attempt.next = now + attempt.pause;
                    attempt.pause = LONGEST_PAUSE.min(attempt.pause * 2);
                }
            }
            due.push(*key);
        }
        due
    }
}

/// Asks the kernel to resolve or confirm a neighbour. The answer comes as an update of the facts.
pub(super) fn poke(handle: &mut Handle, ifindex: u32, ip: IpAddr) -> Result<(), rtnetlink::Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = ifindex;
    message.header.flags = NeighbourFlags::Use;
    message
        .attributes
        .push(NeighbourAttribute::Destination(ip.into()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_CREATE;
    handle.notify(request)
}

#[cfg(test)]
mod tests {
    use super::super::{Neighbour, Update};
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn unresolved_neighbours_are_asked_for_with_growing_pauses() {
        let start = Instant::now();
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let (mut pokes, facts) = (Pokes::default(), Facts::default());
        pokes.want(2, ip, start);
        let asked: Vec<u64> = (0..30)
            .filter(|second| !pokes.due(&facts, after(start, *second)).is_empty())
            .collect();
        assert_eq!(asked, [0, 1, 3, 7, 15, 23]);
        pokes.forget(2, ip);
        assert!(pokes.due(&facts, after(start, 60)).is_empty());
    }

    #[test]
    fn only_stale_neighbours_are_asked_for_again() {
        let start = Instant::now();
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let (mut pokes, mut facts) = (Pokes::default(), Facts::default());
        pokes.want(2, ip, start);
        let mut known = Neighbour {
            mac: [2; 6],
            permanent: false,
            fresh: true,
        };
        facts.apply(Update::Neighbour(2, ip, Some(known)));
        assert!(pokes.due(&facts, start).is_empty());
        known.fresh = false;
        facts.apply(Update::Neighbour(2, ip, Some(known)));
        assert_eq!(pokes.due(&facts, start), [(2, ip)]);
        assert!(pokes.due(&facts, after(start, 9)).is_empty());
        assert_eq!(pokes.due(&facts, after(start, 10)), [(2, ip)]);
        known.permanent = true;
        facts.apply(Update::Neighbour(2, ip, Some(known)));
        assert!(pokes.due(&facts, after(start, 60)).is_empty());
    }
}
