//! How large packets come through, found by trying several sizes at once.

use std::collections::BTreeSet;

/// Sizes of one round: few enough for the smallest budget of answers, and four rounds find one of 1500.
const AT_ONCE: u32 = 7;

/// What is known so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Search {
    /// The largest size that came through.
    pub(super) fits: u32,
    /// The smallest above that did not.
    too_large: u32,
}

impl Search {
    pub(super) const fn new(fits: u32, too_large: u32) -> Self {
        Self { fits, too_large }
    }

    /// Sizes to try next; none when it is found.
    pub(super) fn sizes(self) -> BTreeSet<u32> {
        let between = self.too_large.saturating_sub(self.fits);
        let at = |number: u32| self.fits + between * number / (AT_ONCE + 1);
        let sizes = (1..=AT_ONCE).map(at);
        sizes
            .filter(|size| (self.fits + 1..self.too_large).contains(size))
            .collect()
    }

    /// Takes which of the sizes tried came through. A smaller one that did not was lost by chance.
    pub(super) fn learn(&mut self, tried: &BTreeSet<u32>, came: &BTreeSet<u32>) {
        self.fits = came.last().copied().unwrap_or(0).max(self.fits);
        let lost = tried.difference(came).find(|size| **size > self.fits);
        self.too_large = lost.copied().unwrap_or(self.too_large);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found where `limit` bytes come through, and by how many rounds.
    fn found(limit: u32, mut search: Search, lose: impl Fn(u32) -> bool) -> (u32, usize) {
        for round in 0.. {
            let tried = search.sizes();
            if tried.is_empty() {
                return (search.fits, round);
            }
            assert!(tried.len() <= AT_ONCE as usize);
            let came = tried.iter().copied();
            let came = came.filter(|size| *size <= limit && !lose(*size)).collect();
            search.learn(&tried, &came);
        }
        unreachable!("endless")
    }

    #[test]
    fn every_limit_is_found_in_a_few_rounds() {
        for limit in 52..1500 {
            let (size, rounds) = found(limit, Search::new(52, 1500), |_| false);
            assert_eq!(size, limit);
            assert!(rounds <= 4, "{limit}: {rounds}");
        }
        for limit in [52, 1280, 1500, 8999, 9215] {
            let (size, rounds) = found(limit, Search::new(52, 9216), |_| false);
            assert_eq!(size, limit);
            assert!(rounds <= 5, "{limit}: {rounds}");
        }
    }

    #[test]
    fn a_probe_that_is_lost_by_chance_is_no_limit_below_larger_ones() {
        let first = *Search::new(52, 1500).sizes().first().unwrap();
        let (size, _) = found(1400, Search::new(52, 1500), |size| size == first);
        assert_eq!(size, 1400);
    }

    #[test]
    fn where_one_byte_is_between_nothing_is_tried() {
        assert_eq!(found(0, Search::new(1499, 1500), |_| false), (1499, 0));
        assert_eq!(found(0, Search::new(1500, 1500), |_| false), (1500, 0));
    }
}
