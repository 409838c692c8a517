//! Frames as they are: made by hand and sent out of an interface, and seen at one.
#![expect(unsafe_code, reason = "packet sockets have no safe wrapper")]

use std::{
    io::{Error, ErrorKind},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow};

use crate::netns::Netns;

/// An interface that frames, Ethernet header first, are sent out of.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    index: i32,
}

impl Wire {
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        let (socket, index) = socket(netns, device)?;
        Ok(Self { socket, index })
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let to = at(self.index, 0);
        // SAFETY: frame and address are valid for the lengths given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if sent < 0 {
            return Err(Error::last_os_error().into());
        }
        Ok(())
    }
}

/// What comes to the stack by an interface, behind an XDP program there, and what leaves by it, behind those of tc.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
}

impl Tap {
    /// Sees all frames from now on.
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        let (socket, index) = socket(netns, device)?;
        let everything = at(index, (libc::ETH_P_ALL as u16).to_be());
        // SAFETY: the address is valid for the length given.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const everything).cast(),
                size_of_val(&everything) as u32,
            )
        };
        if bound < 0 {
            return Err(Error::last_os_error().into());
        }
        Ok(Self { socket })
    }

    /// The next frame, if one has come.
    pub fn next(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 65_536];
        // SAFETY: the buffer is valid for its length.
        let length = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            let error = Error::last_os_error();
            return match error.kind() {
                ErrorKind::WouldBlock => Ok(None),
                _ => Err(error.into()),
            };
        };
        frame.truncate(length);
        Ok(Some(frame))
    }
}

/// A packet socket that nothing comes to yet, and an interface's index.
fn socket(netns: &Netns, device: &str) -> Result<(OwnedFd, i32)> {
    let shown = link(netns, device)?;
    let index = shown.split(':').next().and_then(|index| index.parse().ok());
    let index = index.context(shown)?;
    let socket = netns.enter(|| {
        // SAFETY: takes integers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })?;
    Ok((socket, index))
}

fn at(index: i32, protocol: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// The MAC of an interface, as `ip` writes it.
pub fn mac(netns: &Netns, device: &str) -> Result<String> {
    let shown = link(netns, device)?;
    let mut words = shown
        .split_whitespace()
        .skip_while(|word| *word != "link/ether");
    words.nth(1).map(str::to_owned).context(shown.clone())
}

/// The bytes of what [`mac`] gives.
pub fn mac_bytes(text: &str) -> Result<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| anyhow!("{text} is no MAC"))
}

fn link(netns: &Netns, device: &str) -> Result<String> {
    netns.run(Command::new("ip").args(["-o", "link", "show", "dev", device]))
}
