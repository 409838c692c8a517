//! Bounded-load weighted rendezvous (design.md section 4).
//!
//! Each pair of a slot and a backend has a score, the pseudo-random `-ln(u) / weight` (the lower the better; a slot's
//! best is backend `b` with probability `weight_b / sum of weights`). Slots and backends are matched stably by it: a
//! slot proposes to backends from its best score on, a backend keeps its best slots up to a bound. First up to 0.95 of
//! its weighted share, so that nobody is left short (contract A4.9 asks for 5 %); the slots that nobody took so are
//! matched up to 1.05 of it. Distinct scores have one such matching, whatever the order of proposals (Gale and Shapley,
//! 1962).
//!
//! A table that doubles moves few slots: for a backend, slots that meet in their low bits (the flow hash chooses by
//! these) have the same score at every size, up to the size of the smallest table that holds ordinals up to its own.
//! Measured over 20 keys, slots that move beyond the share of the one that comes or goes, in percent: 1–2 of 10
//! backends, 1.3 of 100; 2 where a backend more doubles the table, 7–10 where one less halves it (30–51 with scores of
//! each size's own).

use std::{collections::BinaryHeap, ops::Range};

use lb_common::{bytes::V4, hash};

use super::{Share, log::minus_log2, slot_count};
use crate::config::MAX_BACKENDS_PER_SERVICE;

/// Low bits of a score that hold the backend's place in its set.
const INDEX_MASK: u64 = MAX_BACKENDS_PER_SERVICE.next_power_of_two() as u64 - 1;

/// Memory that tables are built in.
#[derive(Default, Debug)]
pub struct Scratch {
    backends: Vec<Candidate>,
    /// Backends whose scores repeat after the same number of slots, in order.
    spans: Vec<Span>,
    /// What each backend keeps in this phase.
    kept: Vec<BinaryHeap<Proposal>>,
    /// Slots without owner.
    free: Vec<u32>,
    /// Slots that nobody took in this phase.
    left: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// Its part of every score's hash.
    word: u64,
    factor: u64,
    /// It takes only scores below.
    limit: u64,
    /// 2^28 / weight.
    inverse: u64,
    /// Slots that it has when the first phase ends, and at most.
    least: u32,
    most: u32,
}

#[derive(Clone, Debug)]
struct Span {
    backends: Range<usize>,
    /// Slots after which scores repeat, less one.
    mask: u32,
}

/// The greatest is the worst.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Proposal {
    score: u64,
    slot: u32,
}

/// `set` has 2 to 4096 shares.
pub(super) fn owners(key: [u64; 2], set: &[Share], slots: u32, scratch: &mut Scratch) -> Vec<u16> {
    scratch.reset(key, set, slots);
    let even = set.windows(2).all(|pair| pair[0].weight == pair[1].weight);
    // Ordinals are below 2^16, so no backend's words are this one.
    let seed = hash::client(&key, &V4(u32::MAX));
    let mut owners = vec![0; slots as usize];
    if even {
        scratch.two_phases(seed, set, &mut owners, |hash, _, _| !hash);
    } else {
        scratch.two_phases(seed, set, &mut owners, |hash, backend, best| {
            // 1 - u is below -ln(u), and cheap: most backends are out by it.
            if ((!hash >> 40) * backend.inverse) << 6 > best {
                return u64::MAX;
            }
            ((minus_log2(hash) >> 2) * backend.inverse) << 6
        });
    }
    owners
}

impl Scratch {
    fn reset(&mut self, key: [u64; 2], set: &[Share], slots: u32) {
        let total: u64 = set.iter().map(|share| u64::from(share.weight)).sum();
        self.backends.clear();
        self.backends.extend(set.iter().map(|share| {
            let weight = u64::from(share.weight);
            let of_all = u64::from(slots) * weight;
            let (floor, ceiling) = (of_all / total, of_all.div_ceil(total));
            Candidate {
                word: hash::client(&key, &V4(u32::from(share.ordinal))),
                factor: hash::client(&key, &V4(u32::from(share.ordinal) | 1 << 16)) | 1,
                inverse: (1 << 28) / weight,
                limit: 0,
                least: floor.min((of_all * 95).div_ceil(100 * total)) as u32,
                most: ceiling.max(of_all * 105 / (100 * total)) as u32,
            }
        }));
        self.spans.clear();
        for (index, share) in set.iter().enumerate() {
            let mask = slot_count(usize::from(share.ordinal) + 1).clamp(slot_count(2), slots) - 1;
            match self.spans.last_mut() {
                Some(span) if span.mask == mask => span.backends.end = index + 1,
                _ => self.spans.push(Span {
                    backends: index..index + 1,
                    mask,
                }),
            }
        }
        let heaps = self.kept.len().max(set.len());
        self.kept.resize_with(heaps, BinaryHeap::new);
        self.free.clear();
        self.free.extend(0..slots);
    }

    /// Hands out every slot: the bounds of the second phase add up to all of them or more.
    fn two_phases(
        &mut self,
        seed: u64,
        set: &[Share],
        owners: &mut [u16],
        score: impl Fn(u64, &Candidate, u64) -> u64 + Copy,
    ) {
        self.phase(seed, set, owners, |backend| backend.least, score);
        std::mem::swap(&mut self.free, &mut self.left);
        self.phase(
            seed,
            set,
            owners,
            |backend| backend.most - backend.least,
            score,
        );
    }

    fn phase(
        &mut self,
        seed: u64,
        set: &[Share],
        owners: &mut [u16],
        bound: impl Fn(&Candidate) -> u32,
        score: impl Fn(u64, &Candidate, u64) -> u64 + Copy,
    ) {
        for (backend, kept) in self.backends.iter_mut().zip(&mut self.kept) {
            kept.clear();
            backend.limit = if bound(backend) > 0 { u64::MAX } else { 0 };
        }
        self.left.clear();
        while let Some(slot) = self.free.pop() {
            let Some((score, best)) = self.best(seed, slot, score) else {
                self.left.push(slot);
                continue;
            };
            owners[slot as usize] = set[best].ordinal;
            let (backend, kept) = (&mut self.backends[best], &mut self.kept[best]);
            let bound = bound(backend) as usize;
            if kept.len() < bound {
                kept.push(Proposal { score, slot });
            } else if let Some(mut worst) = kept.peek_mut() {
                self.free.push(worst.slot);
                *worst = Proposal { score, slot };
            }
            if kept.len() == bound {
                backend.limit = kept.peek().map_or(0, |worst| worst.score);
            }
        }
    }

    /// The best score of a slot among the backends that would take it, and whose it is.
    #[inline]
    fn best(
        &self,
        seed: u64,
        slot: u32,
        score: impl Fn(u64, &Candidate, u64) -> u64,
    ) -> Option<(u64, usize)> {
        let mut best = u64::MAX;
        for span in &self.spans {
            let word = slot_word(seed, slot & span.mask);
            for (index, backend) in span
                .backends
                .clone()
                .zip(&self.backends[span.backends.clone()])
            {
                let product = u128::from(word ^ backend.word) * u128::from(backend.factor);
                let hash = (product >> 64) as u64 ^ product as u64;
                // The low bits say whose it is, so that the best is found without branches: they could not be predicted.
                let score = (score(hash, backend, best) & !INDEX_MASK) | index as u64;
                let taken = if score < backend.limit {
                    score
                } else {
                    u64::MAX
                };
                best = best.min(taken);
            }
        }
        (best != u64::MAX).then_some((best, (best & INDEX_MASK) as usize))
    }
}

fn slot_word(seed: u64, slot: u32) -> u64 {
    mix(seed.wrapping_add(u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The finalizer of `SplitMix64` without its last shift, which high bits do not need.
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
}
