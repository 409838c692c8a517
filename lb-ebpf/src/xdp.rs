//! The driver's home: frames by bounds-checked reads between `data` and `data_end`.

use core::cell::Cell;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use lb_common::{
    bytes::Addr,
    checksum::{self, Delta},
    packet::{Header, Packet},
    pipeline::{self, Verdict},
};

use crate::{
    bounds::Bounds as _,
    maps::{DEVICES, PROGRAMS, SCRATCH, SETTINGS},
    tables::KernelTables,
};

/// Attached to each uplink.
#[xdp]
pub fn millrace_xdp(context: XdpContext) -> u32 {
    run::<false>(context)
}

/// Takes packets that other nodes sent through tunnels: called by the one above, as the verifier of 5.10 reads no more than
/// a million instructions of one program.
#[xdp]
pub fn millrace_tunnel(context: XdpContext) -> u32 {
    run::<true>(context)
}

#[inline(always)]
fn run<const TUNNEL: bool>(context: XdpContext) -> u32 {
    let (Some(settings), Some(scratch)) = (SETTINGS.get(0), SCRATCH.get_ptr_mut(0)) else {
        return XDP_PASS;
    };
    let tables = KernelTables::<false> {
        context: context.ctx.cast(),
        ingress: context.ingress_ifindex() as u32,
        gateway: Cell::new(Addr::UNSPECIFIED),
    };
    // SAFETY: this CPU's own element; the program is not preempted by itself.
    let scratch = unsafe { &mut *scratch };
    let mut frame = XdpFrame { context };
    let verdict = if TUNNEL {
        pipeline::arrive(&mut frame, &tables, settings, scratch)
    } else {
        let Some(verdict) = pipeline::begin(&mut frame, &tables, settings, scratch) else {
            // SAFETY: what is called takes the same context. It returns only if the array is empty.
            unsafe { PROGRAMS.tail_call(&frame.context, 0) };
            return XDP_PASS;
        };
        verdict
    };
    if verdict != Verdict::NotOurs && level_enabled(Level::Debug) {
        log(&frame.context, verdict.pack());
    }
    match verdict {
        Verdict::NotOurs | Verdict::Pass(_) | Verdict::Neighbour { .. } | Verdict::Rewritten => {
            XDP_PASS
        }
        Verdict::Drop(_) => XDP_DROP,
        Verdict::Transmit => XDP_TX,
        // The low bits of the flags are the verdict for a device that is not in the map: the packet has been
        // rewritten, so the stack must not see it.
        Verdict::Redirect { ifindex } => DEVICES
            .redirect(ifindex, u64::from(XDP_DROP))
            .unwrap_or(XDP_DROP),
    }
}

/// Tells of a packet that was ours. With `AYA_LOG_LEVEL` at 0, as it is unless asked for, the verifier removes the call.
/// A function of its own, so that its stack is not added to that of the path.
#[inline(never)]
fn log(context: &XdpContext, verdict: u64) -> u32 {
    let (kind, detail) = (verdict as u32, (verdict >> 32) as u32);
    let ingress = context.ingress_ifindex() as u32;
    match kind {
        1 => debug!(context, "interface {}: passed, reason {}", ingress, detail),
        2 => debug!(context, "interface {}: dropped, reason {}", ingress, detail),
        3 => debug!(context, "interface {}: sent back", ingress),
        6 => debug!(context, "interface {}: to a backend of this node", ingress),
        _ => debug!(context, "interface {}: redirected to {}", ingress, detail),
    }
    0
}

struct XdpFrame {
    context: XdpContext,
}

impl Packet for XdpFrame {
    #[inline(always)]
    fn length(&self) -> u32 {
        (self.context.ctx.data_end() - self.context.ctx.data()) as u32
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn read<H: Header>(&self, offset: u32) -> Option<H> {
        self.context.ctx.load(offset)
    }

    #[inline(always)]
    fn write<H: Header>(&mut self, offset: u32, header: &H) -> bool {
        self.context.ctx.store(offset, header)
    }

    #[inline(always)]
    fn stripped(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn resize_link(&mut self, from: u32, to: u32) -> bool {
        let by = from as i32 - to as i32;
        // SAFETY: the context is this program's own.
        unsafe { bpf_xdp_adjust_head(self.context.ctx, by) == 0 }
    }

    #[inline(always)]
    fn open(&mut self, link: u32, room: u32, _outer_v6: bool) -> bool {
        let tags = if link > 14 {
            self.read::<[u32; 2]>(12)
        } else {
            None
        };
        // SAFETY: the context is this program's own.
        if unsafe { bpf_xdp_adjust_head(self.context.ctx, -(room as i32)) } != 0 {
            return false;
        }
        let Some(tags) = tags else {
            return link == 14;
        };
        self.write(12, &tags[0]) && (link == 18 || self.write(16, &tags[1]))
    }

    #[inline(always)]
    fn close(&mut self, link: u32, room: u32) -> bool {
        // Three words of MACs, then tags; whoever reads on writes the EtherType.
        let (Some(macs), Some(tags)) = (self.read::<[u32; 3]>(0), self.read::<[u32; 2]>(12)) else {
            return false;
        };
        // SAFETY: the context is this program's own.
        if unsafe { bpf_xdp_adjust_head(self.context.ctx, room as i32) } != 0 {
            return false;
        }
        let tagged =
            link == 14 || self.write(12, &tags[0]) && (link == 18 || self.write(16, &tags[1]));
        tagged && self.write(0, &macs)
    }

    #[inline(always)]
    fn cut(&mut self, length: u32) -> bool {
        let by = length as i32 - self.length() as i32;
        // SAFETY: the context is this program's own.
        by <= 0 && unsafe { bpf_xdp_adjust_tail(self.context.ctx, by) } == 0
    }

    #[inline(always)]
    fn patch_l4(&mut self, offset: u32, udp: bool, addresses: Delta, ports: Delta) -> bool {
        let Some(check) = self.read::<u16>(offset) else {
            return false;
        };
        self.write(offset, &checksum::patch_l4(check, udp, addresses, ports))
    }
}
