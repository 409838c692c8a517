//! The time that flows and buckets are stamped with, for the agent: it cannot read the jiffies itself.

use aya_ebpf::{helpers::bpf_jiffies64, macros::xdp, programs::XdpContext};

/// Never attached: run by BPF_PROG_TEST_RUN, which hands the result back. The low 32 bits of the jiffies.
#[xdp]
pub fn millrace_clock(_context: XdpContext) -> u32 {
    // SAFETY: the helper takes nothing and reads one word of the kernel.
    unsafe { bpf_jiffies64() as u32 }
}
