use std::{collections::BTreeMap, time::Instant};

use proptest::prelude::*;

use super::*;

const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

fn even(ordinals: impl IntoIterator<Item = u16>) -> Vec<Share> {
    let share = |ordinal| Share {
        ordinal,
        weight: 100,
    };
    ordinals.into_iter().map(share).collect()
}

fn table(key: [u64; 2], set: &[Share]) -> Vec<u16> {
    owners(Algorithm::Rendezvous, key, set, &mut Scratch::default())
}

fn owned(table: &[u16]) -> BTreeMap<u16, usize> {
    let mut owned = BTreeMap::new();
    for owner in table {
        *owned.entry(*owner).or_default() += 1;
    }
    owned
}

/// Share of the flows that change their backend though neither is `one`, in percent. The low bits of a flow's hash
/// choose its slot.
fn extra(before: &[u16], after: &[u16], one: u16) -> f64 {
    let most = before.len().max(after.len());
    let changed = (0..most).filter(|hash| {
        let (from, to) = (
            before[hash & (before.len() - 1)],
            after[hash & (after.len() - 1)],
        );
        from != to && from != one && to != one
    });
    changed.count() as f64 / most as f64 * 100.0
}

fn sets() -> impl Strategy<Value = Vec<Share>> {
    let weights = prop_oneof![Just(1u16), Just(100), 1..=u16::MAX];
    proptest::collection::btree_map(0..300u16, weights, 0..60).prop_map(|map| {
        let share = |(ordinal, weight)| Share { ordinal, weight };
        map.into_iter().map(share).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A4.9
    #[test]
    fn shares_keep_their_bounds(set in sets(), key in any::<[u64; 2]>()) {
        let table = table(key, &set);
        prop_assert_eq!(table.len(), slot_count(set.len()) as usize);
        let total: u64 = set.iter().map(|share| u64::from(share.weight)).sum();
        let owned = owned(&table);
        for share in &set {
            let fair = table.len() as f64 * f64::from(share.weight) / total as f64;
            let owned = owned.get(&share.ordinal).copied().unwrap_or_default() as f64;
            // Small shares are whole slots.
            let (least, most) = ((fair * 0.95).min(fair.floor()), (fair * 1.05).max(fair.ceil()));
            prop_assert!((least..=most).contains(&owned), "{owned} of {fair}");
        }
        prop_assert!(owned.keys().all(|owner| set.iter().any(|share| share.ordinal == *owner)));
    }

    /// A4.9
    #[test]
    fn a_table_depends_on_the_set_alone(set in sets(), other in sets()) {
        let mut used = Scratch::default();
        owners(Algorithm::Rendezvous, KEY, &other, &mut used);
        let again = owners(Algorithm::Rendezvous, KEY, &set, &mut used);
        prop_assert_eq!(again, table(KEY, &set));
    }

    #[test]
    fn the_scale_of_weights_does_not_matter(ordinals in proptest::collection::btree_set(any::<u16>(), 2..20)) {
        let ten: Vec<_> = ordinals.iter().map(|&ordinal| Share { ordinal, weight: 10 }).collect();
        prop_assert_eq!(table(KEY, &ten), table(KEY, &even(ordinals)));
    }
}

#[test]
fn a_change_moves_little_more_than_its_own_share() {
    for (n, most_less, most_more) in [
        (3, 6.0, 6.0),
        (4, 6.0, 6.0),
        (5, 16.0, 5.0),
        (10, 5.0, 5.0),
        (16, 5.0, 5.0),
        (17, 12.0, 5.0),
        (25, 5.0, 5.0),
        (100, 2.0, 2.0),
    ] {
        let (mut less, mut more) = (0.0, 0.0);
        for seed in 0..20 {
            let key = [seed, !seed];
            let before = table(key, &even(0..n));
            let gone = seed as u16 % n;
            let fewer = table(key, &even((0..n).filter(|ordinal| *ordinal != gone)));
            less += extra(&before, &fewer, gone) / 20.0;
            more += extra(&before, &table(key, &even(0..=n)), n) / 20.0;
        }
        let slots = slot_count(n.into());
        println!(
            "{n} backends, {slots} slots: beyond the share of the one, {less:.2} % of flows move when one goes, \
             {more:.2} % when one comes"
        );
        assert!(less < most_less && more < most_more);
    }
}

#[test]
fn shares_follow_the_weights() {
    for n in [2u16, 3, 4, 5, 8, 10, 25, 100] {
        let (mut least, mut greatest) = (f64::MAX, 0f64);
        for seed in 0..50 {
            let table = table([seed, 1], &even(0..n));
            for owned in owned(&table).values() {
                let share = *owned as f64 * f64::from(n) / table.len() as f64;
                least = least.min(share);
                greatest = greatest.max(share);
            }
        }
        println!("{n} backends: {least:.3} to {greatest:.3} of the fair share in 50 tables");
        assert!(least >= 0.95 && greatest <= 1.05);
    }
}

#[test]
fn sizes_are_powers_of_two_with_64_slots_a_backend() {
    assert_eq!([0, 1, 2, 4, 5].map(slot_count), [0, 1, 256, 256, 512]);
    assert_eq!([1023, 1024, 1025, 4096].map(slot_count), [65_536; 4]);
}

/// `cargo test --release plan::table -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn how_long_tables_take() {
    let mut scratch = Scratch::default();
    for (n, rounds) in [(2, 1000), (25, 1000), (100, 100), (1024, 3)] {
        for weighted in [false, true] {
            let mut set = even(0..n);
            if weighted {
                set[0].weight = 50;
            }
            let start = Instant::now();
            for round in 0..rounds {
                let table = owners(Algorithm::Rendezvous, [round, 2], &set, &mut scratch);
                assert_eq!(table.len(), slot_count(set.len()) as usize);
            }
            println!(
                "{n} backends, weighted {weighted}: {:?}",
                start.elapsed() / rounds as u32
            );
        }
    }
}
