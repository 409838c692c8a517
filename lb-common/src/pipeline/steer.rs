//! Selection for a packet whose tuple is not simply its own: a first fragment's, or that of the packet that an ICMP error
//! is about. The same tables and the same hash as for whole packets, in two steps.

use super::{FamilyScratch, Path, Step, classify, fragment, parse::Layout, select, tunnel::kind};
use crate::{
    abi::{Mode, Reason},
    packet::Packet,
    tables::{Budget, FamilyTables, Tables},
};

/// Beside the words of [`classify`]: the tuple is known.
pub(crate) const STEER: u64 = 10 << 24;
/// [`Chosen`] is known.
pub(crate) const CHOSEN: u64 = 11 << 24;
/// What was chosen is behind a tunnel.
pub(crate) const SEND: u64 = 18 << 24;

/// The owner of a packet.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct Chosen {
    /// See [`select::owner_of`].
    pub(crate) hash: u64,
    /// Id of the backend.
    pub(crate) id: u32,
    /// What its node is told in a tunnel: a byte as [`super::tunnel::kind`] says.
    pub(crate) kind: u32,
}

impl Chosen {
    /// The backend of a flow that has an entry.
    #[inline(always)]
    pub(crate) const fn of(id: u32) -> Self {
        Self::new(0, id)
    }

    #[inline(always)]
    pub(crate) const fn new(hash: u64, id: u32) -> Self {
        let kind = kind::SENT as u32;
        Self { hash, id, kind }
    }
}

/// Finds the frontend of the tuple and, where no flow entry is to be asked, the owner. `first`: a fragment that is to be
/// remembered, as often as the budget allows.
#[inline(never)]
pub(crate) fn choose<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    first: bool,
) -> u64 {
    scratch.chosen = Chosen::default();
    let claimed = classify::claim(path, scratch);
    if let Err(word) = claimed
        && word != classify::FLOWS
        && word != classify::SHARED
    {
        return word;
    }
    let (settings, frontend) = (path.settings, scratch.frontend.id);
    let (rate, burst) = (settings.fragment_rate, settings.fragment_burst);
    if first && !path.tables.take(Budget::Fragment, rate, burst) {
        return path.end(frontend, Reason::FragmentLimited).pack();
    }
    let service = match claimed {
        Ok(service) => service,
        Err(word) => return word,
    };
    match select::owner_of(path, &scratch.parsed, &service) {
        Ok((id, hash)) => {
            scratch.chosen = Chosen::new(hash, id);
            CHOSEN
        }
        Err(reason) => select::unowned(path, scratch, reason),
    }
}

/// Sends the packet to the backend that was chosen; [`SEND`] where that is behind a tunnel.
#[inline(never)]
pub(crate) fn forward<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let Chosen { hash, id, .. } = scratch.chosen;
    let Some(backend) = path.tables.backend(id) else {
        return path.end(scratch.frontend.id, Reason::Inconsistent).pack();
    };
    path.tables.trace(Step::Backend {
        id,
        mode: backend.mode,
    });
    fragment::keep_addresses(scratch, &backend, id);
    if backend.mode == Mode::Dsr as u8 {
        return SEND;
    }
    select::forward(packet, path, scratch, &backend, id, hash)
}
