//! Slot, owner, backend; and the modes that keep no state.

use super::{
    FamilyScratch, Path, Step, classify, egress, encap, mtu,
    parse::{Layout, Parsed},
};
use crate::{
    abi::{Backend, Mode, NO_OWNER, OWNERS, Reason, Region, Service, owner, service_flag},
    hash,
    packet::Packet,
    tables::{FamilyTables, Tables},
};

/// Ordinals that are asked for a connection when those of its slot do not know it.
const LAST: u32 = 8;

/// The slot of the packet's flow: owners of now and before; and the hash that chose it (0 where there was no choice).
#[inline(always)]
fn slot_of<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    service: &Service,
) -> Result<(u64, u64), Reason> {
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
    Ok((slot, hash))
}

/// Id of the backend that owns the packet's flow, and the flow's hash (0 where the choice needed none).
/// Table, slot, ordinal, member: each step one array look-up.
#[inline(always)]
pub(crate) fn owner_of<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    parsed: &Parsed<A>,
    service: &Service,
) -> Result<(u32, u64), Reason> {
    let (slot, hash) = slot_of(path, parsed, service)?;
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

/// The next after `position`, from 1 on, of those that may know a connection whose packets the table leads elsewhere: its
/// slot's owners before, then whoever the service has. Its position in the high half, its id in the low; 0: there is none.
/// Position 0 is the owner's.
#[inline(never)]
pub(crate) fn next_candidate<A: Layout, T: Tables>(
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
    position: u32,
) -> u64 {
    const OLD: u32 = OWNERS as u32;
    let slot = slot_of(path, &scratch.parsed, &scratch.service);
    // Without a table its owners are among the rest.
    let slot = slot.map_or(u64::MAX, |(slot, _)| slot);
    let members = Region(scratch.service.members);
    let mut at = 1;
    while at < OLD + LAST {
        let (ordinal, again) = if at < OLD {
            (owner(slot, at), false)
        } else {
            let ordinal = (at - OLD) as u16;
            (ordinal, (0..OLD).any(|lane| owner(slot, lane) == ordinal))
        };
        let ordinal = u32::from(ordinal);
        if at > position
            && !again
            && ordinal < members.size()
            && let Some(word) = path.tables.member(members.base().wrapping_add(ordinal))
            && is_behind_tunnel(path, word as u32)
        {
            return u64::from(at) << 32 | u64::from(word as u32);
        }
        at += 1;
    }
    0
}

/// Whether an id is that of a backend behind a tunnel. Nobody has 0.
#[inline(always)]
fn is_behind_tunnel<T: Tables>(path: &Path<'_, T>, id: u32) -> bool {
    let backend = path.tables.backend(id);
    id != 0 && backend.is_some_and(|backend| backend.mode == Mode::Dsr as u8)
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
