//! The Service contract: pure. Facts of the cluster in, services as the packet path knows them and what was skipped out.
//!
//! [`Objects`] keeps the facts and says which services a change concerns; [`Objects::service`] builds one of them, at
//! its own cost. A file for each section of the contract; the tests cite its lines.

mod affinity;
mod backends;
mod build;
mod claims;
mod frontends;
mod health;
mod objects;
mod options;
mod peers;
mod ranges;
mod rule;
mod selection;
mod skip;
#[cfg(test)]
mod tests;
mod topology;
mod triggers;
mod tunnels;
mod way;
mod which;

pub use health::{HealthCheck, HealthChecks};
pub use objects::Objects;
pub use options::Options;
pub use rule::{FrontendRules, LeftOut, Origin, Rule};
pub use skip::{Reason, Skip};
pub use triggers::since;
