//! Frames in and out of the host's interfaces, by packet sockets. They are opened once, at the start: `CAP_NET_RAW` is
//! needed for that alone.
#![expect(
    unsafe_code,
    reason = "packet sockets have no safe wrapper: their addresses and filters are C structs"
)]

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use libc::{ETH_P_ARP, ETH_P_IPV6, sock_filter, sock_fprog, sockaddr_ll};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};

use super::{Claim, Send, frames};

/// Instructions of a socket filter (`linux/bpf_common.h`): load a word, a half word or a byte of the frame; copy to the
/// index register; compare; return.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const COPY: u16 = 0x07;
const EQUALS_INDEX: u16 = 0x1d;
const EQUALS: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALL: u32 = 128;

/// ARP replies, and packets whose sender and target address are the same.
const ARP_CLAIMS: [sock_filter; 8] = [
    step(LOAD_WORD, 0, 0, 28),
    step(COPY, 0, 0, 0),
    step(LOAD_WORD, 0, 0, 38),
    step(EQUALS_INDEX, 2, 0, 0),
    step(LOAD_HALF, 0, 0, 20),
    step(EQUALS, 0, 1, 2),
    step(RETURN, 0, 0, ALL),
    step(RETURN, 0, 0, 0),
];

/// Neighbour advertisements.
const IPV6_CLAIMS: [sock_filter; 6] = [
    step(LOAD_BYTE, 0, 0, 20),
    step(EQUALS, 0, 3, 58),
    step(LOAD_BYTE, 0, 0, 54),
    step(EQUALS, 0, 1, 136),
    step(RETURN, 0, 0, ALL),
    step(RETURN, 0, 0, 0),
];

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// The sending side.
#[derive(Debug)]
pub struct Packets {
    /// For all frames: the protocol of a packet socket says what it receives.
    socket: OwnedFd,
}

/// The listening side.
#[derive(Debug)]
pub struct Listener {
    arp: AsyncFd<OwnedFd>,
    ipv6: AsyncFd<OwnedFd>,
}

impl Packets {
    /// Opens both sides, in the network namespace of the calling thread. Needs `CAP_NET_RAW`, and a tokio runtime.
    pub fn open() -> io::Result<(Self, Listener)> {
        let listening = |protocol, filter| -> io::Result<_> {
            let socket = socket(protocol)?;
            attach(&socket, filter)?;
            // SAFETY: the descriptor is owned, so it stays open and the same for as long as it is registered.
            Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
        };
        let listener = Listener {
            arp: listening(ETH_P_ARP, &ARP_CLAIMS[..])?,
            ipv6: listening(ETH_P_IPV6, &IPV6_CLAIMS[..])?,
        };
        // Protocol 0: receives nothing.
        let socket = socket(0)?;
        Ok((Self { socket }, listener))
    }

    /// Says it.
    ///
    /// # Errors
    /// The interface is gone or down, or its queue is full: what matters is said again.
    pub fn send(&self, send: &Send) -> io::Result<()> {
        for frame in frames::frames(send) {
            let mut to = address();
            to.sll_ifindex = send.ifindex as i32;
            to.sll_halen = 6;
            to.sll_addr[..6].copy_from_slice(&frame[..6]);
            // SAFETY: frame and address are valid for the lengths given.
            let sent = unsafe {
                libc::sendto(
                    self.socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw const to).cast(),
                    size_of::<sockaddr_ll>() as u32,
                )
            };
            if sent < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

impl Listener {
    /// Tells of every claim until nobody listens.
    ///
    /// # Errors
    /// A socket failed for good.
    pub async fn run(self, claims: mpsc::Sender<Claim>) -> io::Result<()> {
        loop {
            let claim = tokio::select! {
                claim = next(&self.arp) => claim?,
                claim = next(&self.ipv6) => claim?,
                () = claims.closed() => return Ok(()),
            };
            if claims.send(claim).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// The next claim; what is none of another host's is skipped.
async fn next(socket: &AsyncFd<OwnedFd>) -> io::Result<Claim> {
    loop {
        let received = socket.async_io(Interest::READABLE, receive).await;
        match received {
            Ok(Some(claim)) => return Ok(claim),
            Ok(None) => {}
            // An interface went down under a packet; the socket stays.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => return Err(error),
        }
    }
}

fn receive(socket: &OwnedFd) -> io::Result<Option<Claim>> {
    let mut frame = [0u8; ALL as usize];
    let mut from = address();
    let mut length = size_of::<sockaddr_ll>() as u32;
    // SAFETY: buffer and address are valid for the lengths given.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            frame.as_mut_ptr().cast(),
            frame.len(),
            0,
            (&raw mut from).cast(),
            &raw mut length,
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // Our own, and those of VLANs that this host is not in.
    if matches!(
        from.sll_pkttype,
        libc::PACKET_OUTGOING | libc::PACKET_OTHERHOST
    ) {
        return Ok(None);
    }
    let claim = frames::claim(&frame[..received.min(frame.len())]);
    Ok(claim.map(|(address, mac)| Claim {
        ifindex: from.sll_ifindex as u32,
        address,
        mac,
    }))
}

fn socket(protocol: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let protocol = i32::from((protocol as u16).to_be());
    // SAFETY: takes integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(socket: &OwnedFd, filter: &[sock_filter]) -> io::Result<()> {
    let program = sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, whose steps outlive the call.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<sock_fprog>() as u32,
        )
    };
    if attached < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn address() -> sockaddr_ll {
    sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}
