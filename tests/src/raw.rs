//! Frames made by hand, sent out of an interface as they are.
#![expect(unsafe_code, reason = "packet sockets have no safe wrapper")]

use std::{
    io::Error,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// Sends a frame, Ethernet header first, out of `device`.
pub fn send(netns: &Netns, device: &str, frame: &[u8]) -> Result<()> {
    let shown = netns.run(Command::new("ip").args(["-o", "link", "show", "dev", device]))?;
    let index = shown.split(':').next().and_then(|index| index.parse().ok());
    let index: i32 = index.context(shown)?;
    netns.enter(|| {
        // SAFETY: takes integers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let to = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: frame and address are valid for the lengths given.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if sent < 0 {
            return Err(Error::last_os_error());
        }
        Ok(())
    })?;
    Ok(())
}
