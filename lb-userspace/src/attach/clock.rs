//! The kernel's jiffies, which the packet path counts time in: userspace cannot read them, so a small program does.
#![expect(
    unsafe_code,
    reason = "bpf(2) takes addresses as integers; the buffer lives across the call"
)]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use aya_obj::generated::bpf_cmd;

use crate::dataplane::syscall::{attributes, bpf};

/// Jiffies per second that kernels of the supported architectures are built with (`kernel/Kconfig.hz`).
const RATES: [u32; 4] = [100, 250, 300, 1000];
/// Long enough to tell 250 from 300.
const MEASURE: Duration = Duration::from_millis(40);

/// Reads the jiffies. Runs the program `millrace_clock` by `BPF_PROG_TEST_RUN`, measured, 1 µs a reading.
#[derive(Debug)]
pub struct Clock {
    program: OwnedFd,
}

impl Clock {
    pub(super) const fn new(program: OwnedFd) -> Self {
        Self { program }
    }

    /// The low 32 bits of the jiffies.
    pub fn now(&self) -> io::Result<u32> {
        // As short as test runs of XDP programs may be: an Ethernet header.
        let frame = [0u8; 14];
        let mut attr = attributes();
        attr.test.prog_fd = self.program.as_fd().as_raw_fd() as u32;
        attr.test.data_in = frame.as_ptr().addr() as u64;
        attr.test.data_size_in = frame.len() as u32;
        // SAFETY: the frame lives across the call and has the size given; no output is asked for.
        unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)? };
        // SAFETY: the kernel wrote this member of the union.
        Ok(unsafe { attr.test.retval })
    }

    /// Jiffies per second of this kernel, measured from one tick to another.
    pub fn rate(&self) -> io::Result<u32> {
        let (start, first) = self.next_tick()?;
        loop {
            let (end, last) = self.next_tick()?;
            let time = end.duration_since(start);
            if time >= MEASURE {
                let ticks = f64::from(last.wrapping_sub(first));
                return Ok(nearest(ticks / time.as_secs_f64()));
            }
        }
    }

    fn next_tick(&self) -> io::Result<(Instant, u32)> {
        let before = self.now()?;
        loop {
            let now = self.now()?;
            if now != before {
                return Ok((Instant::now(), now));
            }
        }
    }
}

fn nearest(rate: f64) -> u32 {
    let distance = |candidate: &u32| (rate / f64::from(*candidate)).ln().abs();
    RATES
        .into_iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        .unwrap_or(RATES[0])
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_measured_rate_is_taken_for_the_nearest_that_kernels_have() {
        for (measured, rate) in [(99.2, 100), (243.0, 250), (290.0, 300), (980.0, 1000)] {
            assert_eq!(nearest(measured), rate);
        }
    }
}
