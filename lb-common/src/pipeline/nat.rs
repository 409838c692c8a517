//! `nat`, from client to backend: destination to the backend, source to an own address and a port that is a function of
//! the flow's hash, so that what is lost of a flow is found again at the same place.

use super::{
    FamilyScratch, Path, Step, Verdict,
    classify::Request,
    egress, flows,
    parse::{Layout, Parsed, tcp_flag},
    reject, rewrite,
    select::{self, Selected},
};
use crate::{
    abi::{Flow, Frontend, Hop, Mode, Reason, Tuple, flow_state},
    bytes::Be16,
    hash,
    packet::Packet,
    tables::{Budget, FamilyTables, FlowTable, Tables},
};

/// Ports tried for a new flow. At 80 % use of a backend's ports, one flow in 35 finds none free in 16.
const PROBES: u32 = 16;

/// Distance between tries: odd and prime to the size of any sensible range.
const STRIDE: u32 = 1009;

/// Seconds after which the port of a half-open flow may go to another.
const HALF_OPEN_SECONDS: u32 = 30;

/// A function of its own in the kernel, so that its stack is not added to that of the stateless modes.
#[inline(never)]
pub(crate) fn forward<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    request: &Request<'_, A>,
) -> u64 {
    let &Request {
        parsed,
        frontend,
        service,
    } = request;
    if parsed.ttl <= 1 {
        return path.end(frontend.id, Reason::TtlExpired).pack();
    }
    let now = path.tables.now();
    let mut table = FlowTable::Established;
    let mut due = flows::look(path, table, parsed, &mut scratch.flow, now);
    if due.is_none() {
        table = FlowTable::HalfOpen;
        due = flows::look(path, table, parsed, &mut scratch.flow, now);
    }
    path.tables.trace(Step::Flow {
        known: due.is_some(),
    });
    if let Some(due) = due {
        if usable(path, parsed, frontend, &scratch.flow) {
            let promoted = table == FlowTable::HalfOpen && promote(path, parsed, scratch, now);
            if due && !promoted {
                flows::keep_opposite(packet, path, table, parsed, scratch, now);
            }
            return deliver(packet, path, parsed, frontend, &scratch.flow, false).pack();
        }
        forget(path, table, parsed, scratch);
    }
    let selected = match select::owner_of(path, parsed, service) {
        Ok(selected) => selected,
        Err(Reason::NoBackend) => {
            return reject::answer(packet, path, parsed, frontend.id, Reason::NoBackend);
        }
        Err(reason) => return path.end(frontend.id, reason).pack(),
    };
    if selected.backend.mode != Mode::Nat as u8 {
        return select::forward(packet, path, parsed, frontend, &selected).pack();
    }
    // Before any entry is made: a packet that goes up to tc comes through here again.
    if let Err(reason) = egress::to_backend(packet, path, parsed, &selected.backend) {
        return path.end(frontend.id, reason).pack();
    }
    match begin(packet, path, scratch, request, &selected, now) {
        Ok(()) => {
            let new = parsed.is_syn() || parsed.tuple_is_udp();
            deliver(packet, path, parsed, frontend, &scratch.flow, new).pack()
        }
        Err(reason) => path.end(frontend.id, reason).pack(),
    }
}

/// Removes both entries of a flow that is over.
#[inline(always)]
fn forget<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    table: FlowTable,
    parsed: &Parsed<A>,
    scratch: &mut FamilyScratch<A>,
) {
    scratch.key = scratch.flow.opposite(parsed.tuple.protocol);
    path.tables.remove_flow(table, &parsed.tuple);
    path.tables.remove_flow(table, &scratch.key);
}

/// Whether a packet belongs to the flow that has its tuple. UDP leaves a backend that is gone or no longer usable
/// (contract A7.1); a SYN leaves a flow that is closed; nothing survives its frontend (contract A1.7).
#[inline(always)]
fn usable<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    frontend: Frontend,
    flow: &Flow<A>,
) -> bool {
    if flow.state & flow_state::REPLY != 0 || flow.frontend != frontend.id {
        return false;
    }
    if parsed.tuple_is_udp() {
        return path
            .tables
            .backend(flow.backend)
            .is_some_and(|backend| backend.generation == flow.generation && backend.state == 1);
    }
    !(parsed.is_syn() && flow.is_dead())
}

/// Rewrites and sends.
#[inline(always)]
fn deliver<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    frontend: Frontend,
    flow: &Flow<A>,
    new: bool,
) -> Verdict {
    let bytes = packet.length();
    let (mut id, mut exit) = (0, None);
    if let Some(backend) = path.tables.backend(flow.backend)
        && backend.generation == flow.generation
    {
        id = flow.backend;
        path.tables.trace(Step::Backend {
            id,
            mode: backend.mode,
        });
        exit = Some(egress::to_backend(packet, path, parsed, &backend));
    }
    // A backend that has left the configuration keeps its flows: the kernel knows the way.
    let exit = exit.unwrap_or_else(|| {
        let route = path.tables.route(flow.source, flow.destination);
        egress::by_route(packet, path, parsed.link.length, route)
            .and_then(|exit| exit.ok_or(Reason::NoRoute))
    });
    let exit = match exit {
        Ok(exit) => exit,
        Err(reason) => return path.end(frontend.id, reason),
    };
    if let Err(reason) = rewrite::translate(packet, path, parsed, flow) {
        return path.end(frontend.id, reason);
    }
    path.tables.count_forwarded(frontend.id, id, bytes, new);
    egress::send(packet, path, &exit)
}

/// Moves a half-open flow to the established ones when the client has shown that it sees the backend's replies: by
/// acknowledging the SYN-ACK's number (RFC 9293, section 3.5), or by going on after the backend answered.
#[inline(always)]
fn promote<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) -> bool {
    if parsed.flags & (tcp_flag::SYN | tcp_flag::RST) != 0 {
        return false;
    }
    let tables = path.tables;
    scratch.key = scratch.flow.opposite(parsed.tuple.protocol);
    let opposite = &mut scratch.opposite;
    let known = tables.with_flow(FlowTable::HalfOpen, &scratch.key, |reply| {
        *opposite = *reply
    });
    if known.is_none() {
        return false;
    }
    let replied = opposite.state & flow_state::REPLIED != 0
        && (parsed.tuple_is_udp() || parsed.acknowledged == opposite.isn.wrapping_add(1));
    if !replied && opposite.state & flow_state::ANSWERED == 0 {
        return false;
    }
    let settings = path.settings;
    if !tables.take(Budget::Flow, settings.flow_rate, settings.flow_burst) {
        return false;
    }
    opposite.seen = now;
    if !tables.insert_flow(FlowTable::Established, &scratch.key, opposite, false)
        || !tables.insert_flow(FlowTable::Established, &parsed.tuple, &scratch.flow, false)
    {
        return false;
    }
    FamilyTables::<A>::remove_flow(tables, FlowTable::HalfOpen, &scratch.key);
    FamilyTables::<A>::remove_flow(tables, FlowTable::HalfOpen, &parsed.tuple);
    true
}

/// Who holds a port.
enum Claim {
    /// We do, for this flow.
    Held(FlowTable),
    Taken,
    Full,
}

/// Enters a flow that no table knows, a new one or one whose entries were lost, and leaves it in `scratch.flow`.
#[inline(always)]
fn begin<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    request: &Request<'_, A>,
    selected: &Selected,
    now: u32,
) -> Result<(), Reason> {
    let parsed = request.parsed;
    let backend = &selected.backend;
    let ports = path.settings.nat_ports;
    let (first, last) = (ports & 0xffff, ports >> 16);
    if ports == 0 || last < first || backend.address.is_v4() != (A::VERSION == 4) {
        return Err(Reason::Inconsistent);
    }
    scratch.flow = Flow {
        source: A::from_addr(&backend.source),
        destination: A::from_addr(&backend.address),
        source_port: Be16::new(0),
        destination_port: backend.port,
        hop: Hop::default(),
        backend: selected.id,
        generation: backend.generation,
        frontend: request.frontend.id,
        seen: now,
        resolved: now,
        isn: 0,
        state: 0,
    };
    flows::mirror(packet, path, parsed, scratch, now);
    let size = last - first + 1;
    let hash = hash::flow(&path.settings.hash_key, &parsed.tuple);
    let mut at = ((hash >> 32) * u64::from(size) >> 32) as u32;
    let mut probe = 0;
    let mut reason = Reason::PortsExhausted;
    while probe < PROBES {
        let port = Be16::new((first + at) as u16);
        scratch.key.destination_port = port;
        match claim(path, parsed, &scratch.key, &scratch.opposite, now) {
            Claim::Held(table) => {
                scratch.flow.source_port = port;
                return if path
                    .tables
                    .insert_flow(table, &parsed.tuple, &scratch.flow, false)
                {
                    Ok(())
                } else {
                    Err(Reason::FlowTableFull)
                };
            }
            Claim::Taken => {}
            Claim::Full => reason = Reason::FlowTableFull,
        }
        at += STRIDE;
        if at >= size {
            at = if at - size < size { at - size } else { 0 };
        }
        probe += 1;
    }
    Err(reason)
}

/// Takes the port that `key` stands for, if it is free, ours already, or a dead flow's.
#[inline(always)]
fn claim<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    key: &Tuple<A>,
    reply: &Flow<A>,
    now: u32,
) -> Claim {
    let tables = path.tables;
    let holder = |flow: &mut Flow<A>| {
        let ours = flow.source == reply.source
            && flow.destination == reply.destination
            && flow.source_port == reply.source_port
            && flow.destination_port == reply.destination_port;
        (ours, flow.is_dead(), now.wrapping_sub(flow.seen))
    };
    if let Some((ours, dead, _)) = tables.with_flow(FlowTable::Established, key, holder) {
        if ours && !parsed.is_syn() {
            return Claim::Held(FlowTable::Established);
        }
        if !ours && !dead {
            return Claim::Taken;
        }
        tables.remove_flow(FlowTable::Established, key);
    }
    if tables.insert_flow(FlowTable::HalfOpen, key, reply, true) {
        return Claim::Held(FlowTable::HalfOpen);
    }
    match tables.with_flow(FlowTable::HalfOpen, key, holder) {
        Some((ours, dead, idle)) => {
            let over = dead || idle > path.settings.hz * HALF_OPEN_SECONDS;
            if ours && !dead || over && tables.insert_flow(FlowTable::HalfOpen, key, reply, false) {
                Claim::Held(FlowTable::HalfOpen)
            } else {
                Claim::Taken
            }
        }
        None => Claim::Full,
    }
}
