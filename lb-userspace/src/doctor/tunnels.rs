//! Checks of the tunnels between nodes: whether the programs of the others answer, and how large packets come through.

mod probe;
mod search;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, path::Path, time::Duration};

use futures::{StreamExt as _, stream};
use lb_common::pipeline::tunnel_room;

use super::Line;
use crate::{
    attach,
    dataplane::{self, Bpf},
};

/// A client's full-size packet, as it is on nearly all ways from elsewhere.
const FULL: u32 = 1500;

/// The largest packet that is tried: a jumbo frame's.
const LARGEST: u32 = 9216;

/// Nodes that are asked at once.
const AT_ONCE: usize = 256;

/// This node's tunnels, and what was seen of the ways to the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tunnels {
    pub(super) port: u16,
    /// Bytes of the largest packet that this node's uplinks carry.
    pub(super) mtu: u32,
    pub(super) ways: Vec<Way>,
}

/// From an address of this node to one of another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Way {
    pub(super) own: IpAddr,
    pub(super) other: IpAddr,
    /// New flows of clients go there.
    pub(super) is_used: bool,
    pub(super) met: Met,
}

/// What became of probes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Met {
    /// The program there answered. `most`: bytes of the largest packet that came through to it.
    Answer {
        after: Duration,
        most: u32,
    },
    /// The other node's stack says that nobody takes them.
    Refusal,
    Silence,
    /// They cannot be sent, or somebody on the way sends them back: why.
    Fault(String),
}

impl Tunnels {
    /// Asks the other nodes, if any of our maps are pinned and this node has tunnels by them. With all nodes silent it takes
    /// a second, two where packets get lost by their size.
    pub async fn probe(pin_root: &Path) -> Option<Self> {
        let seen = attach::look(pin_root).ok()??;
        let maps = Bpf::open(&seen.maps).ok()?.tunnels().ok()??;
        let (port, mtu) = (maps.port, maps.mtu.min(LARGEST));
        let asked = ends(&maps).into_iter().map(|[own, other]| {
            let is_used = maps.used.contains_key(&other);
            let spared = maps.nat_ports.clone();
            async move {
                let met = probe::ask([own, other], port, spared, mtu).await;
                Way {
                    own,
                    other,
                    is_used,
                    met,
                }
            }
        });
        let ways = stream::iter(asked).buffered(AT_ONCE).collect().await;
        Some(Self { port, mtu, ways })
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        let ways = self.ways.iter().map(|way| self.way(way));
        ways.chain(self.room()).collect()
    }

    fn way(&self, way: &Way) -> Line {
        let name = format!("tunnel to {}", way.other);
        let port = self.port;
        let open = format!("open UDP {port} between {} and {}", way.own, way.other);
        match (&way.met, way.is_used) {
            (Met::Answer { after, .. }, _) => {
                let milliseconds = after.as_secs_f64() * 1000.0;
                Line::ok(&name, format!("answered in {milliseconds:.1} ms"))
            }
            (Met::Refusal, false) => Line::ok(
                &name,
                "no program of ours takes packets there, and none are sent there",
            ),
            (Met::Refusal, true) => Line::unfit(
                &name,
                format!("nobody takes packets at UDP {port} there: those of clients are lost"),
                "look at `millrace status` there: is an uplink missing, or bypass on?",
            ),
            (Met::Silence, true) => Line::unfit(
                &name,
                "no answer: packets of clients get lost on the way there, or those of that node on the way here",
                open,
            ),
            (Met::Silence, false) => Line::limit(
                &name,
                "no answer, and no packets of clients are sent there yet",
                format!("{open}, or start an agent there"),
            ),
            (Met::Fault(why), true) => Line::unfit(&name, why, open),
            (Met::Fault(why), false) => Line::limit(&name, why, open),
        }
    }

    /// How large packets may be: of the ways that carry least, and need most for what they carry, the first.
    fn room(&self) -> Option<Line> {
        const NAME: &str = "tunnel room";
        let answered = self.ways.iter().filter_map(|way| match way.met {
            Met::Answer { most, .. } => Some((most, needed(way), way.other)),
            _ => None,
        });
        let (most, needed, other) =
            answered.min_by_key(|(most, needed, _)| i64::from(*most) - i64::from(*needed))?;
        let mtu = self.mtu;
        if mtu == 0 {
            return None;
        }
        Some(if most < mtu {
            let found = format!(
                "packets of up to {most} bytes come through to {other}; this node's uplinks send {mtu}, and larger ones get lost unseen"
            );
            let fix = format!(
                "let what lies between the nodes carry {} bytes, or set the MTU of the nodes' uplinks to {most}",
                needed.max(mtu)
            );
            if most < needed {
                Line::unfit(NAME, found, fix)
            } else {
                Line::limit(NAME, found, fix)
            }
        } else if most < needed {
            Line::limit(
                NAME,
                format!(
                    "packets of up to {most} bytes come through, and a client's {FULL} take {needed} in a tunnel: its TCP is told to send less, its full-size datagrams are answered by ICMP, its full-size fragments are dropped"
                ),
                format!("an MTU of {needed} on the nodes' uplinks and between them"),
            )
        } else {
            Line::ok(
                NAME,
                format!(
                    "packets of up to {most} bytes come through; a client's {FULL} take {needed} in a tunnel"
                ),
            )
        })
    }
}

/// Own and other address of each way that can be asked.
fn ends(maps: &dataplane::Tunnels) -> Vec<[IpAddr; 2]> {
    let own = |other: &IpAddr| {
        let used = maps.used.get(other);
        let mut own = maps.own.iter();
        used.or_else(|| own.find(|own| own.is_ipv4() == other.is_ipv4()))
            .copied()
    };
    let others = maps.others.iter();
    others
        .filter_map(|other| Some([own(other)?, *other]))
        .collect()
}

/// Bytes of a client's full-size packet in the tunnel, IPv6 or not.
const fn needed(way: &Way) -> u32 {
    FULL + tunnel_room(way.other.is_ipv4(), false)
}
