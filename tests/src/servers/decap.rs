//! Takes IP packets out of IP packets: what a backend of mode `ipip` does with a kernel tunnel device.
//!
//! Raw sockets receive protocol 4 and 41 in IPv4 and in IPv6; what they carry goes, untouched, into a tun device, from
//! where the stack takes it like any packet from a wire: header and checksums are checked there.

#![expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
};

use anyhow::{Context as _, Result};
use rustix::{
    io::retry_on_intr,
    net::{AddressFamily, Protocol, RecvFlags, SocketType, ipproto, recv, socket, sockopt},
};

/// Unpacks into the tun device `device` (made here) until killed.
pub fn unpack(device: &str) -> Result<()> {
    let tun = open_tun(device)?;
    let mut sockets = Vec::new();
    for outer in [AddressFamily::INET, AddressFamily::INET6] {
        for inner in [ipproto::IPIP, ipproto::IPV6] {
            sockets.push((raw_socket(outer, inner)?, outer == AddressFamily::INET));
        }
    }
    thread::scope(|scope| {
        for (socket, has_header) in &sockets {
            scope.spawn(|| forward(socket, *has_header, &tun));
        }
    });
    Ok(())
}

/// An IPv4 raw socket receives the outer header too, an IPv6 one does not.
fn forward(socket: &OwnedFd, has_header: bool, mut tun: &File) {
    let mut packet = vec![0; 65_536];
    loop {
        let Ok((length, _)) = retry_on_intr(|| recv(socket, &mut *packet, RecvFlags::empty()))
        else {
            continue;
        };
        let start = if has_header {
            usize::from(packet[0] & 0xf) * 4
        } else {
            0
        };
        // What is no IP packet the device refuses.
        drop(tun.write_all(&packet[start..length]));
    }
}

fn raw_socket(family: AddressFamily, protocol: Protocol) -> Result<OwnedFd> {
    let socket = socket(family, SocketType::RAW, Some(protocol)).context("raw socket")?;
    sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20)?;
    Ok(socket)
}

fn open_tun(device: &str) -> Result<File> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: ifreq is plain old data, for which all zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("tun device");
    }
    Ok(tun)
}
