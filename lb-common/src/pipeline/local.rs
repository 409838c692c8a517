//! `local` and `pass`: services that kube-proxy serves as well. A backend on this node gets the packet from the stack,
//! which knows the way, with the client's own address; its reply is met on the way out, see [`super::leaving`]. What goes
//! to other backends is left to kube-proxy, whole connections at a time: its connection tracking knows what began without
//! us, so the choice is made at a SYN and for a UDP flow that nothing is known of. What goes on elsewhere is in
//! [`super::elsewhere`].

use super::{
    FamilyScratch, Path, Step, Verdict, classify, egress,
    elsewhere::{self, leave},
    flows, nat,
    odd::Kind,
    parse::Layout,
    ports, rewrite, select,
    steer::{self, Chosen},
    tunnel::{self, kind},
};
use crate::{
    abi::{Backend, Flow, Mode, Reason, Tuple, backend_state, flow_state, service_flag},
    bytes::Be16,
    hash,
    packet::Packet,
    tables::{FamilyTables, FlowTable, Tables},
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
    let begins = scratch.parsed.tuple_is_udp() || scratch.parsed.is_syn();
    scratch.chosen = Chosen::default();
    if !begins && elsewhere::by_table(path, scratch) == elsewhere::THERE {
        return if scratch.kind == Kind::Whole as u32 {
            steer::SEND
        } else {
            steer::CHOSEN
        };
    }
    let owner = scratch.chosen;
    if let Some(word) = known(packet, path, scratch, now) {
        return word;
    }
    if !begins {
        if owner.id != 0 {
            scratch.chosen = owner;
            return steer::CHOSEN;
        }
        return if scratch.service.flags & service_flag::DSR == 0 {
            leave(path, frontend, Reason::NoFlow)
        } else {
            elsewhere::NEXT
        };
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
    let away = backend.state == backend_state::AWAY;
    if backend.mode == Mode::Dsr as u8 && !away {
        scratch.chosen = Chosen::new(hash, id);
        // Of a connection the table tells as much.
        if scratch.parsed.tuple_is_udp() {
            elsewhere::remember(path, scratch, id, flow_state::SENT, 0, now);
        }
        return steer::CHOSEN;
    }
    if backend.mode == Mode::Nat as u8 {
        return classify::FLOWS;
    }
    if backend.mode == Mode::Pass as u8 || away {
        // What begins over TCP is in kube-proxy's own memory; here, too, where the table may lead to a tunnel.
        let asks = scratch.service.flags & service_flag::DSR != 0;
        if scratch.parsed.tuple_is_udp() || asks {
            elsewhere::remember(path, scratch, id, flow_state::PASSED, 0, now);
        }
        if asks {
            elsewhere::mark_moved(path, scratch, now);
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
pub(super) fn known<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
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
    if table == FlowTable::HalfOpen && state & (flow_state::PASSED | flow_state::SENT) != 0 {
        elsewhere::settle(path, scratch, now);
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
        scratch.chosen = Chosen::of(id);
        if !scratch.parsed.tuple_is_udp() && !scratch.parsed.is_syn() {
            scratch.chosen.kind = u32::from(kind::asked(scratch.flow.isn));
        }
        return Some(steer::CHOSEN);
    }
    let promoted = table == FlowTable::HalfOpen && nat::promote(path, scratch, now);
    if due && !promoted {
        flows::keep_opposite(packet, path, table, scratch, now);
    }
    Some(deliver(packet, path, scratch, false))
}

/// Takes a packet that another node sent for the chosen backend, which is on this one, or gave back, on as an entry says.
/// What this node would do with the flow by itself does not count: the client's packets may come in by several nodes. Without
/// an entry: [`steer::CHOSEN`] for [`accept`]; [`tunnel::UNKNOWN`] where the other one asked, and this one does not know the
/// flow either; [`elsewhere::NEXT`] for what was given back, to the next that may know its connection.
#[inline(never)]
pub(crate) fn resume<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let (now, chosen) = (path.tables.now(), scratch.chosen);
    let (kind, position) = (
        kind::of(chosen.kind as u8),
        kind::position(chosen.kind as u8),
    );
    // Who has asked by an entry knows it.
    if (kind != kind::GIVEN_BACK || position == 0)
        && let Some(word) = known(packet, path, scratch, now)
        && (kind == kind::GIVEN_BACK || !classify::goes_on(word))
    {
        return word;
    }
    scratch.chosen = chosen;
    match kind {
        kind::ASKED => tunnel::UNKNOWN,
        kind::GIVEN_BACK => elsewhere::NEXT,
        _ => steer::CHOSEN,
    }
}

/// Begins a flow of another node's with the chosen backend.
#[inline(never)]
pub(crate) fn accept<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let (now, id) = (path.tables.now(), scratch.chosen.id);
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
    scratch.flow = elsewhere::entry(scratch, id, backend.generation, now);
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
