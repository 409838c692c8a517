//! Facts about this host's network, by netlink: links, addresses, routes, neighbours. Plain values, no decisions.
//!
//! [`follow`] keeps them true (dump, then multicast, a new dump after an overflow); [`path::resolve`] reads them:
//! which way a packet to an address leaves. Only the main routing table is read; policy rules are not.

pub mod drivers;
pub mod ethtool;
mod facts;
mod interfaces;
mod masquerade;
pub(crate) mod messages;
pub mod path;
mod poke;
mod ports;
mod routes;
#[cfg(test)]
pub(crate) mod sample;
mod segments;
mod source;

pub use facts::{Address, Facts, Link, Neighbour, Update, Vlan};
pub use interfaces::{driver, interfaces, xdp_send};
pub use masquerade::{Masquerade, masquerades};
pub use messages::{Sending, XdpSend};
pub use path::Path;
pub use poke::Pokes;
pub use ports::LocalPorts;
pub use routes::{Hop, Route, Routes};
pub use segments::Segments;
pub use source::{SourceError, follow, snapshot};
