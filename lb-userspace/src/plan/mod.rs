//! Plan: pure. Ids, ordinals, regions and slot tables, and the ordered ops that lead from one state to the next.

pub mod op;
