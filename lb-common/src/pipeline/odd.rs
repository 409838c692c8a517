//! The path of packets that the first step does not see through: flows, fragments, ICMP, and those that the client is to
//! hear about. Each step is a function of its own in the kernel, called from here, so that their stacks share one place.

use super::{
    FamilyScratch, Path, classify, echo, elsewhere, fragment, icmp, local, mtu, nat, ndp,
    parse::Layout,
    reject, steer,
    tunnel::{self, Envelope},
    unclaimed,
};
use crate::{
    abi::{Frontend, Reason},
    packet::Packet,
    tables::{FamilyTables, Tables},
};

/// What a packet's tuple was read from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its own headers, or those of a fragment that is alone.
    Whole,
    /// Those of a first fragment, which others will follow.
    First,
    /// Its first fragment's.
    Later,
    /// Those of the packet that an ICMP error is about.
    Error,
}

/// Takes a packet from the word of [`classify::family`] to a packed verdict.
#[inline(always)]
pub(crate) fn go_on<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    word: u64,
) -> u64 {
    // In memory, where the verifier does not follow it: paths that differ in it only are one to it then.
    let mut word = word;
    scratch.kind = Kind::Whole as u32;
    if word == classify::FRAGMENT {
        word = fragment::arrive(packet, path, scratch);
        if word == fragment::FOLLOW {
            return fragment::follow(packet, path, scratch);
        }
        scratch.kind = match word {
            fragment::FIRST => Kind::First,
            steer::CHOSEN => Kind::Later,
            _ => Kind::Whole,
        } as u32;
    } else if word == classify::SOLICITATION {
        return ndp::answer(packet, path, &scratch.parsed.link);
    } else if word == classify::ICMP {
        word = icmp::arrive(packet, path, scratch);
        if word == icmp::ECHO {
            return echo::answer(packet, path, scratch);
        }
        scratch.kind = Kind::Error as u32;
    }
    if word == steer::STEER || word == fragment::FIRST {
        word = steer::choose(path, scratch, scratch.kind == Kind::First as u32);
        if word == classify::TUNNEL {
            // Other nodes send whole packets, and hear of no errors.
            return path
                .end(scratch.frontend.id, Reason::TunnelMalformed)
                .pack();
        }
    }
    if scratch.kind == Kind::Error as u32
        && matches!(
            word,
            classify::SHARED | classify::FLOWS | classify::UNCLAIMED
        )
    {
        if word == classify::UNCLAIMED {
            scratch.frontend = Frontend::default();
        }
        word = icmp::find(packet, path, scratch);
        if word == icmp::FOUND {
            word = icmp::translate(packet, path, scratch);
        }
    } else if word == classify::SHARED {
        word = local::forward(packet, path, scratch);
        if word == elsewhere::NEXT {
            word = elsewhere::ask_next(path, scratch);
        }
    }
    if word == steer::CHOSEN {
        word = steer::forward(packet, path, scratch);
    }
    if word == steer::SEND {
        return word;
    }
    if word == classify::FLOWS {
        word = nat::forward(packet, path, scratch);
    } else if word == classify::UNCLAIMED {
        scratch.frontend = Frontend::default();
        word = unclaimed(packet, path, scratch, scratch.kind == Kind::First as u32);
    }
    // Nobody is told about an error (RFC 1122, section 3.2.2) or a later fragment.
    if word == classify::UNANSWERED {
        if scratch.kind == Kind::Error as u32 {
            return path.end(scratch.frontend.id, Reason::IcmpUnmatched).pack();
        }
        return reject::answer(packet, path, scratch);
    }
    finish(packet, path, scratch, word)
}

/// Sends a packet through a tunnel, after [`go_on`] has found that it is to be. Here, and not there, the verifier of old
/// kernels has forgotten by which of many ways the packet came, and reads this once.
#[inline(always)]
pub(crate) fn send<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
) -> u64 {
    let word = tunnel::forward(packet, path, scratch);
    finish(packet, path, scratch, word)
}

/// Tells the client of what does not fit, if anyone may be told, and remembers where a first fragment went.
#[inline(always)]
fn finish<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    word: u64,
) -> u64 {
    if word == classify::TOO_BIG {
        if scratch.kind == Kind::Error as u32 || scratch.kind == Kind::Later as u32 {
            return path.end(scratch.frontend.id, Reason::DoesNotFit).pack();
        }
        return mtu::tell(packet, path, scratch);
    }
    if scratch.kind == Kind::First as u32 {
        fragment::remember(path, scratch, word);
    }
    word
}

/// Takes a packet that came through a tunnel to a backend of this node.
#[inline(always)]
pub(crate) fn arrived<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    envelope: &Envelope,
) -> u64 {
    scratch.kind = Kind::Whole as u32;
    let mut word = tunnel::read(packet, path, scratch);
    let is_error = word == classify::ICMP;
    if word == classify::FRAGMENT {
        word = fragment::arrive(packet, path, scratch);
    } else if is_error {
        word = icmp::arrive(packet, path, scratch);
    }
    let is_first = word == fragment::FIRST;
    word = tunnel::receive(path, scratch, envelope, word);
    if word == fragment::FOLLOW {
        return fragment::follow(packet, path, scratch);
    }
    if word == steer::CHOSEN {
        if is_error {
            word = icmp::find(packet, path, scratch);
            if word == icmp::FOUND {
                word = icmp::translate(packet, path, scratch);
            }
        } else {
            word = local::resume(packet, path, scratch);
            if word == steer::CHOSEN {
                word = local::accept(packet, path, scratch);
            }
        }
    }
    if word == tunnel::UNKNOWN {
        return tunnel::give_back(packet, path, scratch, envelope);
    }
    if word == tunnel::BACK {
        word = local::resume(packet, path, scratch);
        if word == elsewhere::NEXT {
            word = elsewhere::ask_next(path, scratch);
        } else {
            elsewhere::mark_moved(path, scratch, path.tables.now());
        }
        if word == steer::CHOSEN {
            return send(packet, path, scratch);
        }
        return word;
    }
    if is_first {
        fragment::remember(path, scratch, word);
    }
    word
}
