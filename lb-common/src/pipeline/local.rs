//! `local` and `pass`: services that kube-proxy serves as well. A backend on this node gets the packet from the stack,
//! which knows the way, with the client's own address; its reply is met on the way out, see [`super::leaving`]. What goes
//! to other backends is left to kube-proxy, whole connections at a time: its connection tracking knows what began without
//! us, so the choice is made at a SYN and for a UDP flow that nothing is known of.

use super::{
    FamilyScratch, Path, Step, Verdict, classify, egress, flows, nat,
    parse::{Layout, tcp_flag},
    ports, rewrite, select,
    steer::{self, Chosen},
    tunnel::{self, kind},
};
use crate::{
    abi::{Backend, Flow, Hop, Mode, Reason, Tuple, backend_state, flow_state},
    bytes::Be16,
    hash,
    packet::Packet,
    tables::{Budget, FamilyTables, FlowTable, Home, Tables},
};

/// State of an entry for packets from a backend on this node.
pub(crate) const ANSWER: u32 = flow_state::REPLY | flow_state::LOCAL;

/// Ports tried for a client whose own is taken at the backend, where it has another connection by another frontend.
const PROBES: u32 = 4;

/// Seconds of silence after which a UDP flow that passed is over: as long as Linux tracks one (the default of
/// `nf_conntrack_udp_timeout_stream`).
const PASSED_SECONDS: u32 = 120;

/// A function of its own in the kernel, so that its stack is not added to that of the other modes.
#[inline(never)]
pub(crate) fn forward<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let (frontend, now) = (scratch.frontend.id, path.tables.now());
    if let Some(word) = known(packet, path, scratch, now) {
        return word;
    }
    let (id, hash) = match select::owner_of(path, &scratch.parsed, &scratch.service) {
        Ok(selected) => selected,
        Err(reason) => return select::unowned(path, scratch, reason),
    };
    let Some(backend) = path.tables.backend(id) else {
        return path.end(frontend, Reason::Inconsistent).pack();
    };
    path.tables.trace(Step::Backend {
        id,
        mode: backend.mode,
    });
    let begins = scratch.parsed.tuple_is_udp() || scratch.parsed.is_syn();
    let away = backend.state == backend_state::AWAY;
    if backend.mode == Mode::Dsr as u8 && !away {
        scratch.chosen = Chosen::new(hash, id);
        if begins {
            remember(path, scratch, &backend, id, flow_state::SENT, now);
        } else {
            // Another node may have sent the ones before.
            scratch.chosen.kind = u32::from(kind::ASKED);
        }
        return steer::CHOSEN;
    }
    if !begins {
        return leave(path, frontend, Reason::NoFlow);
    }
    if backend.mode == Mode::Nat as u8 {
        return classify::FLOWS;
    }
    if backend.mode == Mode::Pass as u8 || away {
        // What begins over TCP is in kube-proxy's own memory.
        if scratch.parsed.tuple_is_udp() {
            remember(path, scratch, &backend, id, flow_state::PASSED, now);
        }
        return leave(path, frontend, Reason::Pass);
    }
    if backend.mode != Mode::Local as u8 || backend.address.is_v4() != (A::VERSION == 4) {
        return path.end(frontend, Reason::Inconsistent).pack();
    }
    enter(packet, path, scratch, &backend, id, now)
}

/// Sends a packet on as the entry of its flow says, if it has one that is still good.
#[inline(always)]
fn known<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) -> Option<u64> {
    let frontend = scratch.frontend.id;
    let found = flows::find(path, scratch, now);
    path.tables.trace(Step::Flow {
        known: found.is_some(),
    });
    let (table, due) = found?;
    let state = scratch.flow.state;
    if state & (flow_state::LOCAL | flow_state::PASSED | flow_state::SENT) == 0 {
        return Some(classify::FLOWS);
    }
    if !nat::usable(path, scratch) || is_over(path, scratch, now) {
        nat::forget(path, table, scratch);
        return None;
    }
    if state & flow_state::PASSED != 0 {
        return Some(leave(path, frontend, Reason::Pass));
    }
    if state & flow_state::SENT != 0 {
        let id = backend_of(path, &scratch.flow);
        if id == 0 {
            nat::forget(path, table, scratch);
            return None;
        }
        if table == FlowTable::HalfOpen {
            settle(path, scratch, now);
        }
        scratch.chosen = Chosen::of(id);
        return Some(steer::CHOSEN);
    }
    let promoted = table == FlowTable::HalfOpen && nat::promote(path, scratch, now);
    if due && !promoted {
        flows::keep_opposite(packet, path, table, scratch, now);
    }
    Some(deliver(packet, path, scratch, false))
}

/// Takes a packet that another node sent for the chosen backend, which is on this one. What this node would do with the
/// flow by itself does not count: the client's packets may come in by several nodes. [`tunnel::UNKNOWN`]: the other one
/// asked, and this one does not know the flow either.
#[inline(never)]
pub(crate) fn accept<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let (now, id) = (path.tables.now(), scratch.chosen.id);
    if let Some(word) = known(packet, path, scratch, now)
        && !classify::goes_on(word)
    {
        return word;
    }
    if scratch.chosen.kind == u32::from(kind::ASKED) {
        return tunnel::UNKNOWN;
    }
    match path.tables.backend(id) {
        Some(backend)
            if backend.mode == Mode::Local as u8
                && backend.address.is_v4() == (A::VERSION == 4) =>
        {
            enter(packet, path, scratch, &backend, id, now)
        }
        _ => path.end(scratch.frontend.id, Reason::TunnelTarget).pack(),
    }
}

/// Leaves a connection that its backend's node does not know to kube-proxy, which does if anyone does, and remembers that.
#[inline(always)]
pub(crate) fn give_up<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let frontend = scratch.frontend.id;
    let ends = scratch.parsed.tuple_is_udp() || scratch.parsed.flags & tcp_flag::RST != 0;
    if !ends
        && let Ok((id, _)) = select::owner_of(path, &scratch.parsed, &scratch.service)
        && let Some(backend) = path.tables.backend(id)
    {
        let now = path.tables.now();
        remember(path, scratch, &backend, id, flow_state::PASSED, now);
    }
    leave(path, frontend, Reason::NoFlow)
}

/// Leaves the packet to whoever serves the VIP beside us; at tc it has been counted already.
#[inline(always)]
pub(crate) fn leave<T: Tables>(path: &Path<'_, T>, frontend: u32, reason: Reason) -> u64 {
    if path.tables.home() == Home::Tc {
        return Verdict::NotOurs.pack();
    }
    path.end(frontend, reason).pack()
}

/// Whether nothing is left of what the entry stands for: a UDP flow that has passed long ago, or a connection that its
/// client begins anew when kube-proxy had it, or when its backend gets no new ones.
#[inline(always)]
fn is_over<A: Layout, T: Tables>(path: &Path<'_, T>, scratch: &FamilyScratch<A>, now: u32) -> bool {
    let flow = &scratch.flow;
    if flow.state & (flow_state::PASSED | flow_state::SENT) != 0 && scratch.parsed.tuple_is_udp() {
        let idle = now.wrapping_sub(flow.seen);
        return idle > path.settings.hz.saturating_mul(PASSED_SECONDS);
    }
    scratch.parsed.is_syn()
        && (flow.state & flow_state::PASSED != 0
            || path.tables.backend(flow.backend).is_none_or(|backend| {
                backend.generation != flow.generation || backend.state != backend_state::USABLE
            }))
}

/// An entry that changes nothing.
#[inline(always)]
fn entry<A: Layout>(scratch: &FamilyScratch<A>, backend: &Backend, id: u32, now: u32) -> Flow<A> {
    let tuple = &scratch.parsed.tuple;
    Flow {
        source: tuple.source,
        destination: tuple.destination,
        source_port: tuple.source_port,
        destination_port: tuple.destination_port,
        hop: Hop::default(),
        backend: id,
        generation: backend.generation,
        frontend: scratch.frontend.id,
        seen: now,
        resolved: now,
        isn: 0,
        state: 0,
    }
}

/// Remembers a flow that goes elsewhere, as `state` says, among the half-open. A UDP flow that is evicted there is chosen
/// anew, and mostly the same.
#[inline(always)]
fn remember<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    backend: &Backend,
    id: u32,
    state: u32,
    now: u32,
) {
    scratch.flow = entry(scratch, backend, id, now);
    scratch.flow.state = state;
    let (table, tuple) = (FlowTable::HalfOpen, &scratch.parsed.tuple);
    path.tables.insert_flow(table, tuple, &scratch.flow, false);
}

/// Moves a TCP connection that goes on elsewhere to where no flood of SYNs evicts it. What its backend says is not seen
/// here, so the client's word has to do.
#[inline(always)]
fn settle<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) {
    let (tables, parsed, settings) = (path.tables, &scratch.parsed, path.settings);
    if parsed.tuple_is_udp() || parsed.flags & (tcp_flag::SYN | tcp_flag::RST) != 0 {
        return;
    }
    if !tables.take(Budget::Flow, settings.flow_rate, settings.flow_burst) {
        return;
    }
    scratch.flow.seen = now;
    if tables.insert_flow(FlowTable::Established, &parsed.tuple, &scratch.flow, false) {
        FamilyTables::<A>::remove_flow(tables, FlowTable::HalfOpen, &parsed.tuple);
    }
}

/// Begins a flow with a backend of this node.
#[inline(always)]
fn enter<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    backend: &Backend,
    id: u32,
    now: u32,
) -> u64 {
    scratch.flow = entry(scratch, backend, id, now);
    scratch.flow.destination = A::from_addr(&backend.address);
    scratch.flow.destination_port = backend.port;
    scratch.flow.state = flow_state::LOCAL;
    flows::mirror(packet, path, scratch, now);
    let entered = begin(path, scratch, now);
    if entered != egress::OK {
        return path
            .end(scratch.frontend.id, Reason::from_number(entered as u32))
            .pack();
    }
    let new = scratch.parsed.is_syn() || scratch.parsed.tuple_is_udp();
    deliver(packet, path, scratch, new)
}

/// The backend of an entry, for its counters; 0 if it has left the configuration.
#[inline(always)]
pub(crate) fn backend_of<A, T: Tables>(path: &Path<'_, T>, flow: &Flow<A>) -> u32 {
    let id = flow.backend;
    match path.tables.backend(id) {
        Some(backend) if backend.generation == flow.generation => {
            path.tables.trace(Step::Backend {
                id,
                mode: backend.mode,
            });
            id
        }
        _ => 0,
    }
}

/// Rewrites, and leaves the rest to the stack: it takes the hop, and tells the client what does not fit.
#[inline(always)]
fn deliver<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
    new: bool,
) -> u64 {
    let (frontend, bytes) = (scratch.frontend.id, packet.length());
    let id = backend_of(path, &scratch.flow);
    let ttl = scratch.parsed.ttl;
    if let Err(reason) = rewrite::translate(packet, path, scratch, ttl) {
        return path.end(frontend, reason).pack();
    }
    path.tables.count_forwarded(frontend, id, bytes, new);
    Verdict::Rewritten.pack()
}

/// Enters the flow, under the client's own port if that is free at the backend; [`egress::OK`] or a reason. Two frontends
/// with one backend, used from one port, would else be one connection there.
#[inline(never)]
fn begin<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) -> u64 {
    let own = scratch.parsed.tuple.source_port;
    let mut hash = 0;
    let port = |tuple: &Tuple<A>, probe| {
        if probe == 0 {
            return own;
        }
        if probe == 1 {
            hash = hash::flow(&path.settings.hash_key, tuple);
        }
        // 1024 to 65535.
        let port = Be16::new(1024 + ((hash & 0xffff) * 64_512 >> 16) as u16);
        hash >>= 16;
        port
    };
    ports::enter(path, scratch, now, 1 + PROBES, Reason::TupleTaken, port)
}
