//! Harness of the test suites and of the demo: namespaces, the network in them, real servers and clients, and the
//! balancer under test.

pub mod balancer;
pub mod bench;
pub mod both;
pub mod clients;
pub mod cluster;
pub mod datagrams;
pub mod demo;
pub mod director;
pub mod far;
pub mod frames;
pub mod host;
pub mod hostile;
pub mod kernel;
pub mod leftovers;
pub mod login;
pub mod neighbours;
pub mod netns;
pub mod node;
pub mod pass;
pub mod place;
pub mod raw;
pub mod sandbox;
pub mod servers;
pub mod stage;
pub mod topology;
pub mod verified;
pub mod world;

/// Whether namespaces and BPF programs can be made here; says what is missing otherwise.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: root");
    }
    root
}
