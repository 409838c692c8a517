//! Slot, owner, backend; and the modes that keep no state.

use super::{
    Path, Step, Verdict, egress, encap,
    parse::{Layout, Parsed},
    reject,
};
use crate::{
    abi::{Backend, Frontend, Mode, NO_OWNER, Reason, Region, Service, owner, service_flag},
    hash,
    packet::Packet,
    tables::{FamilyTables, Tables},
};

/// The backend that owns a flow.
pub(crate) struct Selected {
    pub(crate) id: u32,
    pub(crate) backend: Backend,
    /// Hash of the flow, or of the client; 0 where a single slot needs none.
    pub(crate) hash: u64,
}

/// Table, slot, ordinal, member, backend: each step one array look-up.
#[inline(always)]
pub(crate) fn owner_of<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    service: &Service,
) -> Result<Selected, Reason> {
    let table = Region(service.table);
    if table.is_empty() {
        return Err(Reason::NoBackend);
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
    let backend = path.tables.backend(id).ok_or(Reason::Inconsistent)?;
    path.tables.trace(Step::Backend {
        id,
        mode: backend.mode,
    });
    Ok(Selected { id, backend, hash })
}

/// A packet of a service without `nat`: chosen anew each time, by hash.
#[inline(always)]
pub(crate) fn stateless<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    frontend: Frontend,
    service: &Service,
) -> Verdict {
    match owner_of(path, parsed, service) {
        Ok(selected) => forward(packet, path, parsed, frontend, &selected),
        Err(Reason::NoBackend) => Verdict::unpack(reject::answer(
            packet,
            path,
            parsed,
            frontend.id,
            Reason::NoBackend,
        )),
        Err(reason) => path.end(frontend.id, reason),
    }
}

/// Sends a packet to its backend by a mode without state.
#[inline(always)]
pub(crate) fn forward<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    frontend: Frontend,
    selected: &Selected,
) -> Verdict {
    let bytes = packet.length();
    let exit = match egress::to_backend(packet, path, parsed, &selected.backend) {
        Ok(exit) => exit,
        Err(reason) => return path.end(frontend.id, reason),
    };
    let outcome = if selected.backend.mode == Mode::Ipip as u8 {
        encap::ipip(packet, path, parsed, selected, &exit)
    } else if selected.backend.mode == Mode::L2 as u8 {
        Ok(())
    } else {
        Err(Reason::Inconsistent)
    };
    if let Err(reason) = outcome {
        return path.end(frontend.id, reason);
    }
    path.tables
        .count_forwarded(frontend.id, selected.id, bytes, parsed.is_syn());
    egress::send(packet, path, &exit)
}
