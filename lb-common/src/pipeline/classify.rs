//! Whose packet is it?

use super::{
    FamilyScratch, Path, Step, Verdict, ndp,
    parse::{self, ICMPV6, Layout, Network},
    select,
};
use crate::{
    abi::{FrontendKey, Reason, filter_bit, service_flag},
    packet::Packet,
    tables::{FamilyTables, Tables},
};

/// Beside packed verdicts: a service with flow entries is to go on in [`super::nat`].
pub(crate) const FLOWS: u64 = 1 << 24;
/// No frontend, but perhaps a reply or a VIP's unknown port.
pub(crate) const UNCLAIMED: u64 = 2 << 24;
/// The client is to be answered by [`super::reject`].
pub(crate) const UNANSWERED: u64 = 3 << 24;
/// A neighbour solicitation, for [`super::ndp`].
pub(crate) const SOLICITATION: u64 = 4 << 24;

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
    if let Err(reason) = parse::packet(packet, &network, &mut scratch.parsed) {
        return odd(packet, path, &network, reason);
    }
    let tuple = &scratch.parsed.tuple;
    let key = FrontendKey::new(tuple.destination, tuple.destination_port, tuple.protocol);
    let Some(frontend) = FamilyTables::<A>::frontend(path.tables, &key) else {
        return UNCLAIMED;
    };
    path.tables.trace(Step::Frontend {
        id: frontend.id,
        service: frontend.service,
    });
    scratch.frontend = frontend;
    let Some(service) = path.tables.service(frontend.service) else {
        return path.end(frontend.id, Reason::Inconsistent).pack();
    };
    if service.flags & service_flag::SOURCE_RANGES != 0 {
        let allowed = path.tables.source_allowed(frontend.service, tuple.source);
        path.tables.trace(Step::Source { allowed });
        if !allowed {
            return path.end(frontend.id, Reason::SourceDenied).pack();
        }
    }
    if service.flags & service_flag::FLOWS != 0 {
        scratch.service = service;
        return FLOWS;
    }
    select::stateless(packet, path, scratch, &service)
}

/// A packet that is no whole TCP or UDP packet: counted if it is for a VIP.
#[inline(always)]
fn odd<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    network: &Network<A>,
    reason: Reason,
) -> u64 {
    if A::VERSION == 6
        && network.next == ICMPV6
        && packet.read(network.offset) == Some([ndp::SOLICITATION])
    {
        return SOLICITATION;
    }
    if is_vip(path, network.destination) {
        path.end(0, reason).pack()
    } else {
        Verdict::NotOurs.pack()
    }
}

#[inline(always)]
pub(crate) fn is_vip<A: Layout, T: FamilyTables<A>>(path: &Path<'_, T>, address: A) -> bool {
    path.tables.frontend(&FrontendKey::vip(address)).is_some()
}
