//! Hostile input: each target is a function over bytes that panics where something is wrong. The fuzzer (`tests/fuzz`)
//! looks for such bytes; `tests/hostile.rs` runs what it has found, and seeds, as plain tests.

mod config;
mod frames;
mod input;
mod netlink;
mod requests;
mod sound;

/// What takes hostile bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The host's build of the packet path, over tables that may be garbage.
    Frames,
    /// The config file, and what follows from a good one.
    Config,
    /// The admin socket.
    Requests,
    /// The kernel's answers and news about the network.
    Netlink,
}

impl Target {
    pub const ALL: [Self; 4] = [Self::Frames, Self::Config, Self::Requests, Self::Netlink];

    /// Name of its folder in the corpus, and of its fuzzer.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Config => "config",
            Self::Requests => "requests",
            Self::Netlink => "netlink",
        }
    }

    /// Takes in the bytes.
    ///
    /// # Panics
    /// Something is wrong.
    pub fn run(self, bytes: &[u8]) {
        match self {
            Self::Frames => frames::run(bytes),
            Self::Config => config::run(bytes),
            Self::Requests => requests::run(bytes),
            Self::Netlink => netlink::run(bytes),
        }
    }
}
