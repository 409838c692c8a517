//! A frame's bounds. `data` and `data_end` are 32-bit fields that the kernel turns into 64-bit pointers as they are
//! loaded. The compiler believes the 32 bits and may spill half a pointer, which the verifier refuses; so the loads are
//! spelt out.

use core::{arch::asm, intrinsics::is_val_statically_known, mem::offset_of};

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use lb_common::packet::{Header, MAX_OFFSET};

/// A context with direct access to its frame.
pub(crate) trait Bounds: Copy {
    /// Address of the frame's first byte.
    fn data(self) -> usize;
    /// Address behind its last (linear) byte.
    fn data_end(self) -> usize;

    /// Start of `size` bytes at `offset`, if the (linear part of the) frame holds them.
    #[inline(always)]
    fn at(self, offset: u32, size: usize) -> Option<usize> {
        let data = self.data();
        let start = if is_val_statically_known(offset) {
            data + offset as usize
        } else {
            masked(data, offset)
        };
        (start + size <= self.data_end()).then_some(start)
    }

    /// As [`lb_common::packet::Packet::read`].
    #[inline(always)]
    fn load<H: Header>(self, offset: u32) -> Option<H> {
        let start = self.at(offset, size_of::<H>())?;
        // SAFETY: `size_of::<H>()` bytes lie between `start` and `data_end`, and a `Header` is valid for any bytes.
        Some(unsafe { (start as *const H).read_unaligned() })
    }

    /// As [`lb_common::packet::Packet::write`].
    #[inline(always)]
    fn store<H: Header>(self, offset: u32, header: &H) -> bool {
        let Some(start) = self.at(offset, size_of::<H>()) else {
            return false;
        };
        // SAFETY: as for `load`.
        unsafe { (start as *mut H).write_unaligned(*header) };
        true
    }
}

/// `data` and `offset`, masked. The mask changes nothing: the pipeline stays below. It is the bound that the verifier sees,
/// spelt out: where LLVM knows a bound it takes the mask away, or masks early and keeps the result on the stack, and
/// kernel 5.10 knows no bounds of what it reads from there.
#[inline(always)]
fn masked(data: usize, offset: u32) -> usize {
    let mut start = u64::from(offset);
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("{start} &= {mask}", "{start} += {data}", start = inout(reg) start, mask = const MAX_OFFSET,
            data = in(reg) data, options(nomem, nostack));
    }
    start as usize
}

macro_rules! bounds {
    ($context:ty) => {
        impl Bounds for *mut $context {
            #[inline(always)]
            fn data(self) -> usize {
                let data;
                // SAFETY: loads a field of the context; the kernel gives a valid one.
                unsafe {
                    asm!("{data} = *(u32 *)({context} + {offset})", context = in(reg) self, data = out(reg) data,
                        offset = const offset_of!($context, data), options(pure, readonly, nostack));
                }
                data
            }

            #[inline(always)]
            fn data_end(self) -> usize {
                let end;
                // SAFETY: as for `data`.
                unsafe {
                    asm!("{end} = *(u32 *)({context} + {offset})", context = in(reg) self, end = out(reg) end,
                        offset = const offset_of!($context, data_end), options(pure, readonly, nostack));
                }
                end
            }
        }
    };
}

bounds!(xdp_md);
bounds!(__sk_buff);
