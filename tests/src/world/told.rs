//! The world as an agent would tell of it.

use std::net::SocketAddr;

use lb_userspace::state;

use super::{BACKENDS, FRONTENDS, MEMBERS, NAMES, SERVICE_OF, TABLE, addr};

/// All services, with their frontends and backends.
pub fn services() -> Vec<state::Service> {
    let services = NAMES.into_iter().zip(MEMBERS).zip(1..);
    services
        .map(|((name, members), index)| state::Service {
            name: name.to_owned(),
            mode: members.first().map_or("l2", |id| mode(*id)).to_owned(),
            affinity: None,
            source_ranges: Vec::new(),
            frontends: frontends(index),
            backends: (0..)
                .zip(members)
                .map(|(ordinal, id)| backend(index, ordinal, *id, members.len()))
                .collect(),
            left_out: Vec::new(),
        })
        .collect()
}

fn mode(id: u32) -> &'static str {
    BACKENDS[id as usize - 1].0.name()
}

fn frontends(service: u32) -> Vec<state::Frontend> {
    let all = FRONTENDS.into_iter().zip(SERVICE_OF).zip(1..);
    let own = all.filter(|((_, of), _)| *of == service);
    own.map(|(((address, port, protocol), _), id)| state::Frontend {
        address: SocketAddr::new(addr(address).to_ip(), port),
        protocol: if protocol == 6 {
            state::Protocol::Tcp
        } else {
            state::Protocol::Udp
        },
        id,
        service,
        rules: None,
    })
    .collect()
}

fn backend(service: u32, ordinal: u16, id: u32, members: usize) -> state::Backend {
    let table: u32 = if members == 1 { 1 } else { 1 << TABLE };
    let owned = (0..table).filter(|slot| slot % members as u32 == u32::from(ordinal));
    state::Backend {
        address: SocketAddr::new(addr(BACKENDS[id as usize - 1].1).to_ip(), 8080),
        service,
        ordinal,
        id,
        weight: 100,
        mode: BACKENDS[id as usize - 1].0.name().to_owned(),
        state: state::BackendState::Ready,
        since: 0,
        slots: owned.count() as u32,
        table,
        path: None,
        origin: None,
    }
}
