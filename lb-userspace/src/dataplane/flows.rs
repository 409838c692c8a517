//! What the packet path remembers, read for people: one row a flow, though each has two entries.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
};

use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use lb_common::{
    abi::{Flow, Mode, Tuple, flow_state},
    bytes::{Address, V4, V6},
};

use super::{
    open::{self, OpenError},
    syscall::{self, Batch},
};

/// Entries that one system call reads at most; more than any bucket holds.
const BATCH: usize = 4096;

/// A flow as its client's packets see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowRow {
    /// IP protocol number.
    pub protocol: u8,
    pub client: SocketAddr,
    pub frontend: SocketAddr,
    pub backend: SocketAddr,
    /// Address and port that the backend sees: own ones in `nat`, the client's in other modes.
    pub nat: SocketAddr,
    pub mode: Mode,
    pub state: FlowState,
    /// Jiffies since a recent packet of the client; exact to a quarter of a second.
    pub idle: u32,
    /// Ids in `BACKENDS` and of the frontend.
    pub backend_id: u32,
    pub frontend_id: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowState {
    /// The client has not shown yet that it sees the replies.
    Half,
    Established,
    /// A FIN or RST was seen in either direction.
    Closing,
}

/// The flow tables, opened beside the program that writes them.
#[derive(Debug)]
pub struct Flows {
    v4: Family<V4>,
    v6: Family<V6>,
}

#[derive(Debug)]
struct Family<A: Address> {
    established: Table<A>,
    half_open: Table<A>,
}

struct Table<A: Address> {
    data: MapData,
    map: HashMap<MapData, Tuple<A>, Flow<A>>,
}

impl Flows {
    /// `folder` is that of the pinned maps.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            v4: Family {
                established: Table::open(folder, "FLOWS4")?,
                half_open: Table::open(folder, "HALF_OPEN4")?,
            },
            v6: Family {
                established: Table::open(folder, "FLOWS6")?,
                half_open: Table::open(folder, "HALF_OPEN6")?,
            },
        })
    }

    /// Calls `visit` for every flow, until it says false. Flows that come and go meanwhile may be missed or come twice.
    /// `now`: the kernel's jiffies.
    pub fn each(&self, now: u32, mut visit: impl FnMut(&FlowRow) -> bool) -> io::Result<()> {
        if self.v4.each(now, &mut visit)? {
            self.v6.each(now, &mut visit)?;
        }
        Ok(())
    }

    /// Removes both entries of a flow. One that is gone already is no error.
    pub fn remove(&mut self, row: &FlowRow) -> io::Result<()> {
        match row.client.ip() {
            IpAddr::V4(_) => self.v4.remove(row),
            IpAddr::V6(_) => self.v6.remove(row),
        }
    }
}

impl<A: Address + 'static> Family<A>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    fn each(&self, now: u32, visit: &mut dyn FnMut(&FlowRow) -> bool) -> io::Result<bool> {
        for (table, half) in [(&self.established, false), (&self.half_open, true)] {
            let mut from = None;
            loop {
                let batch: Batch<Tuple<A>, Flow<A>> =
                    syscall::lookup_batch(table.data.fd().as_fd(), from, BATCH)?;
                for (tuple, flow) in batch.keys.iter().zip(&batch.values) {
                    if flow.state & flow_state::REPLY == 0
                        && !visit(&table.row(tuple, flow, half, now))
                    {
                        return Ok(false);
                    }
                }
                match batch.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
        }
        Ok(true)
    }

    fn remove(&mut self, row: &FlowRow) -> io::Result<()> {
        let forward = tuple::<A>(row.client, row.frontend, row.protocol);
        let reply = tuple::<A>(row.backend, row.nat, row.protocol);
        for table in [&mut self.established, &mut self.half_open] {
            for key in [&forward, &reply] {
                match table.map.remove(key).map_err(open::io_error) {
                    Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

impl<A: Address + 'static> Table<A>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    fn open(folder: &Path, name: &'static str) -> Result<Self, OpenError> {
        Ok(Self {
            data: open::map(folder, name)?.0,
            map: open::hash(folder, name)?,
        })
    }

    fn row(&self, tuple: &Tuple<A>, flow: &Flow<A>, half: bool, now: u32) -> FlowRow {
        let ended = flow_state::FIN | flow_state::RST;
        let state = if half {
            FlowState::Half
        } else if flow.state & ended != 0 || self.opposite_state(tuple, flow) & ended != 0 {
            FlowState::Closing
        } else {
            FlowState::Established
        };
        FlowRow {
            protocol: tuple.protocol,
            client: socket(tuple.source, tuple.source_port.to_host()),
            frontend: socket(tuple.destination, tuple.destination_port.to_host()),
            backend: socket(flow.destination, flow.destination_port.to_host()),
            nat: socket(flow.source, flow.source_port.to_host()),
            mode: mode(flow.state),
            state,
            idle: now.wrapping_sub(flow.seen),
            backend_id: flow.backend,
            frontend_id: flow.frontend,
        }
    }

    /// State bits of the entry for the other direction; none if it is lost.
    fn opposite_state(&self, tuple: &Tuple<A>, flow: &Flow<A>) -> u32 {
        self.map
            .get(&flow.opposite(tuple.protocol), 0)
            .map_or(0, |opposite| opposite.state)
    }
}

impl<A: Address> std::fmt::Debug for Table<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

/// `pass` and `dsr` keep an entry for UDP only.
const fn mode(state: u32) -> Mode {
    if state & flow_state::LOCAL != 0 {
        Mode::Local
    } else if state & flow_state::PASSED != 0 {
        Mode::Pass
    } else if state & flow_state::SENT != 0 {
        Mode::Dsr
    } else {
        Mode::Nat
    }
}

fn socket<A: Address>(address: A, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_addr().to_ip(), port)
}

fn tuple<A: Address>(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Tuple<A> {
    Tuple {
        source: A::from_addr(&source.ip().into()),
        destination: A::from_addr(&destination.ip().into()),
        source_port: lb_common::bytes::Be16::new(source.port()),
        destination_port: lb_common::bytes::Be16::new(destination.port()),
        protocol,
        pad: [0; 3],
    }
}
