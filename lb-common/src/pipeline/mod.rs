//! The packet path: frame bytes and tables in, verdict and frame bytes out.
//!
//! parse → not ours: leave at once → frontend → source ranges → flow (`nat`, `local`) → slot → owner → backend → mode →
//! next hop → verdict. Fragments and ICMP leave this path in [`classify`] and take the one of [`odd`], which comes back to it
//! where it can. Replies of backends of this node are met on their way out, in [`leaving`].

mod arp;
mod classify;
mod echo;
mod egress;
mod elsewhere;
mod encap;
mod flows;
mod fragment;
mod header;
mod icmp;
mod leaving;
mod local;
mod mss;
mod mtu;
mod nat;
mod ndp;
mod odd;
mod parse;
mod ports;
pub mod probe;
mod reject;
mod rewrite;
mod scratch;
mod select;
mod steer;
mod step;
mod tags;
mod tunnel;

pub use leaving::egress_reply;
use parse::Layout;
pub use parse::{Link, Parsed, tcp_flag};
pub use scratch::{FamilyScratch, Scratch};
pub use step::Step;
pub use tunnel::room as tunnel_room;

use crate::{
    abi::{AnnouncedKey, Frontend, Reason, Settings},
    bytes::{Address, Be16, Macs, V4, V6},
    packet::Packet,
    tables::{Budget, FamilyTables, Home, Tables},
};

/// What becomes of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not for us: to the stack, uncounted.
    NotOurs,
    /// To the stack, unchanged, for a reason.
    Pass(Reason),
    Drop(Reason),
    /// Out by the interface it came in by.
    Transmit,
    /// Out by another interface.
    Redirect {
        ifindex: u32,
    },
    /// Out by `ifindex` after the stack has resolved the gateway told to [`Tables::resolve`]; only the tc home can.
    Neighbour {
        ifindex: u32,
    },
    /// On through the stack, with other ends: to a backend of this node, or from one to its client.
    Rewritten,
}

impl Verdict {
    /// As one word, functions of the BPF target return no more: the kind in the low half (0 not ours, 1 pass, 2 drop,
    /// 3 transmit, 4 redirect, 5 neighbour, 6 rewritten), the reason or interface in the high half.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        match self {
            Self::NotOurs => 0,
            Self::Pass(reason) => 1 | (reason as u64) << 32,
            Self::Drop(reason) => 2 | (reason as u64) << 32,
            Self::Transmit => 3,
            Self::Redirect { ifindex } => 4 | (ifindex as u64) << 32,
            Self::Neighbour { ifindex } => 5 | (ifindex as u64) << 32,
            Self::Rewritten => 6,
        }
    }

    /// The verdict of [`Self::pack`].
    #[inline(always)]
    pub(crate) fn unpack(word: u64) -> Self {
        let rest = (word >> 32) as u32;
        match word as u32 {
            0 => Self::NotOurs,
            1 => Self::Pass(Reason::from_number(rest)),
            2 => Self::Drop(Reason::from_number(rest)),
            3 => Self::Transmit,
            4 => Self::Redirect { ifindex: rest },
            5 => Self::Neighbour { ifindex: rest },
            _ => Self::Rewritten,
        }
    }
}

/// What [`Path::asked`] says: the MAC in the first six bytes, and bits behind it.
const MAC: u64 = 0xffff_ffff_ffff;
const ASKED: u64 = 1 << 48;
const GRANTED: u64 = 1 << 49;
const NOT_ANNOUNCED: u64 = 0;

/// What a decision needs beside the packet.
pub(crate) struct Path<'a, T> {
    pub(crate) tables: &'a T,
    pub(crate) settings: &'a Settings,
}

impl<T: Tables> Path<'_, T> {
    /// Ends with a counted reason.
    #[inline(always)]
    pub(crate) fn end(&self, frontend: u32, reason: Reason) -> Verdict {
        self.tables.count_reason(frontend, reason);
        if reason.passes() {
            Verdict::Pass(reason)
        } else {
            Verdict::Drop(reason)
        }
    }

    /// Whether a backend may answer to this port.
    #[inline(always)]
    pub(crate) fn is_nat_port(&self, port: Be16) -> bool {
        let (port, ports) = (u32::from(port.to_host()), self.settings.nat_ports);
        ports != 0 && port >= ports & 0xffff && port <= ports >> 16
    }
}

impl<T: Tables> Path<'_, T> {
    /// Whether the budget of replies of our own has one left.
    #[inline(always)]
    fn granted(&self) -> bool {
        let Settings {
            reject_rate,
            reject_burst,
            ..
        } = *self.settings;
        self.tables.take(Budget::Reject, reject_rate, reject_burst)
    }

    /// A neighbour's question, `valid` or not, for an address: the MAC to answer with and [`GRANTED`] if it may be answered,
    /// or [`NOT_ANNOUNCED`]. One word, for the verifier's sake.
    #[inline(always)]
    fn asked<A: Address>(&self, key: &AnnouncedKey<A>, macs: &Macs, valid: bool) -> u64
    where
        T: FamilyTables<A>,
    {
        let asked = self.tables.with_announced(key, |entry| {
            if !macs.reach(entry.mac) {
                return NOT_ANNOUNCED;
            }
            let mut asked = entry.mac & MAC | ASKED;
            if valid {
                entry.requests += 1;
                if self.granted() {
                    entry.responses += 1;
                    asked |= GRANTED;
                }
            }
            asked
        });
        match asked {
            Some(asked) => asked,
            None => NOT_ANNOUNCED,
        }
    }

    /// Ends with the answer to a neighbour's question, if it could be written.
    #[inline(always)]
    fn answered(&self, written: bool) -> Verdict {
        if !written {
            return self.end(0, Reason::NoHeadroom);
        }
        self.tables.count_reason(0, Reason::Neighbour);
        Verdict::Transmit
    }
}

/// The whole path of one packet, for the host. The kernel's verifier reads it in two programs, [`begin`] and [`arrive`].
pub fn process<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    scratch: &mut Scratch,
) -> Verdict {
    begin(packet, tables, settings, scratch)
        .unwrap_or_else(|| arrive(packet, tables, settings, scratch))
}

/// The path of a packet as it came in. None: it came through a tunnel, and goes on in [`arrive`] with the same scratch.
#[inline(always)]
pub fn begin<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    scratch: &mut Scratch,
) -> Option<Verdict> {
    if settings.passes_all(|| tables.jiffies()) {
        return Some(Verdict::NotOurs);
    }
    let path = Path { tables, settings };
    let Some(link) = parse::link(packet) else {
        return Some(Verdict::NotOurs);
    };
    let word = match link.ether_type {
        parse::IPV4 => by_family::<V4, _, _>(packet, &path, &mut scratch.v4, link),
        parse::IPV6 => by_family::<V6, _, _>(packet, &path, &mut scratch.v6, link),
        parse::ARP => {
            // Not by the address of a local: it would lie on the stack in parts, and every other packet's copy of it
            // wait for them, 5 ns.
            scratch.v4.parsed.link = link;
            arp::answer(packet, &path, &scratch.v4.parsed.link)
        }
        _ => return Some(Verdict::NotOurs),
    };
    if word == classify::TUNNEL {
        // Tunnels end in the driver.
        let is_driver = tables.home() != Home::Tc;
        return (!is_driver).then_some(Verdict::NotOurs);
    }
    Some(Verdict::unpack(word))
}

/// The path of a packet out of a tunnel.
#[inline(always)]
pub fn arrive<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    scratch: &mut Scratch,
) -> Verdict {
    let path = Path { tables, settings };
    let envelope = &mut scratch.envelope;
    let outer = parse::link(packet).map(|link| link.ether_type);
    let word = if outer == Some(parse::IPV4) {
        tunnel::open(packet, &path, &scratch.v4, envelope)
    } else {
        tunnel::open(packet, &path, &scratch.v6, envelope)
    };
    Verdict::unpack(if word != classify::ARRIVED {
        word
    } else if envelope.ether_type == parse::IPV4 {
        odd::arrived(packet, &path, &mut scratch.v4, envelope)
    } else {
        odd::arrived(packet, &path, &mut scratch.v6, envelope)
    })
}

/// The rest of the path, in steps that are functions of their own in the kernel: called one after the other, not one
/// from the other, their stacks share the same 512 bytes.
#[inline(always)]
fn by_family<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    link: Link,
) -> u64 {
    scratch.parsed.link = link;
    let mut word = classify::family(packet, path, scratch);
    if classify::goes_on(word) && word != classify::TUNNEL {
        word = odd::go_on(packet, path, scratch, word);
    }
    if word == steer::SEND {
        word = odd::send(packet, path, scratch);
    }
    word
}

/// A TCP or UDP packet to an address that may be ours, on no frontend's port: a reply to a flow of ours, a VIP's unknown
/// port, or nobody's. `first`: the first of its fragments.
#[inline(always)]
fn unclaimed<A: Layout, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &mut FamilyScratch<A>,
    first: bool,
) -> u64 {
    let in_range = path.is_nat_port(scratch.parsed.tuple.destination_port);
    if in_range {
        let mut word = egress::OK;
        if first {
            word = fragment::admit_reply(path, scratch);
        }
        if word == egress::OK {
            word = flows::reply(packet, path, scratch);
        }
        if word != Verdict::NotOurs.pack() {
            return word;
        }
    }
    if classify::is_vip(path, scratch.parsed.tuple.destination) {
        scratch.frontend = Frontend::default();
        scratch.refusal = Reason::UnknownPort as u32;
        return classify::UNANSWERED;
    }
    if in_range {
        return path.end(0, Reason::NoFlow).pack();
    }
    Verdict::NotOurs.pack()
}
