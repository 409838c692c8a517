//! The task that keeps the facts true: a dump, then multicast messages, and a new dump after messages were lost or
//! where the kernel changes things without a word.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use netlink_packet_route::{
    RouteNetlinkMessage, address::AddressMessage, link::LinkMessage, neighbour::NeighbourMessage,
};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
    packet_core::{
        NLM_F_APPEND, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    sys::{AsyncSocket as _, SocketAddr},
};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use thiserror::Error;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{Facts, LocalPorts, Update, messages, messages::XdpSend, poke::poke};

/// Netlink failed.
#[derive(Error, Debug)]
pub enum SourceError {
    #[error("netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("netlink dump of {what}: {error}")]
    Dump {
        what: &'static str,
        error: rtnetlink::Error,
    },
    #[error("netlink socket closed by the kernel")]
    Closed,
}

/// The kernel's queue for us; the default of 208 KB overflows when a big table changes at once.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Dumps are this far apart at least.
const DUMP_PAUSE: Duration = Duration::from_millis(200);

/// And at most: some removals (routes of a deleted next-hop object) are never announced.
const DUMP_PERIOD: Duration = Duration::from_mins(1);

/// How often a dump is begun anew that something changed under, and how far apart.
const MOST_AGAIN: usize = 10;
const AGAIN_PAUSE: Duration = Duration::from_millis(5);

/// Updates that one batch holds at most.
const BATCH: usize = 1024;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Keeps facts true and neighbours resolved for as long as someone receives. What fails is begun anew, from a dump.
pub async fn follow(
    xdp_send: XdpSend,
    updates: mpsc::Sender<Vec<Update>>,
    mut pokes: mpsc::Receiver<Vec<(u32, IpAddr)>>,
) {
    let mut failures = Failures::default();
    loop {
        let run = async { Source::open(xdp_send)?.run(&updates, &mut pokes).await };
        match run.await {
            Ok(()) => return,
            Err(error) => {
                let pause = failures.pause(Instant::now());
                tracing::error!(%error, "the network's last known state holds; trying again in {pause:?}");
                sleep_until(Instant::now() + pause).await;
            }
        }
    }
}

/// Pauses that grow while failures come one after another.
#[derive(Default)]
struct Failures {
    last: Option<Instant>,
    pause: Duration,
}

impl Failures {
    fn pause(&mut self, now: Instant) -> Duration {
        const LONGEST: Duration = Duration::from_secs(10);
        let soon = self.last.is_some_and(|last| now < last + 4 * LONGEST);
        self.pause = if soon {
            LONGEST.min(self.pause * 2)
        } else {
            Duration::from_millis(100)
        };
        self.last = Some(now);
        self.pause
    }
}

/// One netlink socket.
struct Source {
    handle: Handle,
    messages: Messages,
    xdp_send: XdpSend,
}

impl Source {
    /// Needs `CAP_NET_ADMIN`, for a queue beyond the host's limit.
    fn open(xdp_send: XdpSend) -> Result<Self, SourceError> {
        let (mut connection, handle, messages) = new_multicast_connection(&GROUPS)?;
        set_socket_recv_buffer_size_force(connection.socket_mut().socket_mut(), RECEIVE_BUFFER)
            .map_err(std::io::Error::from)?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            messages,
            xdp_send,
        })
    }

    /// Sends everything, then what changes, until the receiver is gone: who starts takes the first batch for the whole.
    async fn run(
        mut self,
        updates: &mpsc::Sender<Vec<Update>>,
        pokes: &mut mpsc::Receiver<Vec<(u32, IpAddr)>>,
    ) -> Result<(), SourceError> {
        let mut dump_at = Instant::now();
        let mut dumped = None;
        loop {
            tokio::select! {
                () = sleep_until(dump_at) => {
                    let facts = dump(&self.handle, self.xdp_send).await?;
                    if updates.send(vec![Update::All(Box::new(facts))]).await.is_err() {
                        return Ok(());
                    }
                    dumped = Some(Instant::now());
                    dump_at = Instant::now() + DUMP_PERIOD;
                }
                Some(wanted) = pokes.recv() => {
                    for (ifindex, ip) in wanted {
                        poke(&mut self.handle, ifindex, ip).map_err(|_| SourceError::Closed)?;
                    }
                }
                // What comes before a dump tells of too little; it is told after it.
                message = self.messages.next(), if dumped.is_some() => {
                    let mut batch = Vec::new();
                    let mut doubtful = self.take(message, &mut batch)?;
                    while batch.len() < BATCH
                        && let Ok(message) = self.messages.try_recv()
                    {
                        doubtful |= self.take(Some(message), &mut batch)?;
                    }
                    if doubtful {
                        let earliest = dumped.map_or(Instant::now(), |at| at + DUMP_PAUSE);
                        dump_at = dump_at.min(earliest);
                    }
                    if !batch.is_empty() && updates.send(batch).await.is_err() {
                        return Ok(());
                    }
                }
                () = updates.closed() => return Ok(()),
            }
        }
    }

    /// Adds what a message changes to `batch`; true if a dump must tell the rest.
    fn take(
        &self,
        message: Option<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
        batch: &mut Vec<Update>,
    ) -> Result<bool, SourceError> {
        let (message, _) = message.ok_or(SourceError::Closed)?;
        let appended = message.header.flags & NLM_F_APPEND != 0;
        let inner = match message.payload {
            NetlinkPayload::InnerMessage(inner) => inner,
            NetlinkPayload::Overrun(_) => {
                tracing::warn!("netlink messages were lost; reading everything again");
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let Some(update) = messages::update(inner, self.xdp_send) else {
            return Ok(false);
        };
        let doubtful = match &update {
            // IPv4 routes go with their link or source address without a message; an IPv6 message tells of one way
            // of several.
            Update::Link(..) | Update::RemoveAddress(_) => true,
            Update::AddRoute(route) => appended || route.destination.addr().is_ipv6(),
            Update::RemoveRoute(route) => route.destination.addr().is_ipv6(),
            _ => false,
        };
        batch.push(update);
        Ok(doubtful)
    }
}

/// The facts of this moment, for those who ask once. Needs a tokio runtime and no privileges.
pub async fn snapshot(xdp_send: XdpSend) -> Result<Facts, SourceError> {
    let (connection, handle, _) = new_connection()?;
    let connection = tokio::spawn(connection);
    let facts = dump(&handle, xdp_send).await;
    connection.abort();
    facts
}

/// A dump that something changed under, as the kernel marks it, may lack what did not change, and nobody would tell of
/// that: it is begun anew, though not for ever.
async fn dump(handle: &Handle, xdp_send: XdpSend) -> Result<Facts, SourceError> {
    let mut again = 0;
    loop {
        let (facts, whole) = dump_once(handle, xdp_send).await?;
        if whole || again == MOST_AGAIN {
            return Ok(facts);
        }
        again += 1;
        sleep(AGAIN_PAUSE).await;
    }
}

/// True if nothing changed meanwhile (`nl_dump_check_consistent` in the kernel; links and addresses have it).
async fn dump_once(handle: &Handle, xdp_send: XdpSend) -> Result<(Facts, bool), SourceError> {
    let mut facts = Facts {
        local_ports: LocalPorts::read(),
        ..Facts::default()
    };
    let mut whole = true;
    for (what, request) in [
        (
            "links",
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
        ),
        (
            "addresses",
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        ),
        (
            "routes",
            RouteNetlinkMessage::GetRoute(RouteMessageBuilder::<Ipv4Addr>::new().build()),
        ),
        (
            "routes",
            RouteNetlinkMessage::GetRoute(RouteMessageBuilder::<Ipv6Addr>::new().build()),
        ),
        (
            "neighbours",
            RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
        ),
    ] {
        let failed = |error| SourceError::Dump { what, error };
        let mut request = NetlinkMessage::from(request);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = handle.clone().request(request).map_err(failed)?;
        while let Some(answer) = answers.next().await {
            whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => add(&mut facts, inner, xdp_send),
                NetlinkPayload::Error(error) => {
                    return Err(failed(rtnetlink::Error::NetlinkError(error)));
                }
                _ => {}
            }
        }
    }
    Ok((facts, whole))
}

fn add(facts: &mut Facts, message: RouteNetlinkMessage, xdp_send: XdpSend) {
    match message {
        RouteNetlinkMessage::NewLink(link) => facts.links.extend(messages::link(link, xdp_send)),
        RouteNetlinkMessage::NewAddress(address) => {
            facts.addresses.extend(messages::address(&address));
        }
        RouteNetlinkMessage::NewRoute(route) => {
            if let Some(route) = messages::route(route) {
                facts.routes.insert(route);
            }
        }
        RouteNetlinkMessage::NewNeighbour(neighbour) => {
            if let Some((index, ip, Some(neighbour))) = messages::neighbour(&neighbour) {
                facts.neighbours.insert((index, ip), neighbour);
            }
        }
        _ => {}
    }
}
