//! The kernel's homes of the packet path: nothing here but what needs a kernel. What happens to a packet is decided in
//! `lb_common::pipeline`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(
    internal_features,
    reason = "whether an offset is known decides how it is bounded, see `bounds`"
)]

mod bounds;
mod egress;
mod maps;
mod tables;
mod tc;
mod xdp;

/// `bpf_fib_lookup` is for GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
