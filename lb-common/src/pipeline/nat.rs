//! `nat`, from client to backend: destination to the backend, source to an own address and a port that is a function of
//! the flow's hash, so that what is lost of a flow is found again at the same place.

use super::{
    FamilyScratch, Path, Step, classify,
    egress::{self, Exit},
    flows, fragment,
    parse::{Layout, tcp_flag},
    ports, rewrite, select,
};
use crate::{
    abi::{Backend, Flow, Hop, Mode, Reason, Tuple, backend_state, flow_state},
    bytes::{Addr, Be16},
    hash,
    packet::Packet,
    tables::{Budget, FamilyTables, FlowTable, Home, Tables},
};

/// Ports tried for a new flow. At 80 % use of a backend's ports, one flow in 35 finds none free in 16.
const PROBES: u32 = 16;

/// A function of its own in the kernel, so that its stack is not added to that of the stateless modes.
#[inline(never)]
pub(crate) fn forward<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let frontend = scratch.frontend.id;
    if scratch.parsed.ttl <= 1 {
        return path.end(frontend, Reason::TtlExpired).pack();
    }
    let now = path.tables.now();
    let found = flows::find(path, scratch, now);
    path.tables.trace(Step::Flow {
        known: found.is_some(),
    });
    if let Some((table, due)) = found {
        if usable(path, scratch) {
            let promoted = table == FlowTable::HalfOpen && promote(path, scratch, now);
            if due && !promoted {
                flows::keep_opposite(packet, path, table, scratch, now);
            }
            return deliver(packet, path, scratch, false);
        }
        forget(path, table, scratch);
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
    if backend.mode != Mode::Nat as u8 {
        fragment::keep_addresses(scratch, &backend, id);
        return select::forward(packet, path, scratch, &backend, id, hash);
    }
    if backend.address.is_v4() != (A::VERSION == 4) {
        return path.end(frontend, Reason::Inconsistent).pack();
    }
    // Before any entry is made: a packet that goes up to tc comes through here again.
    let way = egress::to_backend_by_call(packet, path, scratch, &backend);
    if way != egress::OK {
        return path.end(frontend, Reason::from_number(way as u32)).pack();
    }
    prepare(packet, path, scratch, &backend, id, now);
    let entered = begin(path, scratch, now);
    if entered != egress::OK {
        return path
            .end(frontend, Reason::from_number(entered as u32))
            .pack();
    }
    let new = scratch.parsed.is_syn() || scratch.parsed.tuple_is_udp();
    deliver(packet, path, scratch, new)
}

/// Removes both entries of a flow that is over.
#[inline(always)]
pub(crate) fn forget<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    table: FlowTable,
    scratch: &mut FamilyScratch<A>,
) {
    scratch.key = scratch.flow.opposite(scratch.parsed.tuple.protocol);
    path.tables.remove_flow(table, &scratch.parsed.tuple);
    path.tables.remove_flow(table, &scratch.key);
}

/// Whether the packet belongs to the flow that has its tuple. UDP leaves a backend that is gone or no longer serves
/// (contract A7.1); a SYN leaves a flow that is closed; nothing survives its frontend (contract A1.7).
#[inline(always)]
pub(crate) fn usable<A: Layout, T: Tables>(path: &Path<'_, T>, scratch: &FamilyScratch<A>) -> bool {
    let (parsed, flow) = (&scratch.parsed, &scratch.flow);
    if flow.state & flow_state::REPLY != 0 || flow.frontend != scratch.frontend.id {
        return false;
    }
    if parsed.tuple_is_udp() {
        return path.tables.backend(flow.backend).is_some_and(|backend| {
            backend.generation == flow.generation && backend.state != backend_state::DOWN
        });
    }
    !(parsed.is_syn() && flow.is_dead())
}

/// Rewrites and sends.
#[inline(always)]
fn deliver<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    new: bool,
) -> u64 {
    let frontend = scratch.frontend.id;
    let bytes = packet.length();
    let (way, id) = way(packet, path, scratch);
    if way != egress::OK {
        return path.end(frontend, Reason::from_number(way as u32)).pack();
    }
    // What reaches tc may be several packets in one.
    if path.tables.home() == Home::Xdp && u32::from(scratch.parsed.length) > scratch.exit.mtu {
        scratch.fits = scratch.exit.mtu;
        return classify::TOO_BIG;
    }
    let ttl = scratch.parsed.ttl - 1;
    if let Err(reason) = rewrite::translate(packet, path, scratch, ttl) {
        return path.end(frontend, reason).pack();
    }
    path.tables.count_forwarded(frontend, id, bytes, new);
    egress::send(packet, path, scratch).pack()
}

/// Sets `scratch.exit` to the way to the backend of `scratch.flow`; [`egress::OK`] or a reason. And the backend's id, 0
/// if it has left the configuration.
#[inline(always)]
pub(crate) fn way<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> (u64, u32) {
    let generation = scratch.flow.generation;
    let mut id = scratch.flow.backend;
    let backend = path
        .tables
        .backend(id)
        .filter(|backend| backend.generation == generation);
    let way = if let Some(backend) = backend {
        path.tables.trace(Step::Backend {
            id,
            mode: backend.mode,
        });
        egress::to_backend_by_call(packet, path, scratch, &backend)
    } else {
        // A backend that has left the configuration keeps its flows: the kernel knows the way.
        id = 0;
        by_kernel(packet, path, scratch)
    };
    let way = if way == Reason::NoRoute as u64 {
        by_last_hop(scratch)
    } else {
        way
    };
    (way, id)
}

/// Sets `scratch.exit` to where the backend's last packets came from: the way to one that has left the configuration and
/// with it the next-hop table, where the kernel does not tell (`bpf_fib_lookup` is mute on a host that does not forward).
#[inline(always)]
fn by_last_hop<A>(scratch: &mut FamilyScratch<A>) -> u64 {
    let hop = scratch.flow.hop;
    if hop.segment.ifindex == 0 {
        return Reason::NoRoute as u64;
    }
    scratch.exit = Exit {
        hop,
        gateway: Addr::UNSPECIFIED,
        mtu: u32::MAX,
    };
    egress::OK
}

/// Sets `scratch.exit` to the kernel's way to where the flow goes; [`egress::OK`] or a reason.
#[inline(never)]
fn by_kernel<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let from = path.arrival(packet, scratch.parsed.link.length);
    let flow = &scratch.flow;
    let route = path.tables.route(from, flow.source, flow.destination);
    match egress::by_route(path, &mut scratch.exit, &route) {
        Ok(true) => egress::OK,
        Ok(false) => Reason::NoRoute as u64,
        Err(reason) => reason as u64,
    }
}

/// Moves a half-open flow to the established ones when the client has shown that it sees the backend's replies: by
/// acknowledging the SYN-ACK's number (RFC 9293, section 3.5), or by going on after the backend answered.
#[inline(always)]
pub(crate) fn promote<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) -> bool {
    let parsed = &scratch.parsed;
    if parsed.flags & (tcp_flag::SYN | tcp_flag::RST) != 0 {
        return false;
    }
    let tables = path.tables;
    scratch.key = scratch.flow.opposite(parsed.tuple.protocol);
    let opposite = &mut scratch.opposite;
    let known = tables.with_flow(FlowTable::HalfOpen, &scratch.key, |reply| {
        *opposite = *reply;
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
    scratch.flow.seen = now;
    if !tables.insert_flow(FlowTable::Established, &scratch.key, opposite, false)
        || !tables.insert_flow(FlowTable::Established, &parsed.tuple, &scratch.flow, false)
    {
        return false;
    }
    FamilyTables::<A>::remove_flow(tables, FlowTable::HalfOpen, &scratch.key);
    FamilyTables::<A>::remove_flow(tables, FlowTable::HalfOpen, &parsed.tuple);
    true
}

/// Sets both entries of a flow that no table knows, a new one or one whose entries were lost; all but its port.
#[inline(always)]
fn prepare<A: Layout, P: Packet, T: Tables>(
    packet: &P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    backend: &Backend,
    id: u32,
    now: u32,
) {
    scratch.flow = Flow {
        source: A::from_addr(&backend.source),
        destination: A::from_addr(&backend.address),
        source_port: Be16::new(0),
        destination_port: backend.port,
        hop: Hop::default(),
        backend: id,
        generation: backend.generation,
        frontend: scratch.frontend.id,
        seen: now,
        resolved: now,
        isn: 0,
        state: 0,
    };
    flows::mirror(packet, path, scratch, now);
}

/// Finds a port for the flow and enters it; [`egress::OK`] or a reason.
#[inline(never)]
fn begin<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    now: u32,
) -> u64 {
    let settings = path.settings;
    let (first, last) = (settings.nat_ports & 0xffff, settings.nat_ports >> 16);
    if settings.nat_ports == 0 || last < first {
        return Reason::Inconsistent as u64;
    }
    let size = last - first + 1;
    // Draws of a flow's own (Knuth's generator MMIX, of which the upper half is used): with a distance for all, taken
    // ports grow together; with one that divides the range, a flow comes back to the few ports it has seen.
    let mut draw = hash::flow(&settings.hash_key, &scratch.parsed.tuple);
    let port = |_: &Tuple<A>, _| {
        let at = (draw >> 32) * u64::from(size) >> 32;
        draw = draw
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        Be16::new((first + at as u32) as u16)
    };
    ports::enter(path, scratch, now, PROBES, Reason::PortsExhausted, port)
}
