//! Power-of-two runs of array elements, by a buddy allocator (Knowlton, 1965).

use std::collections::BTreeSet;

use super::limits::MAX_SLOTS;

/// Log2 of the largest run.
const TOP: u8 = MAX_SLOTS.ilog2() as u8;

/// Runs of one array, the lowest first.
#[derive(Debug)]
pub(super) struct Regions {
    /// Bases of free runs, by log2 of their size.
    free: [BTreeSet<u32>; TOP as usize + 1],
    /// Given back, but packets in the program may still read them.
    quarantine: Vec<(u32, u8)>,
    size: u32,
    used: u32,
}

impl Regions {
    /// `size` is a multiple of the largest run.
    pub(super) fn new(size: u32) -> Self {
        let mut free: [BTreeSet<u32>; TOP as usize + 1] = Default::default();
        free[usize::from(TOP)] = (0..size / MAX_SLOTS).map(|run| run * MAX_SLOTS).collect();
        Self {
            free,
            quarantine: Vec::new(),
            size,
            used: 0,
        }
    }

    /// The base of a run of `1 << log2` elements.
    pub(super) fn take(&mut self, log2: u8) -> Option<u32> {
        let from = (log2..=TOP).find(|from| !self.free[usize::from(*from)].is_empty())?;
        let base = self.free[usize::from(from)].pop_first()?;
        self.split(base, from, base, log2);
        Some(base)
    }

    /// Takes one run that is in use already; false if it overlaps another or does not exist.
    pub(super) fn reserve(&mut self, base: u32, log2: u8) -> bool {
        if log2 > TOP || base & (size(log2) - 1) != 0 {
            return false;
        }
        for from in log2..=TOP {
            let whole = base & !(size(from) - 1);
            if self.free[usize::from(from)].remove(&whole) {
                self.split(whole, from, base, log2);
                return true;
            }
        }
        false
    }

    /// Frees everything of a run but one part.
    fn split(&mut self, mut whole: u32, from: u8, part: u32, log2: u8) {
        for order in (log2..from).rev() {
            let (low, high) = (whole, whole + size(order));
            let (kept, other) = if part < high {
                (low, high)
            } else {
                (high, low)
            };
            self.free[usize::from(order)].insert(other);
            whole = kept;
        }
        self.used += size(log2);
    }

    /// Takes back a run that was not published.
    pub(super) fn untake(&mut self, mut base: u32, mut log2: u8) {
        self.used -= size(log2);
        while log2 < TOP && self.free[usize::from(log2)].remove(&(base ^ size(log2))) {
            base &= !size(log2);
            log2 += 1;
        }
        self.free[usize::from(log2)].insert(base);
    }

    pub(super) fn release(&mut self, base: u32, log2: u8) {
        self.quarantine.push((base, log2));
    }

    pub(super) const fn has_quarantine(&self) -> bool {
        !self.quarantine.is_empty()
    }

    /// After a grace period.
    pub(super) fn settle(&mut self) {
        for (base, log2) in std::mem::take(&mut self.quarantine) {
            self.untake(base, log2);
        }
    }

    /// Elements in use.
    pub(super) fn used(&self) -> u32 {
        let resting: u32 = self.quarantine.iter().map(|(_, log2)| size(*log2)).sum();
        self.used - resting
    }

    pub(super) const fn capacity(&self) -> u32 {
        self.size
    }
}

const fn size(log2: u8) -> u32 {
    1 << log2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn runs_never_overlap_and_come_back(steps in proptest::collection::vec((any::<bool>(), 0..=TOP, any::<usize>()), 1..200)) {
            let mut regions = Regions::new(4 * MAX_SLOTS);
            let mut held: Vec<(u32, u8)> = Vec::new();
            for (take, log2, which) in steps {
                if take {
                    if let Some(base) = regions.take(log2) {
                        prop_assert_eq!(base & (size(log2) - 1), 0);
                        let apart = |(other, order): &(u32, u8)| base + size(log2) <= *other || other + size(*order) <= base;
                        prop_assert!(held.iter().all(apart));
                        held.push((base, log2));
                    }
                } else if !held.is_empty() {
                    let (base, log2) = held.swap_remove(which % held.len());
                    regions.release(base, log2);
                    regions.settle();
                }
                prop_assert_eq!(regions.used(), held.iter().map(|(_, log2)| size(*log2)).sum::<u32>());
            }
            let mut again = Regions::new(4 * MAX_SLOTS);
            for (base, log2) in &held {
                prop_assert!(again.reserve(*base, *log2));
                prop_assert!(!again.reserve(*base, *log2));
            }
            prop_assert_eq!(&again.free, &regions.free);
            for (base, log2) in held {
                regions.untake(base, log2);
            }
            prop_assert_eq!(&regions.free, &Regions::new(4 * MAX_SLOTS).free);
        }
    }

    #[test]
    fn a_released_run_rests() {
        let mut regions = Regions::new(MAX_SLOTS);
        let base = regions.take(TOP).unwrap();
        regions.release(base, TOP);
        assert_eq!((regions.take(0), regions.used()), (None, 0));
        regions.settle();
        assert_eq!(regions.take(0), Some(0));
        assert!(!regions.reserve(8, 4) && !regions.reserve(0, 40));
    }
}
