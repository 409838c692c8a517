//! Announcing VIPs on the LAN: is an address free there, who is told that it is here, and when.
//!
//! Questions for an announced VIP are answered in XDP, agent or not. What the agent does: it asks whether someone else has
//! the address before the program answers for it, tells the neighbours when it does (gratuitous ARP, unsolicited neighbour
//! advertisements), and listens for others that claim it. [`Announcer`] decides, without clock or sockets; [`Packets`]
//! sends and listens.

mod announcer;
mod frames;
mod packets;
#[cfg(test)]
mod tests;
mod wanted;

pub use self::{
    announcer::{Announcer, Claim, Seat, Send, Stage, What},
    frames::group_mac,
    packets::{Listener, Packets},
    wanted::{Wanted, wanted},
};
