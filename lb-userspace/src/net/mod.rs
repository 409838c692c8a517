//! Facts about this host's network, by netlink: links, addresses, routes, neighbours. Plain values, no decisions.
//!
//! `source` keeps them true (dump, then multicast, a new dump after an overflow); [`path::resolve`] reads them:
//! which way a packet to an address leaves. Only the main routing table is read; policy rules are not.

mod facts;
pub mod path;
mod ports;
mod routes;

pub use facts::{Address, Facts, Link, Neighbour, Update};
pub use path::Path;
pub use ports::LocalPorts;
pub use routes::{Hop, Route, Routes};
