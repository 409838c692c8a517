//! Segments: where XDP's frames come in and go out. The stack has interfaces of its own for some of them: VLAN devices, and
//! bonds, whose frames come in by their ports.

/// A device that XDP meets, and the tags of the frames there. Key of `INTERFACES`, value of `SEGMENTS`, 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
#[repr(C)]
pub struct Segment {
    pub ifindex: u32,
    /// Up to two tags of [`tag`], the outer one in the low half; 0: untagged.
    pub tags: u32,
}

/// A VLAN tag (IEEE 802.1Q) as part of [`Segment::tags`]: the VLAN's number in bits 0–11, then [`TAG_PRESENT`] and
/// [`TAG_SERVICE`]. Priority and drop eligibility are no part of it.
#[inline(always)]
pub const fn tag(vlan: u16, service: bool) -> u32 {
    vlan as u32 & 0xfff | TAG_PRESENT | if service { TAG_SERVICE } else { 0 }
}

pub const TAG_PRESENT: u32 = 1 << 12;
/// Of type 0x88a8 (802.1ad), not 0x8100.
pub const TAG_SERVICE: u32 = 1 << 13;

const _: () = assert!(size_of::<Segment>() == 8);
