//! The way out of this node, behind the stack: replies of backends on it get the VIP as source, their fragments and the
//! ICMP errors about their clients' packets with them. All else leaves as it is; what a backend sends that no flow knows
//! is counted.

use super::{
    FamilyScratch, Path, Scratch, Step, Verdict, classify, flows,
    fragment::{self, FIRST, FOLLOW},
    icmp::{self, FOUND},
    local, mss,
    parse::{self, Layout, Link, Odd},
    rewrite,
    steer::STEER,
};
use crate::{
    abi::{Fragment, Reason, Settings, leaving_bit},
    bytes::{Be16, V4, V6},
    packet::Packet,
    tables::{Budget, FamilyTables, Tables},
};

/// The whole path of a packet that leaves by an uplink. [`Verdict::Rewritten`] or not, it goes on, unless it is dropped.
#[inline(always)]
pub fn egress_reply<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    scratch: &mut Scratch,
) -> Verdict {
    if settings.passes_all(|| tables.jiffies()) {
        return Verdict::NotOurs;
    }
    let path = Path { tables, settings };
    let Some(link) = parse::link(packet) else {
        return Verdict::NotOurs;
    };
    match link.ether_type {
        parse::IPV4 => by_family::<V4, _, _>(packet, &path, &mut scratch.v4, link),
        parse::IPV6 => by_family::<V6, _, _>(packet, &path, &mut scratch.v6, link),
        _ => Verdict::NotOurs,
    }
}

/// In steps that are functions of their own in the kernel, as [`super::by_family`].
#[inline(always)]
fn by_family<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    link: Link,
) -> Verdict {
    scratch.parsed.link = link;
    let mut word = sort(packet, path, scratch);
    if word == classify::FRAGMENT {
        word = piece(packet, path, scratch);
    } else if word == classify::ICMP {
        word = error(packet, path, scratch);
    }
    let first = word == FIRST;
    if first || word == STEER {
        word = whole(packet, path, scratch);
        if first {
            word = remember(path, scratch, word);
        }
    } else if word == FOLLOW {
        word = fragment::follow(packet, path, scratch);
    } else if word == FOUND {
        word = icmp::translate(packet, path, scratch);
    }
    Verdict::unpack(word)
}

/// Whether a backend of this node may have sent from here; with port 0, from any of its ports.
#[inline(always)]
fn may_answer<A: Layout, T: Tables>(path: &Path<'_, T>, address: &A, port: Be16) -> bool {
    let (word, bit) = leaving_bit(address, port);
    path.tables.filter(word) & bit != 0
}

/// Lets most packets leave at once.
#[inline(never)]
fn sort<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let link = scratch.parsed.link.length;
    let Some(mut network) = A::network(packet, link) else {
        return Verdict::NotOurs.pack();
    };
    // Errors may be the stack's own.
    if network.next != A::ICMP && !may_answer(path, &network.source, Be16::new(0)) {
        return Verdict::NotOurs.pack();
    }
    // Several segments in one, more than the header has a number for (BIG TCP).
    if packet.length() > link + 65_535 {
        network.length = u16::MAX;
    }
    match parse::packet(packet, &network, &mut scratch.parsed) {
        Ok(()) if answers(path, scratch) => STEER,
        Err(Odd::Fragment) => classify::FRAGMENT,
        Err(Odd::Icmp) => classify::ICMP,
        Ok(()) | Err(Odd::Reason(_)) => Verdict::NotOurs.pack(),
    }
}

/// Whether a backend may have sent the packet whose ports are known, or have been sent what an error is about.
#[inline(always)]
fn answers<A: Layout, T: Tables>(path: &Path<'_, T>, scratch: &FamilyScratch<A>) -> bool {
    let tuple = &scratch.parsed.tuple;
    may_answer(path, &tuple.source, tuple.source_port)
}

/// A packet that has its ports.
#[inline(never)]
fn whole<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let now = path.tables.now();
    let Some((table, due)) = flows::find(path, scratch, now) else {
        return path.end(0, Reason::ReplyMissed).pack();
    };
    if scratch.flow.state & local::ANSWER != local::ANSWER {
        return Verdict::NotOurs.pack();
    }
    path.tables.trace(Step::Flow { known: true });
    if due {
        flows::keep_opposite(packet, path, table, scratch, now);
    }
    let (frontend, ttl) = (scratch.flow.frontend, scratch.parsed.ttl);
    let rewritten = rewrite::translate(packet, path, scratch, ttl);
    if let Err(reason) = rewritten.and_then(|()| mss::clamp(packet, path, scratch)) {
        return path.end(frontend, reason).pack();
    }
    path.tables.count_reply(frontend);
    Verdict::Rewritten.pack()
}

/// A fragment: [`FIRST`] or [`STEER`] with its ports, [`FOLLOW`] with its first's flow.
#[inline(never)]
fn piece<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let Some(network) = A::network(packet, scratch.parsed.link.length) else {
        return Verdict::NotOurs.pack();
    };
    let Ok(piece) = fragment::read(packet, &network, scratch) else {
        return Verdict::NotOurs.pack();
    };
    if piece.offset == 0 {
        return match fragment::first(packet, &network, &piece, scratch) {
            Ok(word) if answers(path, scratch) => word,
            _ => Verdict::NotOurs.pack(),
        };
    }
    let known = &mut scratch.fragment;
    let found = path
        .tables
        .with_fragment(&scratch.datagram, |first| *known = *first);
    let age = path.tables.now().wrapping_sub(known.flow.seen);
    let fresh = age <= path.settings.hz.saturating_mul(Fragment::<A>::SECONDS);
    let ours = known.flow.state & local::ANSWER == local::ANSWER;
    if found.is_none() || !fresh || !ours || piece.offset < known.end {
        return path.end(0, Reason::ReplyMissed).pack();
    }
    path.tables.trace(Step::Follows);
    scratch.flow = known.flow;
    scratch.frontend.id = known.flow.frontend;
    FOLLOW
}

/// Remembers a first fragment that was rewritten, as often as the budget allows; the later ones of others are missed.
#[inline(always)]
fn remember<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    word: u64,
) -> u64 {
    let (rate, burst) = (path.settings.fragment_rate, path.settings.fragment_burst);
    if word == Verdict::Rewritten.pack() && path.tables.take(Budget::ReplyFragment, rate, burst) {
        return fragment::remember(path, scratch, word);
    }
    word
}

/// An ICMP error about a client's packet: [`FOUND`] with the flow of its answers.
#[inline(never)]
fn error<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let Some(network) = A::network(packet, scratch.parsed.link.length) else {
        return Verdict::NotOurs.pack();
    };
    if icmp::read(packet, &network, scratch) != Ok(STEER) || !answers(path, scratch) {
        return Verdict::NotOurs.pack();
    }
    let found = flows::peek(path, scratch);
    if found.is_none() || scratch.flow.state & local::ANSWER != local::ANSWER {
        return path.end(0, Reason::ReplyMissed).pack();
    }
    FOUND
}
