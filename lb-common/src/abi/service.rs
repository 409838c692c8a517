//! Services and their slot tables.
//!
//! `SERVICES`, `SLOTS` and `MEMBERS` are plain arrays that the agent writes through mmap, word by word: each word
//! is loaded once per packet and is whole. A new table goes live by one store of [`Service::table`]; its old region
//! is reused only after an RCU grace period. Members go live before a table that names them and leave after it.

/// Element of `SERVICES`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C, align(8))]
pub struct Service {
    /// [`Region`] of `SLOTS`; [`Region::EMPTY`]: no usable backend, so new flows are rejected.
    pub table: u64,
    /// [`Region`] of `MEMBERS`: ordinal `o` is at `base + o`.
    pub members: u64,
    /// Bits of [`service_flag`].
    pub flags: u64,
    pub reserved: u64,
}

/// Bits of [`Service::flags`].
pub mod service_flag {
    /// The index is in use.
    pub const LIVE: u64 = 1;
    /// Some backend is reached by a mode that remembers flows: look the flow up before choosing.
    pub const FLOWS: u64 = 1 << 1;
    /// `clientIP` affinity: the client's address alone is hashed (contract A8.4).
    pub const AFFINITY: u64 = 1 << 2;
    /// Only clients in `SOURCES4` and `SOURCES6` are allowed (contract A9.1).
    pub const SOURCE_RANGES: u64 = 1 << 3;
    /// kube-proxy serves it as well: a TCP connection that began without us goes on without us, if [`FLOWS`] is set, too.
    /// UDP flows are always looked up.
    pub const SHARED: u64 = 1 << 4;
    /// New flows are dropped while no backend is usable: other nodes have some (contract A6.2).
    pub const DROP: u64 = 1 << 5;
    /// It is this node's end of the tunnels: its frontends are own addresses, its source ranges are the other nodes'.
    pub const TUNNEL: u64 = 1 << 6;
    /// Some backend may be behind a tunnel: TCP connections that go on go by the table, [`crate::abi::Moved`] ones by their entries.
    pub const DSR: u64 = 1 << 7;
}

/// A power-of-two run of array elements in one word: base (32 bits), log2 of the size (8), generation (24).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region(pub u64);

impl Region {
    /// No elements at all. A zeroed service is empty.
    pub const EMPTY: Self = Self(0);

    /// `log2` ≤ 31; `generation` counts publications modulo 2^24.
    #[inline(always)]
    pub const fn new(base: u32, log2: u8, generation: u32) -> Self {
        // The size is stored plus one, so that zero means empty.
        Self(base as u64 | ((log2 as u64 + 1) << 32) | (((generation & 0xff_ffff) as u64) << 40))
    }

    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        (self.0 >> 32) & 0xff == 0
    }

    #[inline(always)]
    pub const fn base(self) -> u32 {
        self.0 as u32
    }

    /// Log2 of the number of elements, of a region that is not empty. Above 31 in a word that no agent wrote.
    #[inline(always)]
    pub const fn log2(self) -> u8 {
        ((self.0 >> 32) as u8).wrapping_sub(1)
    }

    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 40) as u32
    }

    /// Number of elements. For a word that no agent wrote, more than any map holds.
    #[inline(always)]
    pub const fn size(self) -> u32 {
        if self.is_empty() {
            return 0;
        }
        match 1u32.checked_shl(self.log2() as u32) {
            Some(size) => size,
            None => u32::MAX,
        }
    }
}

/// Owners in a slot's chain: current, previous, older, oldest.
pub const OWNERS: usize = 4;

/// Ordinal that stands for "none" in a chain.
pub const NO_OWNER: u16 = u16::MAX;

/// The element of `SLOTS` for a chain of ordinals, the current owner first.
pub const fn slot_of(chain: [u16; OWNERS]) -> u64 {
    chain[0] as u64 | (chain[1] as u64) << 16 | (chain[2] as u64) << 32 | (chain[3] as u64) << 48
}

/// The `position`-th owner (0 = current) in a slot.
#[inline(always)]
pub const fn owner(slot: u64, position: u32) -> u16 {
    (slot >> (16 * (position & 3))) as u16
}

const _: () = assert!(size_of::<Service>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_pack_into_one_word() {
        let region = Region::new(0xdead_beef, 16, 0xff_ffff);
        assert_eq!(
            (region.base(), region.log2(), region.generation()),
            (0xdead_beef, 16, 0xff_ffff)
        );
        assert_eq!(region.size(), 65_536);
        assert!(!Region::new(0, 0, 0).is_empty());
        assert_eq!(Region::new(0, 0, 0).size(), 1);
        assert!(Region::EMPTY.is_empty());
    }

    #[test]
    fn a_word_that_no_agent_wrote_is_larger_than_any_map() {
        for log2 in 32..=254u64 {
            let region = Region((log2 + 1) << 32);
            assert_eq!((u64::from(region.log2()), region.size()), (log2, u32::MAX));
        }
        assert_eq!(Region(u64::MAX).size(), u32::MAX);
        assert_eq!(Region(32 << 32).size(), 1 << 31);
    }

    #[test]
    fn slots_hold_a_chain_of_four() {
        let slot = slot_of([1, 2, NO_OWNER, 4]);
        assert_eq!([0, 1, 2, 3].map(|at| owner(slot, at)), [1, 2, NO_OWNER, 4]);
    }
}
