//! The kernel's jiffies, which the packet path counts time in. Userspace cannot read them, so ten instructions do, run by
//! `BPF_PROG_TEST_RUN`. They stand here, apart from the object of the packet path: who only looks needs a clock, too.
#![expect(
    unsafe_code,
    reason = "bpf(2) takes addresses as integers; the buffers live across each call"
)]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use aya_obj::generated::{bpf_cmd, bpf_prog_type};

use crate::dataplane::syscall::{attributes, bpf, bpf_fd};

/// Jiffies per second that kernels of the supported architectures are built with (`kernel/Kconfig.hz`).
const RATES: [u32; 4] = [100, 250, 300, 1000];
/// Long enough to tell 250 from 300.
const MEASURE: Duration = Duration::from_millis(40);

/// As short as test runs of XDP programs may be: an Ethernet header.
const FRAME: usize = 14;

/// An XDP program that puts the jiffies at the start of its frame: opcode, registers (source and destination, four bits
/// each), offset, immediate (`struct bpf_insn`).
const PROGRAM: [[u8; 8]; 10] = [
    [0xbf, 0x16, 0, 0, 0, 0, 0, 0],   // r6 = r1
    [0x85, 0x00, 0, 0, 118, 0, 0, 0], // r0 = bpf_jiffies64()
    [0x61, 0x62, 0, 0, 0, 0, 0, 0],   // r2 = r6->data
    [0x61, 0x63, 4, 0, 0, 0, 0, 0],   // r3 = r6->data_end
    [0xbf, 0x24, 0, 0, 0, 0, 0, 0],   // r4 = r2
    [0x07, 0x04, 0, 0, 8, 0, 0, 0],   // r4 += 8
    [0x2d, 0x34, 1, 0, 0, 0, 0, 0],   // if r4 > r3 skip the next
    [0x7b, 0x02, 0, 0, 0, 0, 0, 0],   // *(u64 *)r2 = r0
    [0xb7, 0x00, 0, 0, 2, 0, 0, 0],   // r0 = XDP_PASS
    [0x95, 0x00, 0, 0, 0, 0, 0, 0],   // exit
];

/// Reads the jiffies; measured, 1 µs a reading.
#[derive(Debug)]
pub struct Clock {
    program: OwnedFd,
}

impl Clock {
    /// Loads the program.
    ///
    /// # Errors
    /// The kernel's: EPERM without `CAP_BPF` and `CAP_NET_ADMIN`.
    pub fn load() -> io::Result<Self> {
        let licence = c"MIT";
        let mut attr = attributes();
        attr.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
        attr.__bindgen_anon_3.insns = PROGRAM.as_ptr().addr() as u64;
        attr.__bindgen_anon_3.insn_cnt = PROGRAM.len() as u32;
        attr.__bindgen_anon_3.license = licence.as_ptr().addr() as u64;
        // SAFETY: instructions and licence are constants of the sizes given; the command gives back a new descriptor.
        let program = unsafe { bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr)? };
        Ok(Self { program })
    }

    /// The jiffies, all 64 bits.
    pub fn now(&self) -> io::Result<u64> {
        let frame = [0u8; FRAME];
        let mut answer = [0u8; FRAME];
        let mut attr = attributes();
        attr.test.prog_fd = self.program.as_fd().as_raw_fd() as u32;
        attr.test.data_in = frame.as_ptr().addr() as u64;
        attr.test.data_size_in = frame.len() as u32;
        attr.test.data_out = answer.as_mut_ptr().addr() as u64;
        attr.test.data_size_out = answer.len() as u32;
        // SAFETY: both frames live across the call and have the sizes given.
        unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)? };
        let mut now = [0; size_of::<u64>()];
        now.copy_from_slice(&answer[..size_of::<u64>()]);
        Ok(u64::from_ne_bytes(now))
    }

    /// Jiffies per second of this kernel, measured from one tick to another.
    pub fn rate(&self) -> io::Result<u32> {
        let (start, first) = self.next_tick()?;
        loop {
            let (end, last) = self.next_tick()?;
            let time = end.duration_since(start);
            if time >= MEASURE {
                let ticks = (last - first) as f64;
                return Ok(nearest(ticks / time.as_secs_f64()));
            }
        }
    }

    fn next_tick(&self) -> io::Result<(Instant, u64)> {
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
