//! Numbers of array elements, given out one by one.

use std::collections::{BTreeSet, VecDeque};

/// Ids from 1 on. One that was never used comes first, then the one that has rested longest: who remembers an id finds
/// it unchanged as long as can be.
#[derive(Debug)]
pub(super) struct Ids {
    /// Never given out from here on.
    next: u32,
    /// One more than the last.
    end: u32,
    free: VecDeque<u32>,
    /// Given back, but packets in the program may still know them.
    quarantine: Vec<u32>,
}

impl Ids {
    pub(super) const fn new(end: u32) -> Self {
        Self {
            next: 1,
            end,
            free: VecDeque::new(),
            quarantine: Vec::new(),
        }
    }

    /// Takes over a map in which `in_use` are in use and others up to `seen` may have been.
    pub(super) fn restored(end: u32, in_use: &BTreeSet<u32>, seen: u32) -> Self {
        let last = in_use.last().copied().unwrap_or_default().max(seen);
        Self {
            next: last.saturating_add(1),
            end,
            free: VecDeque::new(),
            quarantine: (1..=last).filter(|id| !in_use.contains(id)).collect(),
        }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        if self.next < self.end {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.free.pop_front()
    }

    /// Takes back an id that was not published.
    pub(super) fn untake(&mut self, id: u32) {
        self.free.push_front(id);
    }

    pub(super) fn release(&mut self, id: u32) {
        self.quarantine.push(id);
    }

    pub(super) const fn has_quarantine(&self) -> bool {
        !self.quarantine.is_empty()
    }

    /// After a grace period.
    pub(super) fn settle(&mut self) {
        self.free.extend(self.quarantine.drain(..));
    }

    pub(super) fn used(&self) -> u32 {
        self.next - 1 - self.free.len() as u32 - self.quarantine.len() as u32
    }

    /// How many there are.
    pub(super) const fn capacity(&self) -> u32 {
        self.end - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_rests_before_it_is_given_again() {
        let mut ids = Ids::new(4);
        assert_eq!([ids.take(), ids.take()], [Some(1), Some(2)]);
        ids.release(1);
        ids.release(2);
        assert_eq!([ids.take(), ids.take()], [Some(3), None]);
        ids.settle();
        assert_eq!(
            [ids.take(), ids.take(), ids.take()],
            [Some(1), Some(2), None]
        );
        assert_eq!(ids.used(), 3);
    }

    #[test]
    fn gaps_of_a_restored_map_rest_first() {
        let mut ids = Ids::restored(10, &BTreeSet::from([2, 5]), 6);
        assert_eq!(ids.used(), 2);
        assert_eq!(
            [ids.take(), ids.take(), ids.take(), ids.take()],
            [Some(7), Some(8), Some(9), None]
        );
        ids.settle();
        assert_eq!(ids.take(), Some(1));
    }
}
