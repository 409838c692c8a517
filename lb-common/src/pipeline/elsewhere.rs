//! Packets of shared services whose backend is not on this node: it is behind a tunnel, or kube-proxy's.
//!
//! A connection whose backend is behind a tunnel has no entry here. Its packets go where the table leads, with the question
//! whether the node there knows it. What that node gives back is an older connection, from before the table changed, or
//! kube-proxy's: its other backends are asked in turn, and from then on an entry says where it goes, which the filter of
//! [`Moved`] connections says is to be looked for.

use super::{
    FamilyScratch, Path, Step, Verdict,
    parse::{Layout, tcp_flag},
    select,
    steer::{self, Chosen},
    tunnel::kind,
};
use crate::{
    abi::{Flow, Hop, Mode, Moved, Reason, backend_state, flow_state, service_flag},
    hash,
    tables::{Budget, FamilyTables, FlowTable, Home, Tables},
};

/// Beside the words of [`super::classify`]: the next candidate is to be asked, behind the one that `scratch.chosen` names.
pub(crate) const NEXT: u64 = 20 << 24;

/// What the table says of a connection that goes on.
pub(crate) const ELSEWHERE: u32 = 0;
/// Its backend is behind a tunnel.
pub(crate) const THERE: u32 = 1;
/// Its backend is behind a tunnel, if no entry says otherwise.
pub(crate) const PERHAPS: u32 = 2;

/// Sets `scratch.chosen` to the backend behind a tunnel that the table leads a connection to that goes on, with the question
/// whether its node knows it: the connection may be kube-proxy's, or from before the table changed. Without an entry, it is
/// where the hash says, on every node and whatever was seen of it.
#[inline(never)]
pub(crate) fn by_table<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u32 {
    if scratch.service.flags & service_flag::DSR == 0 || scratch.parsed.tuple_is_udp() {
        return ELSEWHERE;
    }
    let Ok((id, mut hash)) = select::owner_of(path, &scratch.parsed, &scratch.service) else {
        return ELSEWHERE;
    };
    let Some(backend) = path.tables.backend(id) else {
        return ELSEWHERE;
    };
    if backend.mode != Mode::Dsr as u8 {
        return ELSEWHERE;
    }
    if hash == 0 {
        hash = hash::flow(&path.settings.hash_key, &scratch.parsed.tuple);
    }
    path.tables.trace(Step::Backend {
        id,
        mode: backend.mode,
    });
    scratch.chosen = Chosen {
        hash,
        id,
        kind: u32::from(kind::asked(0)),
    };
    let (word, bit) = Moved::place(hash);
    let moved = path.tables.moved(word).has(bit, || path.tables.now());
    // Connections that began while it was away are kube-proxy's, and nobody may be there to give them back.
    if moved || backend.state == backend_state::AWAY {
        PERHAPS
    } else {
        THERE
    }
}

/// Notes that a connection is not where the table leads: from now on its entry is asked.
#[inline(never)]
pub(super) fn mark_moved<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) -> u64 {
    let hash = hash::flow(&path.settings.hash_key, &scratch.parsed.tuple);
    let (word, bit) = Moved::place(hash);
    let moved = path.tables.moved(word).with(bit, now);
    path.tables.set_moved(word, moved);
    hash
}

/// Sends a packet to the next that may know its connection ([`steer::CHOSEN`]), and those behind it, too.
/// Where there is none, kube-proxy knows it if anyone does. As often as the budget of new flows allows: a packet that
/// nobody knows has many nodes asked.
#[inline(never)]
pub(super) fn ask_next<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let (frontend, settings, now) = (scratch.frontend.id, path.settings, path.tables.now());
    let (rate, burst) = (settings.flow_rate, settings.flow_burst);
    if !path.tables.take(Budget::Flow, rate, burst) {
        return leave(path, frontend, Reason::NoFlow);
    }
    let last = kind::position(scratch.chosen.kind as u8);
    let next = select::next_candidate(path, scratch, last);
    let (id, position) = (next as u32, (next >> 32) as u32);
    if next == 0 && scratch.parsed.flags & tcp_flag::RST != 0 {
        return leave(path, frontend, Reason::NoFlow);
    }
    let state = if next == 0 {
        flow_state::PASSED
    } else {
        flow_state::SENT
    };
    // Where it was before is another's.
    FamilyTables::<A>::remove_flow(path.tables, FlowTable::Established, &scratch.parsed.tuple);
    let remembered = remember(path, scratch, id, state, position, now);
    scratch.chosen = Chosen {
        hash: mark_moved(path, scratch, now),
        id,
        kind: u32::from(kind::asked(position)),
    };
    // What is not remembered would come back for ever where it has to go up to tc.
    if next == 0 || !remembered {
        return leave(path, frontend, Reason::NoFlow);
    }
    let mode = Mode::Dsr as u8;
    path.tables.trace(Step::Backend { id, mode });
    steer::CHOSEN
}

/// Leaves the packet to whoever serves the VIP beside us; at tc it has been counted already.
#[inline(always)]
pub(crate) fn leave<T: Tables>(path: &Path<'_, T>, frontend: u32, reason: Reason) -> u64 {
    if path.tables.home() == Home::Tc {
        return Verdict::NotOurs.pack();
    }
    path.end(frontend, reason).pack()
}

/// An entry that changes nothing.
#[inline(always)]
pub(super) fn entry<A: Layout>(
    scratch: &FamilyScratch<A>,
    id: u32,
    generation: u32,
    now: u32,
) -> Flow<A> {
    let tuple = &scratch.parsed.tuple;
    Flow {
        source: tuple.source,
        destination: tuple.destination,
        source_port: tuple.source_port,
        destination_port: tuple.destination_port,
        hop: Hop::default(),
        backend: id,
        generation,
        frontend: scratch.frontend.id,
        seen: now,
        resolved: now,
        isn: 0,
        state: 0,
    }
}

/// Remembers a flow that goes elsewhere, as `state` says, among the half-open; `position`: which candidate was asked. False
/// if there was no room. A UDP flow that is evicted there is chosen anew, and mostly the same.
#[inline(always)]
pub(super) fn remember<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    id: u32,
    state: u32,
    position: u32,
    now: u32,
) -> bool {
    let backend = path.tables.backend(id);
    let generation = backend.map_or(0, |backend| backend.generation);
    scratch.flow = entry(scratch, id, generation, now);
    (scratch.flow.state, scratch.flow.isn) = (state, position);
    let (table, tuple) = (FlowTable::HalfOpen, &scratch.parsed.tuple);
    path.tables.insert_flow(table, tuple, &scratch.flow, false)
}

/// Moves a TCP connection that goes on elsewhere to where no flood of SYNs evicts it. What its backend says is not seen
/// here, so the client's word has to do.
#[inline(always)]
pub(super) fn settle<A: Layout, T: Tables + FamilyTables<A>>(
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
