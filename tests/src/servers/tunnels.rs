//! The kernel's own tunnel devices on a backend: what a user of mode `ipip` sets up (modules `ipip`, `sit` and
//! `ip6_tunnel`).

use anyhow::Result;

use crate::topology::Host;

/// Takes either family out of either family, from any sender.
pub fn open(host: &Host) -> Result<()> {
    let (v4, v6) = (host.v4, host.v6);
    host.netns.ip([
        &*format!("link add dec44 type ipip mode ipip local {v4}"),
        &*format!("link add dec64 type sit mode ip6ip local {v4}"),
        &*format!("link add dec6 type ip6tnl mode any local {v6}"),
    ])?;
    for device in ["dec44", "dec64", "dec6"] {
        host.netns.ip([&*format!("link set {device} up")])?;
        // The reply leaves by another device than the one the packet came in by.
        host.netns
            .sysctl(&format!("net.ipv4.conf.{device}.rp_filter"), "0")?;
    }
    Ok(())
}
