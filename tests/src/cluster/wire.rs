//! Frames of the client's in shapes that no socket of his sends, as the router would put them onto a node's wire.

use std::net::IpAddr;

use anyhow::{Result, bail};
use etherparse::PacketBuilder;

use super::{Cluster, Datagrams};
use crate::{
    datagrams::{self, Message},
    raw::{self, Tap, Wire},
};

/// Hops that are left behind the router.
const HOPS: u8 = 63;

/// The router's end of a node's wire.
#[derive(Debug)]
pub struct NodeWire {
    wire: Wire,
    /// The router's, and the node's.
    macs: [[u8; 6]; 2],
}

impl Cluster {
    pub fn wire(&self, node: &str) -> Result<NodeWire> {
        let own = raw::mac(&self.router, "lan")?;
        let theirs = raw::mac(&self.place(node)?, "eth0")?;
        Ok(NodeWire {
            wire: Wire::open(&self.router, node)?,
            macs: [raw::mac_bytes(&own)?, raw::mac_bytes(&theirs)?],
        })
    }

    /// Sees what goes over a device of a place.
    pub fn tap(&self, place: &str, device: &str) -> Result<Tap> {
        Tap::open(&self.place(place)?, device)
    }
}

impl NodeWire {
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.wire.send(frame)
    }

    /// A question of `client`'s, who gets the answer.
    pub fn question(&self, client: &Datagrams, question: &str) -> Result<Vec<u8>> {
        let [from, to] = client.ends()?;
        let builder = PacketBuilder::ethernet2(self.macs[0], self.macs[1]);
        let builder = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), HOPS),
            (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), HOPS),
            ends => bail!("{ends:?}"),
        };
        let mut frame = Vec::new();
        let builder = builder.udp(from.port(), to.port());
        builder.write(&mut frame, question.as_bytes())?;
        Ok(frame)
    }

    /// An echo request.
    pub fn ping(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let request = Message {
            kind: if to.is_ipv4() { 8 } else { 128 },
            code: 0,
            word: 0,
        };
        datagrams::icmp(self.macs, [from, to], request, b"ping")
    }
}
