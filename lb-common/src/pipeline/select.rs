//! Slot, owner, backend; and the modes that keep no state.

use super::{
    FamilyScratch, Path, Step, classify, egress, encap, mtu,
    parse::{Layout, Parsed},
};
use crate::{
    abi::{Backend, Mode, NO_OWNER, Reason, Region, Service, owner, service_flag},
    hash,
    packet::Packet,
    tables::{FamilyTables, Tables},
};

/// Id of the backend that owns the packet's flow, and the flow's hash (0 where the choice needed none).
/// Table, slot, ordinal, member: each step one array look-up.
#[inline(always)]
pub(crate) fn owner_of<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    service: &Service,
) -> Result<(u32, u64), Reason> {
    let table = Region(service.table);
    if table.is_empty() {
        return Err(if service.flags & service_flag::DROP == 0 {
            Reason::NoBackend
        } else {
            Reason::NoLocalBackend
        });
    }
    let hash = if table.log2() == 0 {
        0
    } else if service.flags & service_flag::AFFINITY != 0 {
        hash::client(&path.settings.hash_key, &parsed.tuple.source)
    } else {
        hash::flow(&path.settings.hash_key, &parsed.tuple)
    };
    let index = hash as u32 & ((1u32 << (table.log2() & 31)) - 1);
    let generation = table.generation();
    path.tables.trace(Step::Slot {
        index,
        log2: table.log2(),
        generation,
        hash,
    });
    let slot = path
        .tables
        .slot(table.base().wrapping_add(index))
        .ok_or(Reason::Inconsistent)?;
    let ordinal = owner(slot, 0);
    path.tables.trace(Step::Owner {
        ordinal,
        chain: slot,
    });
    if ordinal == NO_OWNER {
        return Err(Reason::Inconsistent);
    }
    let members = Region(service.members);
    let at = members.base().wrapping_add(u32::from(ordinal));
    let id = path.tables.member(at).ok_or(Reason::Inconsistent)? as u32;
    let of_flow = service.flags & service_flag::AFFINITY == 0;
    Ok((id, if of_flow { hash } else { 0 }))
}

/// A packet of a service without `nat`: chosen anew each time, by hash.
#[inline(always)]
pub(crate) fn stateless<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    service: &Service,
) -> u64 {
    let (id, hash) = match owner_of(path, &scratch.parsed, service) {
        Ok(selected) => selected,
        Err(reason) => return unowned(path, scratch, reason),
    };
    let Some(backend) = path.tables.backend(id) else {
        return path.end(scratch.frontend.id, Reason::Inconsistent).pack();
    };
    path.tables.trace(Step::Backend {
        id,
        mode: backend.mode,
    });
    forward(packet, path, scratch, &backend, id, hash)
}

/// A service without backends answers its clients (contract A6.1), unless another node has some (A6.2).
#[inline(always)]
pub(crate) fn unowned<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    reason: Reason,
) -> u64 {
    if reason == Reason::NoBackend {
        scratch.refusal = reason as u32;
        return classify::UNANSWERED;
    }
    path.end(scratch.frontend.id, reason).pack()
}

/// Sends a packet to its backend by a mode that leaves it as it is, but not through a tunnel.
#[inline(always)]
pub(crate) fn forward<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    backend: &Backend,
    id: u32,
    hash: u64,
) -> u64 {
    forward_by(packet, path, scratch, backend, id, |packet, scratch| {
        if backend.mode == Mode::Ipip as u8 {
            encap::ipip(packet, path, scratch, backend, hash)
        } else if backend.mode == Mode::L2 as u8 {
            Ok(())
        } else {
            Err(Reason::Inconsistent)
        }
    })
}

/// Sends a packet to its backend after `change`, which knows where it leaves.
#[inline(always)]
pub(crate) fn forward_by<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    backend: &Backend,
    id: u32,
    change: impl FnOnce(&mut P, &FamilyScratch<A>) -> Result<(), Reason>,
) -> u64 {
    let frontend = scratch.frontend.id;
    let bytes = packet.length();
    if let Err(reason) = egress::to_backend(packet, path, scratch, backend) {
        if reason == Reason::HandedUp && mtu::is_too_big_for_tc(path, scratch, backend) {
            return classify::TOO_BIG;
        }
        return path.end(frontend, reason).pack();
    }
    if let Err(reason) = change(packet, scratch) {
        if reason == Reason::TooBig {
            scratch.fits = mtu::within::<A>(scratch.exit.mtu, backend);
            return classify::TOO_BIG;
        }
        return path.end(frontend, reason).pack();
    }
    path.tables
        .count_forwarded(frontend, id, bytes, scratch.parsed.is_syn());
    egress::send(packet, path, scratch).pack()
}
