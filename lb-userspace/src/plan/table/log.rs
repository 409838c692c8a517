//! Logarithms in integers, so that every machine computes the same table.

/// Intervals of the table below.
const STEPS: usize = 256;

/// log2(1 + i/256) in 1/2^26.
static LOG2: [u32; STEPS + 1] = {
    let mut table = [0; STEPS + 1];
    let mut index = 0;
    while index <= STEPS {
        table[index] = log2_of_step(index as u128);
        index += 1;
    }
    table
};

/// Bit by bit: squaring doubles the logarithm, and its integer part is the next bit.
const fn log2_of_step(step: u128) -> u32 {
    if step == STEPS as u128 {
        return 1 << 26;
    }
    // The number in 1/2^62, within [1, 2).
    let mut number = (1 << 62) + (step << 54);
    let mut log = 0;
    let mut bit = 0;
    while bit < 26 {
        number = (number * number) >> 62;
        log <<= 1;
        if number >= 2 << 62 {
            number >>= 1;
            log |= 1;
        }
        bit += 1;
    }
    log
}

/// -log2(hash / 2^64) in 1/2^26, 0 taken as 1; never decreasing with a smaller hash, 2^32 at most.
///
/// Between the 256 steps of each octave the logarithm is taken as a line: 3e-6 too high at most, within 0.2 % of the value
/// where it is smallest. Shares are off by less than that; nothing else depends on it.
#[inline]
pub(super) const fn minus_log2(hash: u64) -> u64 {
    let zeros = hash.leading_zeros();
    if zeros == 64 {
        return 64 << 26;
    }
    // Behind the leading one: 8 bits choose the step, the next 26 the place in it.
    let fraction = hash << zeros << 1;
    let step = (fraction >> 56) as usize;
    let place = (fraction << 8) >> 38;
    let low = LOG2[step] as u64;
    let rise = LOG2[step + 1] as u64 - low;
    (((zeros as u64) + 1) << 26) - low - ((rise * place) >> 26)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn follows_the_real_logarithm(hash in any::<u64>(), shift in 0u32..64) {
            let hash = hash >> shift;
            let real = 64.0 - (hash as f64).max(1.0).log2();
            let ours = minus_log2(hash) as f64 / f64::from(1 << 26);
            prop_assert!((ours - real).abs() < 4e-6, "{ours} {real}");
        }

        #[test]
        fn never_turns_back(hash in 1u64.., shift in 0u32..63) {
            let hash = (hash >> shift).max(1);
            prop_assert!(minus_log2(hash) <= minus_log2(hash - 1));
        }
    }
}
