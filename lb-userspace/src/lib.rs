//! The agent and the CLI, in the order of their flow: facts (`config`, `net`, `health`) → `desired` → `plan` →
//! `dataplane` → maps → `observe`. Imports point one way only.

pub mod announce;
pub mod attach;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod dataplane;
pub mod desired;
pub mod doctor;
pub mod health;
pub mod hostile;
pub mod lease;
pub mod memory;
pub mod net;
pub mod notify;
pub mod observe;
pub mod plan;
pub mod privileges;
mod random;
pub mod reconcile;
pub mod state;
pub mod supervise;
pub mod uninstall;
