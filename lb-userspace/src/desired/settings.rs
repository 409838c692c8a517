//! What holds for every packet.

use lb_common::{
    abi::{Settings, Tunnel, setting_flag},
    bytes::Be16,
};

use crate::{cluster::keys::Keys, config::Config};

/// New established flows per second and CPU: a bound on what a flood of real clients can push out of the flow tables,
/// far above what a CPU can establish otherwise.
const FLOW_RATE: u32 = 2_000_000;

/// First fragments per second and CPU. A flood of them turns the table of 8192 over in 160 ms, far longer than the
/// fragments of a datagram are apart.
const FRAGMENT_RATE: u32 = 50_000;

/// The settings of `config`. `hash_key` is the config's key or the one that the agent keeps, `hz` the kernel's jiffies
/// per second. Without `keys` there are no tunnels; `mtu` is the smallest of the uplinks'.
pub fn settings(
    config: &Config,
    hash_key: [u64; 2],
    keys: Option<&Keys>,
    mtu: u32,
    hz: u32,
    bypass: bool,
) -> Settings {
    let (first, last) = (config.nat.ports.start(), config.nat.ports.end());
    let mut settings = Settings {
        hash_key,
        flags: if bypass { setting_flag::BYPASS } else { 0 },
        hz,
        nat_ports: u32::from(*first) | u32::from(*last) << 16,
        reject_rate: config.rejects.per_second,
        reject_burst: config.rejects.per_second,
        flow_rate: FLOW_RATE,
        flow_burst: FLOW_RATE / 10,
        fragment_rate: FRAGMENT_RATE,
        fragment_burst: FRAGMENT_RATE / 10,
        ..Settings::default()
    };
    if let Some(keys) = keys {
        settings.tunnel = Tunnel::new(Be16::new(config.tunnel_port), keys.current).0;
        settings.mtu = mtu;
        keys.write(&mut settings);
    }
    settings
}
