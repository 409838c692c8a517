//! The cluster as a source of facts: plain snapshots, no decisions. What to serve is `desired`'s.

pub mod facts;
