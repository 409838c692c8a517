//! What the agent shows of itself: the admin API on a unix socket (the CLI's other end) and metrics over HTTP.

mod socket;
pub mod view;

pub use socket::{Socket, SocketError};
