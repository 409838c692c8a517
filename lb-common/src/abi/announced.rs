//! VIPs announced on a LAN: their ARP requests and neighbour solicitations are answered in XDP.

use crate::bytes::Mac;

/// Key of `ANNOUNCED4` (8 bytes) and `ANNOUNCED6` (20 bytes).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct AnnouncedKey<A> {
    /// Interface that the question comes in by, as the stack sees it: a VLAN device, a bond.
    pub ifindex: u32,
    pub address: A,
}

/// Value of `ANNOUNCED4` and `ANNOUNCED6`, 24 bytes; each CPU has its own. `mac` never changes: an interface with another
/// MAC gets another entry.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Announced {
    /// Bytes 0–5: the interface's own MAC, which is the answer.
    pub mac: u64,
    /// Valid questions, and how many of them were answered: the others were beyond the budget.
    pub requests: u64,
    pub responses: u64,
}

impl Announced {
    pub const fn new(mac: Mac) -> Self {
        let [a, b, c, d, e, f] = mac;
        Self {
            mac: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]),
            requests: 0,
            responses: 0,
        }
    }

    pub const fn mac(&self) -> Mac {
        let [a, b, c, d, e, f, _, _] = self.mac.to_le_bytes();
        [a, b, c, d, e, f]
    }
}

const _: () = assert!(size_of::<AnnouncedKey<crate::bytes::V4>>() == 8);
const _: () = assert!(size_of::<AnnouncedKey<crate::bytes::V6>>() == 20);
const _: () = assert!(size_of::<Announced>() == 24);
