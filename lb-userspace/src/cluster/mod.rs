//! The cluster as a source of facts: watches in, plain snapshots out, no decisions. What to serve is `desired`'s.

mod connect;
pub mod events;
pub mod facts;
mod keeper;
pub mod keys;
mod tell;
#[cfg(test)]
mod tests;
mod trim;
mod watch;

pub use connect::{ConnectError, connect};
pub use keeper::keep;
pub use watch::follow;
