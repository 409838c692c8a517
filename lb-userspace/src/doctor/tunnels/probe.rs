//! Asks another node's program by a socket of this node's: probes in, what became of them out.
#![expect(
    unsafe_code,
    reason = "options of UDP sockets that no crate here has: two calls with an int"
)]

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::fd::AsRawFd,
    time::Duration,
};

use lb_common::pipeline::probe::{self, LENGTH, OWN};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{Met, search::Search};
use crate::random;

/// How often a node is asked, and how long each time.
const TRIES: u32 = 3;
const PATIENCE: Duration = Duration::from_millis(300);

/// The same for one round of sizes, on a way that is known to be there and quick.
const SIZE_TRIES: u32 = 2;
const SIZE_PATIENCE: Duration = Duration::from_millis(120);

/// Ports that tunnels are sent from (RFC 8926, section 3.3): who lets only those through lets these through, too.
const PORTS: RangeInclusive<u16> = 0xc000..=0xffff;

/// Ports that are tried before the kernel is left to choose.
const MOST: usize = 256;

/// Bytes of IP and UDP headers.
const HEADERS4: u32 = 28;
const HEADERS6: u32 = 48;

/// `UDP_NO_CHECK6_TX` and `UDP_NO_CHECK6_RX` (linux/udp.h).
const NO_CHECK6_SENT: libc::c_int = 101;
const NO_CHECK6_RECEIVED: libc::c_int = 102;

/// What becomes of probes from the first address to the second, at a port. `spared`: own ports not to ask from. `mtu`: the
/// largest size that is of interest.
pub(super) async fn ask(
    ends: [IpAddr; 2],
    port: u16,
    spared: Option<RangeInclusive<u16>>,
    mtu: u32,
) -> Met {
    match try_ask(ends, port, spared, mtu).await {
        Ok(met) => met,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Met::Refusal,
        Err(error) => Met::Fault(error.to_string()),
    }
}

async fn try_ask(
    ends: [IpAddr; 2],
    port: u16,
    spared: Option<RangeInclusive<u16>>,
    mtu: u32,
) -> io::Result<Met> {
    let asking = Asking::open(ends, port, spared.as_ref())?;
    let smallest = asking.headers + LENGTH as u32;
    let begun = Instant::now();
    let sizes = BTreeSet::from([smallest]);
    let came = asking.try_sizes(&sizes, TRIES, PATIENCE).await?;
    if came.is_empty() {
        return asking.silent(&sizes).await;
    }
    let after = begun.elapsed();
    let patience = (after * 2).clamp(SIZE_PATIENCE, PATIENCE);
    let mut search = Search::new(smallest, mtu.max(smallest) + 1);
    let mut sizes = BTreeSet::from([mtu.max(smallest)]);
    while !sizes.is_empty() {
        let came = asking.try_sizes(&sizes, SIZE_TRIES, patience).await?;
        search.learn(&sizes, &came);
        sizes = search.sizes();
    }
    let most = search.fits;
    Ok(Met::Answer { after, most })
}

/// A socket from which one other node is asked.
struct Asking {
    socket: UdpSocket,
    /// [`HEADERS4`] or [`HEADERS6`].
    headers: u32,
    /// What our answers are known by.
    mark: [u8; OWN - 4],
}

impl Asking {
    fn open(
        [own, other]: [IpAddr; 2],
        port: u16,
        spared: Option<&RangeInclusive<u16>>,
    ) -> io::Result<Self> {
        let [mark, random] = random::key()?;
        let socket = bind(own, random as usize, spared)?;
        // As tunnelled packets are: never in fragments, whatever is known of the path, and without a checksum, which
        // somebody on the way may take amiss (RFC 6936).
        if own.is_ipv4() {
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
            switch(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, true)?;
        } else {
            set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
            switch(&socket, libc::SOL_UDP, NO_CHECK6_SENT, true)?;
            switch(&socket, libc::SOL_UDP, NO_CHECK6_RECEIVED, true)?;
        }
        socket.connect(SocketAddr::new(other, port))?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            headers: if own.is_ipv4() { HEADERS4 } else { HEADERS6 },
            mark: mark.to_ne_bytes(),
        })
    }

    /// What there is to say where no answer came. Over IPv6 stacks refuse nothing without a checksum, they drop it.
    async fn silent(&self, sizes: &BTreeSet<u32>) -> io::Result<Met> {
        if self.headers == HEADERS4 {
            return Ok(Met::Silence);
        }
        switch(&self.socket, libc::SOL_UDP, NO_CHECK6_SENT, false)?;
        let came = self.try_sizes(sizes, 1, PATIENCE).await?;
        Ok(if came.is_empty() {
            Met::Silence
        } else {
            Met::Fault("UDP without a checksum gets lost on the way over IPv6".to_owned())
        })
    }

    /// Which of the sizes came through: each is sent until it is answered.
    async fn try_sizes(
        &self,
        sizes: &BTreeSet<u32>,
        tries: u32,
        patience: Duration,
    ) -> io::Result<BTreeSet<u32>> {
        let mut came = BTreeSet::new();
        for _ in 0..tries {
            for size in sizes.difference(&came) {
                self.send(*size).await?;
            }
            let deadline = Instant::now() + patience;
            while came.len() < sizes.len() {
                let Ok(size) = timeout_at(deadline, self.receive()).await else {
                    break;
                };
                let size = size?;
                if sizes.contains(&size) {
                    came.insert(size);
                }
            }
        }
        Ok(came)
    }

    async fn send(&self, size: u32) -> io::Result<()> {
        let mut own = [0; OWN];
        let (mark, rest) = own.split_at_mut(self.mark.len());
        mark.copy_from_slice(&self.mark);
        rest.copy_from_slice(&size.to_be_bytes());
        let mut bytes = probe::question(own).to_vec();
        bytes.resize((size - self.headers) as usize, 0);
        match self.socket.send(&bytes).await {
            Err(error) if !is_by_size(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// The size that the next answer is about.
    async fn receive(&self) -> io::Result<u32> {
        // One byte more, so that what is longer is seen to be.
        let mut buffer = [0; LENGTH + 1];
        loop {
            let length = match self.socket.recv(&mut buffer).await {
                Ok(length) => length,
                Err(error) if is_by_size(&error) => continue,
                Err(error) => return Err(error),
            };
            let Some(own) = probe::answered(&buffer[..length]) else {
                continue;
            };
            if let Some((mark, size)) = own.split_last_chunk::<4>()
                && mark == self.mark
            {
                return Ok(u32::from_be_bytes(*size));
            }
        }
    }
}

/// Some device, here or on the way, does not carry a packet that large.
fn is_by_size(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// A socket at a free port among those of tunnels. An answer to one of `spared` would be taken for a reply to some flow;
/// real packets of tunnels go to another port, so that none is ever taken for an answer.
fn bind(
    own: IpAddr,
    random: usize,
    spared: Option<&RangeInclusive<u16>>,
) -> io::Result<std::net::UdpSocket> {
    let ports = PORTS.cycle().skip(random % PORTS.len()).take(MOST);
    let free = ports.filter(|port| !spared.is_some_and(|spared| spared.contains(port)));
    for port in free.chain([0]) {
        match std::net::UdpSocket::bind((own, port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            done => return done,
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

fn switch(
    socket: &impl AsRawFd,
    level: libc::c_int,
    option: libc::c_int,
    on: bool,
) -> io::Result<()> {
    let on = libc::c_int::from(on);
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: these options read an int, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
