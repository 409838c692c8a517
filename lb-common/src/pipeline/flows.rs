//! Flows: what both directions do with an entry, and the backend's replies.

use super::{
    FamilyScratch, Path, Step, Verdict,
    egress::{self, Exit},
    parse::{Layout, Parsed, UDP, tcp_flag},
    rewrite, tags,
};
use crate::{
    abi::{Flow, Hop, Reason, Segment, flow_state},
    bytes::Addr,
    packet::Packet,
    tables::{FamilyTables, FlowTable, Home, Tables},
};

/// Looks the packet's tuple up, notes the packet in its entry and copies that to `scratch.flow`, where `seen` tells of
/// the packets before. Tells whether the
/// opposite entry is due to be told; `None` where no entry is.
#[inline(always)]
fn look<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    table: FlowTable,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) -> Option<bool> {
    let (parsed, found) = (&scratch.parsed, &mut scratch.flow);
    let quarter = path.settings.hz >> 2;
    path.tables.with_flow(table, &parsed.tuple, |flow| {
        let before = flow.seen;
        let mut due = now.wrapping_sub(before) > quarter;
        if due {
            flow.seen = now;
        }
        let mut state = flow.state;
        if parsed.flags & tcp_flag::FIN != 0 {
            state |= flow_state::FIN;
        }
        if parsed.flags & tcp_flag::RST != 0 {
            state |= flow_state::RST;
        }
        if table == FlowTable::HalfOpen && flow.state & flow_state::REPLY != 0 {
            state |= answer(parsed);
            if parsed.flags & tcp_flag::SYN != 0 {
                flow.isn = parsed.sequence;
            }
        }
        if state != flow.state {
            flow.state = state;
            due = true;
        }
        *found = *flow;
        found.seen = before;
        due
    })
}

/// [`look`] among the established flows, then among the half-open ones; and in which table the entry is.
#[inline(always)]
pub(crate) fn find<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) -> Option<(FlowTable, bool)> {
    let mut table = FlowTable::Established;
    let mut due = look(path, table, scratch, now);
    if due.is_none() {
        table = FlowTable::HalfOpen;
        due = look(path, table, scratch, now);
    }
    due.map(|due| (table, due))
}

/// [`find`] for what is no packet of the flow itself: copies the entry to `scratch.flow` and leaves it as it is.
#[inline(always)]
pub(crate) fn peek<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> Option<FlowTable> {
    let (tuple, flow) = (&scratch.parsed.tuple, &mut scratch.flow);
    let mut table = FlowTable::Established;
    let mut found = path.tables.with_flow(table, tuple, |entry| *flow = *entry);
    if found.is_none() {
        table = FlowTable::HalfOpen;
        found = path.tables.with_flow(table, tuple, |entry| *flow = *entry);
    }
    found.map(|()| table)
}

/// What a backend's packet says of a flow that is half open.
#[inline(always)]
const fn answer<A>(parsed: &Parsed<A>) -> u32 {
    if parsed.tuple_is_udp()
        || parsed.flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN | tcp_flag::ACK
    {
        flow_state::REPLIED
    } else if parsed.flags & tcp_flag::RST == 0 {
        flow_state::ANSWERED
    } else {
        0
    }
}

impl<A> Parsed<A> {
    #[inline(always)]
    pub(crate) const fn tuple_is_udp(&self) -> bool {
        self.tuple.protocol == UDP
    }
}

/// The way back to where the packet came from.
#[inline(always)]
fn last_hop<A, P: Packet, T: Tables>(packet: &P, path: &Path<'_, T>, parsed: &Parsed<A>) -> Hop {
    // Another port of the bond may have the packets by then.
    let device = Segment {
        ifindex: packet.ingress(),
        tags: 0,
    };
    Hop {
        segment: Segment {
            ifindex: path.tables.interface(&device),
            tags: tags::of(packet, parsed.link.length),
        },
        macs: parsed.link.macs.swapped(),
    }
}

/// Sets `scratch.opposite` to the other direction's entry for a packet that leaves as `scratch.flow` says, and
/// `scratch.key` to its key.
#[inline(always)]
pub(crate) fn mirror<A: Layout, P: Packet, T: Tables>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) {
    let (parsed, flow) = (&scratch.parsed, &scratch.flow);
    let reply = flow.state & flow_state::REPLY == 0;
    scratch.key = flow.opposite(parsed.tuple.protocol);
    scratch.opposite = Flow {
        source: parsed.tuple.destination,
        destination: parsed.tuple.source,
        source_port: parsed.tuple.destination_port,
        destination_port: parsed.tuple.source_port,
        hop: last_hop(packet, path, parsed),
        backend: flow.backend,
        generation: flow.generation,
        frontend: flow.frontend,
        seen: now,
        // Long ago: the first reply asks the kernel for its way.
        resolved: now.wrapping_sub(path.settings.hz << 1),
        isn: 0,
        state: flow.state & flow_state::LOCAL | if reply { flow_state::REPLY } else { 0 },
    };
}

/// Tells the opposite entry of this packet, or puts it back if it was evicted.
#[inline(always)]
pub(crate) fn keep_opposite<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    table: FlowTable,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) {
    mirror(packet, path, scratch, now);
    let hop = scratch.opposite.hop;
    let seen = scratch.flow.state;
    let found = path.tables.with_flow(table, &scratch.key, |opposite| {
        opposite.seen = now;
        let mut state = opposite.state | seen & flow_state::RST;
        if seen & flow_state::FIN != 0 {
            state |= flow_state::PEER_FIN;
        }
        opposite.state = state;
        // The client's entry always has where the backend's packets come from, see `nat::by_last_hop`.
        if state & flow_state::LAST_HOP != 0 || state & flow_state::REPLY == 0 {
            opposite.hop = hop;
        }
    });
    if found.is_none() {
        // A lost race leaves the other CPU's entry, which says the same.
        path.tables
            .insert_flow(table, &scratch.key, &scratch.opposite, true);
    }
}

/// A backend's packet to a `nat` source: back to the client, from the VIP. [`Verdict::NotOurs`] where no flow knows it.
#[inline(never)]
pub(crate) fn reply<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let now = path.tables.now();
    let Some((table, due)) = find(path, scratch, now) else {
        return Verdict::NotOurs.pack();
    };
    if scratch.flow.state & flow_state::REPLY == 0 {
        return Verdict::NotOurs.pack();
    }
    path.tables.trace(Step::Flow { known: true });
    let frontend = scratch.flow.frontend;
    if scratch.parsed.ttl <= 1 {
        return path.end(frontend, Reason::TtlExpired).pack();
    }
    if let Err(reason) = to_client(packet, path, table, scratch, now) {
        return path.end(frontend, reason).pack();
    }
    if due {
        keep_opposite(packet, path, table, scratch, now);
    }
    let ttl = scratch.parsed.ttl - 1;
    if let Err(reason) = rewrite::translate(packet, path, scratch, ttl) {
        return path.end(frontend, reason).pack();
    }
    path.tables.count_reply(frontend);
    egress::send(packet, path, scratch).pack()
}

/// [`to_client`] where stack matters more than a call; [`egress::OK`] or a reason.
#[inline(never)]
pub(crate) fn way_back<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    table: FlowTable,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let now = path.tables.now();
    to_client(packet, path, table, scratch, now)
        .map_or_else(|reason| reason as u64, |()| egress::OK)
}

/// Sets `scratch.exit` to the way to the client: the one found less than a second ago, else the kernel's, else the one
/// its packets came by.
#[inline(always)]
fn to_client<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    table: FlowTable,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) -> Result<(), Reason> {
    let flow = &scratch.flow;
    scratch.exit = Exit {
        hop: flow.hop,
        gateway: Addr::UNSPECIFIED,
        mtu: u32::MAX,
    };
    let fresh = now.wrapping_sub(flow.resolved) <= path.settings.hz;
    if !fresh || path.tables.home() == Home::Tc {
        let from = path.arrival(packet, scratch.parsed.link.length);
        let route = path.tables.route(from, flow.source, flow.destination);
        let found = egress::by_route(path, &mut scratch.exit, &route)?;
        if path.tables.home() == Home::Xdp {
            let hop = scratch.exit.hop;
            let state = if found { 0 } else { flow_state::LAST_HOP };
            path.tables
                .with_flow(table, &scratch.parsed.tuple, |entry| {
                    entry.hop = hop;
                    entry.resolved = now;
                    entry.state = entry.state & !flow_state::LAST_HOP | state;
                });
        }
    }
    Ok(())
}
