//! Whose packet is it?

use super::{
    FamilyScratch, Path, Step, Verdict, ndp,
    parse::{self, ICMPV6, Layout, Network, Odd},
    select,
};
use crate::{
    abi::{FrontendKey, Reason, Service, filter_bit, service_flag},
    packet::Packet,
    tables::{FamilyTables, Tables},
};

/// Beside packed verdicts: a service with flow entries is to go on in [`super::nat`].
pub(crate) const FLOWS: u64 = 1 << 24;
/// A service that kube-proxy serves as well is to go on in [`super::local`].
pub(crate) const SHARED: u64 = 6 << 24;
/// No frontend, but perhaps a reply or a VIP's unknown port.
pub(crate) const UNCLAIMED: u64 = 2 << 24;
/// The client is to be answered by [`super::reject`].
pub(crate) const UNANSWERED: u64 = 3 << 24;
/// A neighbour solicitation, for [`super::ndp`].
pub(crate) const SOLICITATION: u64 = 5 << 24;
/// The client is to be told by [`super::mtu`] that no more than `scratch.fits` bytes fit.
pub(crate) const TOO_BIG: u64 = 4 << 24;
/// No whole packet: for [`super::fragment`].
pub(crate) const FRAGMENT: u64 = 8 << 24;
/// For [`super::icmp`].
pub(crate) const ICMP: u64 = 9 << 24;

/// To this node's end of the tunnels.
pub(crate) const TUNNEL: u64 = 7 << 24;
/// A packet of another node's, out of its tunnel, for [`super::odd::arrived`].
pub(crate) const ARRIVED: u64 = 16 << 24;

/// Whether a word is one of these, not a packed verdict.
#[inline(always)]
pub(crate) const fn goes_on(word: u64) -> bool {
    word as u32 >= FLOWS as u32
}

/// Finds the frontend, and sends what needs no flow entry on its way.
#[inline(never)]
pub(crate) fn family<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let Some(network) = A::network(packet, scratch.parsed.link.length) else {
        return Verdict::NotOurs.pack();
    };
    let (word, bit) = filter_bit(&network.destination);
    if path.tables.filter(word) & bit == 0 {
        return Verdict::NotOurs.pack();
    }
    if let Err(odd) = parse::packet(packet, &network, &mut scratch.parsed) {
        return match odd {
            Odd::Fragment => FRAGMENT,
            Odd::Icmp if is_solicitation(packet, &network) => SOLICITATION,
            Odd::Icmp => ICMP,
            Odd::Reason(reason) => unread(path, &network, reason),
        };
    }
    match claim(path, scratch) {
        Ok(service) => select::stateless(packet, path, scratch, &service),
        Err(word) => word,
    }
}

/// Finds the frontend and the service of the packet's tuple; `Err` with the word to go on by where there is none, where
/// the client may not use it, and where it has flow entries.
#[inline(always)]
pub(crate) fn claim<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> Result<Service, u64> {
    let tuple = &scratch.parsed.tuple;
    let key = FrontendKey::new(tuple.destination, tuple.destination_port, tuple.protocol);
    let Some(frontend) = FamilyTables::<A>::frontend(path.tables, &key) else {
        return Err(UNCLAIMED);
    };
    path.tables.trace(Step::Frontend {
        id: frontend.id,
        service: frontend.service,
    });
    scratch.frontend = frontend;
    let Some(service) = path.tables.service(frontend.service) else {
        return Err(path.end(frontend.id, Reason::Inconsistent).pack());
    };
    if service.flags & service_flag::SOURCE_RANGES != 0 {
        let allowed = path.tables.source_allowed(frontend.service, tuple.source);
        path.tables.trace(Step::Source { allowed });
        if !allowed {
            return Err(path.end(frontend.id, Reason::SourceDenied).pack());
        }
    }
    let shared = service.flags & service_flag::SHARED != 0;
    if service.flags & service_flag::FLOWS != 0 || shared && scratch.parsed.tuple_is_udp() {
        scratch.service = service;
        return Err(if shared { SHARED } else { FLOWS });
    }
    if service.flags & service_flag::TUNNEL != 0 {
        return Err(TUNNEL);
    }
    Ok(service)
}

/// A packet that is none for the path to read: counted if it is for a VIP.
#[inline(always)]
pub(crate) fn unread<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    network: &Network<A>,
    reason: Reason,
) -> u64 {
    if is_vip(path, network.destination) {
        path.end(0, reason).pack()
    } else {
        Verdict::NotOurs.pack()
    }
}

/// A neighbour solicitation whose `ICMPv6` header follows the IPv6 header at once.
#[inline(always)]
fn is_solicitation<A: Layout, P: Packet>(packet: &P, network: &Network<A>) -> bool {
    A::VERSION == 6
        && network.next == ICMPV6
        && packet.read(network.offset) == Some([ndp::SOLICITATION])
}

#[inline(always)]
pub(crate) fn is_vip<A: Layout, T: FamilyTables<A>>(path: &Path<'_, T>, address: A) -> bool {
    path.tables.frontend(&FrontendKey::vip(address)).is_some()
}
