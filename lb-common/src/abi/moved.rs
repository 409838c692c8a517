//! Connections that are not where the table leads, or may not be: the filter that tells them from the rest, which go without
//! a flow entry.

/// Words of `MOVED`, the filter's: 2^17 bits.
pub const MOVED_WORDS: u32 = 4096;

/// Log2 of the jiffies after which what is noted begins to be forgotten: 66 s at 1000 Hz, 655 s at 100 Hz.
const AGE: u32 = 16;

/// An element of `MOVED`: 32 bits, and in which age the last one of them was set. A bit lives as long as its word is written,
/// and one age more at least. Who is forgotten is asked for once more, and noted again.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Moved(pub u64);

impl Moved {
    /// Word and bit of a flow, by bits of its hash that do not choose its slot.
    #[inline(always)]
    pub const fn place(hash: u64) -> (u32, u32) {
        (
            (hash >> 32) as u32 & (MOVED_WORDS - 1),
            (hash >> 44) as u32 & 31,
        )
    }

    /// Whether the bit is set. `now`: gives jiffies, low 32 bits.
    #[inline(always)]
    pub fn has(self, bit: u32, now: impl FnOnce() -> u32) -> bool {
        self.0 >> bit & 1 != 0 && self.is_young(now())
    }

    /// With the bit set.
    #[inline(always)]
    pub const fn with(self, bit: u32, now: u32) -> Self {
        let kept = if self.is_young(now) { self.0 as u32 } else { 0 };
        Self((kept | 1 << bit) as u64 | ((now >> AGE) as u64) << 32)
    }

    #[inline(always)]
    const fn is_young(self, now: u32) -> bool {
        let age = (now >> AGE) as u16;
        age.wrapping_sub((self.0 >> 32) as u16) <= 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_is_forgotten_when_its_word_was_not_written_for_two_ages() {
        let age = 1 << AGE;
        let word = Moved::default().with(31, age).with(3, age);
        assert_eq!(
            [31, 3, 4].map(|bit| word.has(bit, || age)),
            [true, true, false]
        );
        assert!(word.has(3, || 3 * age - 1));
        assert!(!word.has(3, || 3 * age));
        let later = word.with(4, 2 * age);
        assert_eq!([31, 3, 4].map(|bit| later.has(bit, || 3 * age)), [true; 3]);
        let anew = word.with(4, 3 * age);
        assert_eq!(
            [31, 3, 4].map(|bit| anew.has(bit, || 3 * age)),
            [false, false, true]
        );
        // Jiffies come round.
        let word = Moved::default().with(0, u32::MAX);
        assert!(word.has(0, || 0));
        assert!(!word.has(0, || age));
    }

    #[test]
    fn every_word_and_bit_is_some_flows() {
        assert_eq!(Moved::place(u64::MAX), (MOVED_WORDS - 1, 31));
        assert_eq!(Moved::place(u64::from(u32::MAX)), (0, 0));
    }
}
