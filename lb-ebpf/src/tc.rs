//! The stack's home: what XDP handed up comes through here at tc ingress, and leaves by way of the stack's neighbour
//! table (`bpf_redirect_neigh`, kernel 5.10). This is the slow path: checksums and room are left to the kernel's
//! helpers, which know about partial checksums and segmentation.

use core::cell::Cell;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode,
        bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::{
        bpf_l4_csum_replace, bpf_redirect_neigh, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_pull_data, bpf_skb_vlan_pop,
    },
    macros::classifier,
    programs::TcContext,
};
use lb_common::{
    abi::tag,
    bytes::{Addr, Address as _, V4},
    checksum::Delta,
    packet::{Header, MAX_OFFSET, Packet},
    pipeline::{self, Verdict},
};

use crate::bounds::Bounds as _;
use crate::{
    maps::{SCRATCH, SETTINGS},
    tables::KernelTables,
};

/// Attached to the ingress of each uplink. What it does not take goes on to the next filter.
#[classifier]
pub fn millrace_tc(context: TcContext) -> i32 {
    let (Some(settings), Some(scratch)) = (SETTINGS.get(0), SCRATCH.get_ptr_mut(0)) else {
        return TC_ACT_UNSPEC;
    };
    let skb = context.skb.skb;
    // SAFETY: the kernel gives a valid skb.
    let ingress = unsafe { (*skb).ifindex };
    // Headers that lie in fragments come into the linear part; where that fails, reads do.
    // SAFETY: the skb is this program's own.
    unsafe { bpf_skb_pull_data(skb, MAX_OFFSET.min((*skb).len)) };
    let tables = KernelTables::<true> {
        context: skb.cast(),
        ingress,
        gateway: Cell::new(Addr::UNSPECIFIED),
    };
    // SAFETY: this CPU's own element; the program is not preempted by itself.
    let scratch = unsafe { &mut *scratch };
    let mut frame = Skb { skb, ingress };
    let verdict = pipeline::begin(&mut frame, &tables, settings, scratch);
    match verdict.unwrap_or(Verdict::NotOurs) {
        Verdict::Neighbour { ifindex } => {
            untag(skb);
            redirect(ifindex, &tables.gateway.get())
        }
        Verdict::Drop(_) => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    }
}

/// Takes out the tag that the skb has beside its frame. The kernel puts the next one there, if there is one.
#[inline(always)]
fn untag(skb: *mut __sk_buff) {
    const MOST: u32 = 2;
    let mut tag = 0;
    while tag < MOST {
        // SAFETY: the skb is this program's own, and the kernel gives a valid one.
        unsafe {
            if (*skb).vlan_present == 0 {
                return;
            }
            bpf_skb_vlan_pop(skb);
        }
        tag += 1;
    }
}

/// Sends by `ifindex` after resolving `gateway`; the kernel routes by the packet itself where that is unspecified.
#[inline(always)]
fn redirect(ifindex: u32, gateway: &Addr) -> i32 {
    if *gateway == Addr::UNSPECIFIED {
        // SAFETY: a null struct of size 0 means "by the packet".
        return unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) } as i32;
    }
    let (nh_family, address) = if gateway.is_v4() {
        (
            2,
            bpf_redir_neigh__bindgen_ty_1 {
                ipv6_nh: [V4::from_addr(gateway).0, 0, 0, 0],
            },
        )
    } else {
        (10, bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: gateway.0 })
    };
    let mut neighbour = bpf_redir_neigh {
        nh_family,
        __bindgen_anon_1: address,
    };
    let size = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: the kernel reads the struct it is given.
    unsafe { bpf_redirect_neigh(ifindex, &mut neighbour, size, 0) as i32 }
}

/// The tag that the skb has beside its frame; 0 if none.
#[inline(always)]
pub(crate) fn stripped(skb: *mut __sk_buff) -> u32 {
    const SERVICE: u32 = 0x88a8_u16.to_be() as u32;
    // SAFETY: the kernel gives a valid skb.
    let (present, tci, kind) = unsafe { ((*skb).vlan_present, (*skb).vlan_tci, (*skb).vlan_proto) };
    if present == 0 {
        return 0;
    }
    tag(tci as u16, kind == SERVICE)
}

struct Skb {
    skb: *mut __sk_buff,
    ingress: u32,
}

impl Packet for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the kernel gives a valid skb.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.ingress
    }

    #[inline(always)]
    fn read<H: Header>(&self, offset: u32) -> Option<H> {
        self.skb.load(offset)
    }

    #[inline(always)]
    fn write<H: Header>(&mut self, offset: u32, header: &H) -> bool {
        self.skb.store(offset, header)
    }

    #[inline(always)]
    fn stripped(&self) -> u32 {
        stripped(self.skb)
    }

    /// The stack takes care of tags.
    #[inline(always)]
    fn resize_link(&mut self, _from: u32, _to: u32) -> bool {
        false
    }

    #[inline(always)]
    fn open(&mut self, _link: u32, room: u32, outer_v6: bool) -> bool {
        let flag = if outer_v6 {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
        } else {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        };
        let mode = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
        // SAFETY: the skb is this program's own.
        unsafe { bpf_skb_adjust_room(self.skb, room as i32, mode, flag as u64) == 0 }
    }

    /// Tunnels end in the driver.
    #[inline(always)]
    fn close(&mut self, _link: u32, _room: u32) -> bool {
        false
    }

    #[inline(always)]
    fn cut(&mut self, length: u32) -> bool {
        // SAFETY: the skb is this program's own.
        unsafe { bpf_skb_change_tail(self.skb, length, 0) == 0 }
    }

    #[inline(always)]
    fn patch_l4(&mut self, offset: u32, udp: bool, addresses: Delta, ports: Delta) -> bool {
        patch_l4(self.skb, offset, udp, addresses, ports)
    }
}

/// As [`Packet::patch_l4`]. Local senders' checksums are partial here, so only the kernel knows what the field holds.
#[inline(always)]
pub(crate) fn patch_l4(
    skb: *mut __sk_buff,
    offset: u32,
    udp: bool,
    addresses: Delta,
    ports: Delta,
) -> bool {
    let mangled = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
    let pseudo = mangled | BPF_F_PSEUDO_HDR as u64;
    let offset = offset & MAX_OFFSET;
    // SAFETY: the skb is this program's own; size 0 means that `to` is a difference.
    unsafe {
        bpf_l4_csum_replace(skb, offset, 0, u64::from(addresses.fold()), pseudo) == 0
            && bpf_l4_csum_replace(skb, offset, 0, u64::from(ports.fold()), mangled) == 0
    }
}
