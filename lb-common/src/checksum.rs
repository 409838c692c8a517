//! The Internet checksum: incremental updates (RFC 1624) and sums of fixed headers (RFC 1071). All values are as the
//! CPU loads them from the packet; one's-complement sums do not care about byte order (RFC 1071, section 2 B).

/// A sum of one's-complement words, not yet folded. Also a difference: of `new` against `old` words.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Delta(pub u64);

impl Delta {
    /// Accounts for a 32-bit word that changes (RFC 1624, equation 3).
    #[inline(always)]
    pub const fn replace32(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Accounts for a 16-bit word that changes.
    #[inline(always)]
    pub const fn replace16(self, old: u16, new: u16) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Adds a word to a plain sum.
    #[inline(always)]
    pub const fn add(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Folds to 16 bits. The sum must be below 2^48, which thousands of words are.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff) + ((self.0 >> 16) & 0xffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The checksum of the words added.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// `check` after the changes accounted for.
    #[inline(always)]
    pub const fn patch(self, check: u16) -> u16 {
        !Self(self.0 + !check as u64).fold()
    }
}

/// A TCP or UDP checksum after a change of addresses and ports. A UDP checksum of zero means none and stays so; one that
/// comes out as zero is sent as its other form (RFC 768).
#[inline(always)]
pub const fn patch_l4(check: u16, udp: bool, addresses: Delta, ports: Delta) -> u16 {
    if udp && check == 0 {
        return 0;
    }
    match addresses.plus(ports).patch(check) {
        0 if udp => u16::MAX,
        check => check,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(words: &[u16]) -> u16 {
        Delta(words.iter().map(|&word| u64::from(word)).sum()).checksum()
    }

    proptest! {
        #[test]
        fn patched_checksum_equals_the_full_one(
            mut words in proptest::collection::vec(any::<u16>(), 2..40),
            at in any::<prop::sample::Index>(),
            new in any::<u16>(),
        ) {
            // A header whose words are all zero has no valid patched form (RFC 1624, section 5); IP has none such.
            words.push(0x4500);
            let at = at.index(words.len() - 1);
            let before = full(&words);
            let delta = Delta::default().replace16(words[at], new);
            words[at] = new;
            prop_assert_eq!(delta.patch(before), full(&words));
        }

        #[test]
        fn wide_words_sum_as_their_halves(old in any::<u32>(), new in any::<u32>(), check in any::<u16>()) {
            let wide = Delta::default().replace32(old, new).patch(check);
            let halves = Delta::default()
                .replace16(old as u16, new as u16)
                .replace16((old >> 16) as u16, (new >> 16) as u16)
                .patch(check);
            prop_assert_eq!(wide, halves);
        }
    }
}
