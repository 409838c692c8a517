//! The packet path and the contract between kernel and userspace.
//!
//! [`abi`] holds the layouts of every map; [`pipeline`] is the whole packet path, generic over [`packet::Packet`]
//! (frame bytes) and [`tables::Tables`] (map contents). `lb-ebpf` compiles it for the kernel, tests and
//! `millrace explain` compile the same source for the host over [`sim`]. Nothing here knows a clock, a kernel or
//! a cluster.
#![cfg_attr(not(any(test, feature = "sim")), no_std)]

pub mod abi;
pub mod bytes;
pub mod checksum;
pub mod hash;
pub mod packet;
pub mod pipeline;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod tables;
#[cfg(feature = "user")]
mod user;

/// Version of everything in [`abi`]. Part of the pin folder's name: maps of another version are never opened.
pub const ABI_VERSION: u32 = 4;
