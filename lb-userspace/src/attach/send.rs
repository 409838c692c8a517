//! Whether XDP can send on a device.

use super::netlink;

/// Kinds of software devices whose driver takes frames from XDP (`ndo_xdp_xmit`).
const SENDING_KINDS: [&str; 4] = ["veth", "tun", "bond", "netkit"];

/// Whether a frame can be redirected to this interface by XDP: best effort, by what kind of device it is. Hardware
/// without a kind is believed to; a driver that cannot shows as drops at the device.
pub fn xdp_send(ifindex: u32) -> bool {
    let Ok(interfaces) = netlink::interfaces() else {
        return false;
    };
    interfaces
        .iter()
        .find(|interface| interface.index == ifindex)
        .is_some_and(|interface| match &interface.kind {
            Some(kind) => SENDING_KINDS.contains(&kind.as_str()),
            None => !interface.loopback,
        })
}
