//! A frame's bounds. `data` and `data_end` are 32-bit fields that the kernel turns into 64-bit pointers as they are
//! loaded. The compiler believes the 32 bits and may spill half a pointer, which the verifier refuses; so the loads are
//! spelt out.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::bindings::{__sk_buff, xdp_md};

/// A context with direct access to its frame.
pub(crate) trait Bounds {
    /// Address of the frame's first byte.
    fn data(self) -> usize;
    /// Address behind its last (linear) byte.
    fn data_end(self) -> usize;
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
