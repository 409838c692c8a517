//! Who has a port at a backend: two flows with one tuple there would be one connection.

use super::{
    FamilyScratch, Path, egress,
    parse::{Layout, Parsed},
};
use crate::{
    abi::{Flow, Reason, Tuple},
    bytes::Be16,
    tables::{FamilyTables, FlowTable, Tables},
};

/// Seconds after which the port of a half-open flow may go to another.
const HALF_OPEN_SECONDS: u32 = 30;

/// Seconds that the port of a closed flow rests: Linux's TIME-WAIT, in which the backend answers another client's SYN
/// from the same port with an ACK, and the client loses a second.
const REST_SECONDS: u32 = 60;

/// Who holds a port.
enum Claim {
    /// We do, for this flow.
    Held(FlowTable),
    /// A flow that closed so short ago that its backend may be in TIME-WAIT.
    Resting,
    Taken,
    Full,
}

/// Enters the flow of `scratch.flow` and `scratch.opposite` under the first of `tries` ports that it can have at the
/// backend. [`egress::OK`], `none` where it can have none of them, or another reason.
///
/// What a try leaves to the next is in memory: in registers the verifier would follow each of its values through all
/// tries that are left, a quarter of all that it reads.
#[inline(always)]
pub(crate) fn enter<A: Layout, T: Tables + FamilyTables<A>>(
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    now: u32,
    tries: u32,
    none: Reason,
    mut port: impl FnMut(&Tuple<A>, u32) -> Be16,
) -> u64 {
    let (parsed, tables) = (&scratch.parsed, path.tables);
    // A port in TIME-WAIT, if there is one.
    scratch.flow.source_port = Be16::new(0);
    let mut probe = 0;
    while probe < tries {
        let port = port(&parsed.tuple, probe);
        scratch.key.destination_port = port;
        match claim(path, parsed, &scratch.key, &scratch.opposite, now) {
            Claim::Held(table) => {
                scratch.flow.source_port = port;
                return if tables.insert_flow(table, &parsed.tuple, &scratch.flow, false) {
                    egress::OK
                } else {
                    Reason::FlowTableFull as u64
                };
            }
            Claim::Resting => scratch.flow.source_port = port,
            Claim::Taken => {}
            Claim::Full => return Reason::FlowTableFull as u64,
        }
        probe += 1;
    }
    // Better such a port than none.
    let port = scratch.flow.source_port;
    if port == Be16::new(0) {
        return none as u64;
    }
    scratch.key.destination_port = port;
    let table = FlowTable::HalfOpen;
    FamilyTables::<A>::remove_flow(tables, FlowTable::Established, &scratch.key);
    if tables.insert_flow(table, &scratch.key, &scratch.opposite, false)
        && tables.insert_flow(table, &parsed.tuple, &scratch.flow, false)
    {
        egress::OK
    } else {
        Reason::FlowTableFull as u64
    }
}

/// Takes the port that `key` stands for, if it is free, ours already, or a flow's that is long dead.
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
    let rested = path.settings.hz * REST_SECONDS;
    if let Some((ours, dead, idle)) = tables.with_flow(FlowTable::Established, key, holder) {
        if ours && !parsed.is_syn() {
            return Claim::Held(FlowTable::Established);
        }
        if !ours && !dead {
            return Claim::Taken;
        }
        if !ours && idle <= rested {
            return Claim::Resting;
        }
        tables.remove_flow(FlowTable::Established, key);
    }
    if tables.insert_flow(FlowTable::HalfOpen, key, reply, true) {
        return Claim::Held(FlowTable::HalfOpen);
    }
    match tables.with_flow(FlowTable::HalfOpen, key, holder) {
        Some((ours, dead, idle)) => {
            if !ours && dead && idle <= rested {
                return Claim::Resting;
            }
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
