//! ARP requests for announced VIPs (RFC 826): answered in place, with the MAC of the interface they came in by. What
//! asks for another address is the stack's.

use super::{GRANTED, MAC, NOT_ANNOUNCED, Path, Step, Verdict, parse::Link};
use crate::{
    abi::{AnnouncedKey, Reason},
    bytes::{Address as _, V4},
    packet::Packet,
    tables::{Home, Tables},
};

/// The first two words: Ethernet and IPv4 with addresses of 6 and 4 bytes, and the operation; as loaded.
const ETHERNET_IPV4: u32 = u32::from_ne_bytes([0, 1, 8, 0]);
const REQUEST: u32 = u32::from_ne_bytes([6, 4, 0, 1]);
const REPLY: u32 = u32::from_ne_bytes([6, 4, 0, 2]);

/// Answers a request; lets everything else pass. Announcements of a VIP by someone else (its own sender asks for it, RFC
/// 5227, section 3) pass, too: the agent listens behind us.
#[inline(never)]
pub(crate) fn answer<P: Packet, T: Tables>(packet: &mut P, path: &Path<'_, T>, link: &Link) -> u64 {
    if path.tables.home() == Home::Tc {
        // Has been answered in the driver.
        return Verdict::NotOurs.pack();
    }
    let Some(arp) = packet.read::<[u32; 7]>(link.length) else {
        return Verdict::NotOurs.pack();
    };
    // The sender's MAC and address, the target's MAC (which a request leaves open) and address.
    let [kind, operation, mac_high, mac_sender, sender_mac, _, target] = arp;
    let sender = mac_sender >> 16 | sender_mac << 16;
    if kind != ETHERNET_IPV4 || operation != REQUEST || sender == target {
        return Verdict::NotOurs.pack();
    }
    let key = AnnouncedKey {
        ifindex: path.arrival(packet, link.length),
        address: V4(target),
    };
    let own = path.asked(&key, &link.macs, true);
    if own == NOT_ANNOUNCED {
        return Verdict::NotOurs.pack();
    }
    if own & GRANTED == 0 {
        return path.end(0, Reason::RejectLimited).pack();
    }
    path.tables.trace(Step::Announced {
        address: V4(target).to_addr(),
        mac: own & MAC,
    });
    let reply = [
        ETHERNET_IPV4,
        REPLY,
        own as u32,
        (own >> 32) as u32 & 0xffff | target << 16,
        target >> 16 | mac_high << 16,
        mac_high >> 16 | mac_sender << 16,
        sender,
    ];
    let written =
        packet.write(link.length, &reply) && packet.write(0, link.macs.back_from(own).as_header());
    path.answered(written).pack()
}
