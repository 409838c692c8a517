//! Plan: pure. Ids, ordinals, regions and slot tables, and the ordered ops that lead from one state to the next.

pub mod dump;
pub mod limits;
pub mod op;
pub mod table;

pub use dump::{Dump, DumpedService};
pub use limits::Limits;
pub use op::Op;
