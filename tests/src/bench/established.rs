//! Connections that are established when packets are measured.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_common::{
    abi::{Flow, Hop, Mode, Tuple, flow_state, owner},
    bytes::{Addr, Address, Be16, V4, V6},
    hash,
};

use super::contents::{BACKENDS, Kind, LOG2_SLOTS, PORT, TCP, slot};
use crate::kernel::{self, Kernel};

/// Enters connections to the service of a kind, as the program would have with its backends in this mode: `flows` of them,
/// numbered as [`super::frames::Fresh`] numbers its sources, from `client` on.
pub(super) fn enter(
    kernel: &Kernel,
    kind: Kind,
    mode: Mode,
    client: IpAddr,
    flows: u32,
    now: u32,
) -> Result<()> {
    if client.is_ipv4() {
        enter_into::<V4>(kernel, "FLOWS4", kind, mode, client, flows, now)
    } else {
        enter_into::<V6>(kernel, "FLOWS6", kind, mode, client, flows, now)
    }
}

/// What an established connection's entry says.
const fn state(mode: Mode) -> u32 {
    match mode {
        Mode::Local => flow_state::LOCAL,
        _ => 0,
    }
}

/// An address with other last bytes.
fn ending(client: IpAddr, end: [u8; 2]) -> IpAddr {
    match client {
        IpAddr::V4(client) => {
            let [a, b, ..] = client.octets();
            [a, b, end[0], end[1]].into()
        }
        IpAddr::V6(client) => {
            let mut octets = client.octets();
            octets[14..].copy_from_slice(&end);
            octets.into()
        }
    }
}

fn enter_into<A: Address>(
    kernel: &Kernel,
    map: &str,
    kind: Kind,
    mode: Mode,
    client: IpAddr,
    flows: u32,
    now: u32,
) -> Result<()>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    let pin = MapData::from_pin(kernel.folder.join(map))?;
    let mut entries: HashMap<_, Tuple<A>, Flow<A>> = Map::LruHashMap(pin).try_into()?;
    let address = |ip: IpAddr| A::from_addr(&Addr::from(ip));
    for number in 0..flows {
        let [p0, p1, end @ ..] = number.to_le_bytes();
        let key = Tuple {
            source: address(ending(client, end)),
            destination: address(kind.vip().ip()),
            source_port: Be16::from_raw(u16::from_ne_bytes([p0, p1])),
            destination_port: Be16::new(PORT),
            protocol: TCP,
            pad: [0; 3],
        };
        let hash = hash::flow(&kernel::settings().hash_key, &key);
        let at = hash as u32 & ((1 << LOG2_SLOTS) - 1);
        let ordinal = u32::from(owner(slot(at), 0));
        let mut flow = Flow {
            source: key.source,
            destination: key.destination,
            source_port: key.source_port,
            destination_port: key.destination_port,
            hop: Hop::default(),
            backend: 1 + kind as u32 * BACKENDS + ordinal,
            generation: 1,
            frontend: kind.frontend(),
            seen: now,
            resolved: now,
            isn: 0,
            state: state(mode),
        };
        flow.destination = address(kind.backend(ordinal));
        if mode == Mode::Nat {
            flow.source = address(kind.source());
            flow.source_port = Be16::new(61_000 + (number / BACKENDS % 4000) as u16);
        }
        entries
            .insert(key, flow, 0)
            .with_context(|| map.to_owned())?;
    }
    Ok(())
}
