//! Harness of the test suites and of the demo: namespaces, the network in them, real servers and clients, and the
//! balancer under test.

pub mod clients;
pub mod netns;
pub mod servers;
pub mod topology;
