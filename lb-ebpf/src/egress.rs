//! The home behind the stack, at tc egress: replies of backends on this node. Every packet of the host leaves through
//! here, so frames are written by helpers only: a program that writes to packets by itself has the kernel copy the headers
//! of each cloned one first, and all that local TCP sends are clones.

use core::cell::Cell;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_skb_pull_data, bpf_skb_store_bytes},
    macros::classifier,
    programs::TcContext,
};
use lb_common::{
    bytes::Addr,
    checksum::Delta,
    packet::{Header, Packet},
    pipeline::{self, Verdict},
};

use crate::{
    bounds::Bounds as _,
    maps::{SCRATCH, SETTINGS},
    tables::KernelTables,
    tc,
};

/// `ETH_P_IPV6`, as it lies in an skb.
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Attached to the egress of each uplink.
#[classifier]
pub fn millrace_egress(context: TcContext) -> i32 {
    let (Some(settings), Some(scratch)) = (SETTINGS.get(0), SCRATCH.get_ptr_mut(0)) else {
        return TC_ACT_UNSPEC;
    };
    let skb = context.skb.skb;
    // SAFETY: the kernel gives a valid skb.
    let (ifindex, length, protocol) = unsafe { ((*skb).ifindex, (*skb).len, (*skb).protocol) };
    // Ethernet, IP and TCP without options. They lie in the linear part unless somebody odd has sent them.
    let headers = if protocol == IPV6 { 74 } else { 54 };
    let linear = skb.data_end() - skb.data();
    if linear < headers && linear < length as usize {
        // SAFETY: the skb is this program's own. Where it fails, reads do.
        unsafe { bpf_skb_pull_data(skb, length.min(headers as u32)) };
    }
    let tables = KernelTables::<true> {
        context: skb.cast(),
        ingress: ifindex,
        gateway: Cell::new(Addr::UNSPECIFIED),
    };
    // SAFETY: this CPU's own element; softirqs are off here, so no other of our programs comes in between.
    let scratch = unsafe { &mut *scratch };
    let mut frame = Leaving { skb, ifindex };
    match pipeline::egress_reply(&mut frame, &tables, settings, scratch) {
        Verdict::Drop(_) => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    }
}

struct Leaving {
    skb: *mut __sk_buff,
    ifindex: u32,
}

impl Packet for Leaving {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the kernel gives a valid skb.
        unsafe { (*self.skb).len }
    }

    /// The interface that it leaves by.
    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.ifindex
    }

    #[inline(always)]
    fn read<H: Header>(&self, offset: u32) -> Option<H> {
        self.skb.load(offset)
    }

    #[inline(always)]
    fn write<H: Header>(&mut self, offset: u32, header: &H) -> bool {
        let from = core::ptr::from_ref(header).cast();
        // SAFETY: the skb is this program's own, and a `Header` is nothing but its bytes.
        unsafe { bpf_skb_store_bytes(self.skb.cast(), offset, from, size_of::<H>() as u32, 0) == 0 }
    }

    #[inline(always)]
    fn stripped(&self) -> u32 {
        tc::stripped(self.skb)
    }

    #[inline(always)]
    fn resize_link(&mut self, _from: u32, _to: u32) -> bool {
        false
    }

    #[inline(always)]
    fn open(&mut self, _link: u32, _room: u32, _outer_v6: bool) -> bool {
        false
    }

    /// Tunnels end in the driver.
    #[inline(always)]
    fn close(&mut self, _link: u32, _room: u32) -> bool {
        false
    }

    #[inline(always)]
    fn cut(&mut self, _length: u32) -> bool {
        false
    }

    #[inline(always)]
    fn patch_l4(&mut self, offset: u32, udp: bool, addresses: Delta, ports: Delta) -> bool {
        tc::patch_l4(self.skb, offset, udp, addresses, ports)
    }
}
