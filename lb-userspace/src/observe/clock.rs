//! The kernel's clock as flows remember it.

use rustix::time::{ClockId, clock_gettime};

/// Seconds that the kernel lets its counter of jiffies start before zero (linux/jiffies.h, `INITIAL_JIFFIES`), to find
/// bugs of overflow early.
const HEAD_START: u64 = 300;

/// Jiffies (low 32 bits) of now, at `hz` per second. The kernel counts them along its monotonic clock; the two may
/// differ by some tenths of a second.
pub(super) fn jiffies(hz: u32) -> u32 {
    let now = clock_gettime(ClockId::Monotonic);
    let hz = u64::from(hz);
    let since_boot = now.tv_sec as u64 * hz + now.tv_nsec as u64 * hz / 1_000_000_000;
    since_boot.wrapping_sub(HEAD_START * hz) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jiffies_follow_the_kernel() {
        // What the kernel itself says stands here for root only.
        let Ok(text) = std::fs::read_to_string("/proc/timer_list") else {
            return;
        };
        let Some(line) = text.lines().find_map(|line| line.strip_prefix("jiffies: ")) else {
            return;
        };
        let kernel = line.parse::<u64>().unwrap() as u32;
        // One of the rates that kernels are built for fits, to within 5 s.
        let fits = |hz: &u32| (jiffies(*hz).wrapping_sub(kernel) as i32).unsigned_abs() < 5 * hz;
        assert!([100, 250, 300, 1000].iter().any(fits));
    }
}
