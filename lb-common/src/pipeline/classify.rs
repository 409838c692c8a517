//! Whose packet is it: a frontend's, a reply to a flow of ours, a VIP's unknown port, or nobody's.

use super::{
    FamilyScratch, Path, Step, Verdict, flows, nat,
    parse::{self, Layout, Link, Network, Parsed},
    reject, select,
};
use crate::{
    abi::{Frontend, FrontendKey, Reason, Service, filter_bit, service_flag},
    packet::Packet,
    tables::{FamilyTables, Tables},
};

#[inline(always)]
pub(crate) fn family<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    link: Link,
) -> Verdict {
    let Some(network) = A::network(packet, link.length) else {
        return Verdict::NotOurs;
    };
    let (word, bit) = filter_bit(&network.destination);
    if path.tables.filter(word) & bit == 0 {
        return Verdict::NotOurs;
    }
    let parsed = match parse::packet(packet, link, &network) {
        Ok(parsed) => parsed,
        Err(reason) => return odd(path, &network, reason),
    };
    let key = FrontendKey::new(
        parsed.tuple.destination,
        parsed.tuple.destination_port,
        parsed.tuple.protocol,
    );
    match FamilyTables::<A>::frontend(path.tables, &key) {
        Some(frontend) => {
            path.tables.trace(Step::Frontend {
                id: frontend.id,
                service: frontend.service,
            });
            let Some(service) = path.tables.service(frontend.service) else {
                return path.end(frontend.id, Reason::Inconsistent);
            };
            if service.flags & service_flag::SOURCE_RANGES != 0 {
                let allowed = path
                    .tables
                    .source_allowed(frontend.service, parsed.tuple.source);
                path.tables.trace(Step::Source { allowed });
                if !allowed {
                    return path.end(frontend.id, Reason::SourceDenied);
                }
            }
            if service.flags & service_flag::FLOWS != 0 {
                let request = Request {
                    parsed: &parsed,
                    frontend,
                    service: &service,
                };
                Verdict::unpack(nat::forward(packet, path, scratch, &request))
            } else {
                select::stateless(packet, path, &parsed, frontend, &service)
            }
        }
        None => unclaimed(packet, path, scratch, &parsed),
    }
}

/// A packet for a frontend.
pub(crate) struct Request<'a, A> {
    pub(crate) parsed: &'a Parsed<A>,
    pub(crate) frontend: Frontend,
    pub(crate) service: &'a Service,
}

/// A TCP or UDP packet to an address that may be ours, on no frontend's port.
#[inline(always)]
fn unclaimed<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    parsed: &Parsed<A>,
) -> Verdict {
    let port = u32::from(parsed.tuple.destination_port.to_host());
    let ports = path.settings.nat_ports;
    let in_range = ports != 0 && port >= ports & 0xffff && port <= ports >> 16;
    if in_range {
        let verdict = Verdict::unpack(flows::reply(packet, path, scratch, parsed));
        if verdict != Verdict::NotOurs {
            return verdict;
        }
    }
    if is_vip(path, parsed.tuple.destination) {
        return Verdict::unpack(reject::answer(packet, path, parsed, 0, Reason::UnknownPort));
    }
    if in_range {
        return path.end(0, Reason::NoFlow);
    }
    Verdict::NotOurs
}

/// A packet that is no whole TCP or UDP packet: counted if it is for a VIP.
#[inline(always)]
fn odd<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    network: &Network<A>,
    reason: Reason,
) -> Verdict {
    if is_vip(path, network.destination) {
        path.end(0, reason)
    } else {
        Verdict::NotOurs
    }
}

#[inline(always)]
fn is_vip<A: Layout, T: FamilyTables<A>>(path: &Path<'_, T>, address: A) -> bool {
    path.tables.frontend(&FrontendKey::vip(address)).is_some()
}
