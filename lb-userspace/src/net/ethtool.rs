//! A device's driver and its offloads, by the ioctl of ethtool (linux/ethtool.h). Devices are those of the calling
//! thread's network namespace, other than in sysfs, which shows those of its mount.
#![expect(
    unsafe_code,
    reason = "an ioctl that takes an address of a buffer; the buffer lives across the call"
)]

use std::{io, os::fd::AsRawFd as _};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};

/// `SIOCETHTOOL`
const REQUEST: libc::Ioctl = 0x8946;

const GET_DRIVER: u32 = 0x03;
const GET_STRINGS: u32 = 0x1b;
const GET_SET_SIZES: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const GET_CHANNELS: u32 = 0x3c;
const SET_FEATURES: u32 = 0x3b;

/// `ETH_SS_FEATURES`
const FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`
const NAME: usize = 32;

/// What a device does for the stack before XDP sees a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Offload {
    /// Merges the segments of a flow, beyond what a packet can be.
    Lro,
    /// The same in hardware, so that it can be undone.
    GroHw,
    /// Takes VLAN tags out of the frames.
    RxVlan,
}

impl Offload {
    pub const ALL: [Self; 3] = [Self::Lro, Self::GroHw, Self::RxVlan];

    /// As the kernel names it.
    const fn feature(self) -> &'static str {
        match self {
            Self::Lro => "rx-lro",
            Self::GroHw => "rx-gro-hw",
            Self::RxVlan => "rx-vlan-hw-parse",
        }
    }

    /// As `ethtool -K` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lro => "lro",
            Self::GroHw => "rx-gro-hw",
            Self::RxVlan => "rxvlan",
        }
    }
}

/// How an offload stands.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Switch {
    pub on: bool,
    /// It can be changed.
    pub free: bool,
}

/// The driver of `interface`; empty where the device does not say.
pub fn driver(interface: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: the command, five names of 32 bytes, 12 bytes reserved, five numbers.
    let mut buffer = [0u32; 49];
    buffer[0] = GET_DRIVER;
    match ioctl(interface, &mut buffer) {
        Err(error) if unsupported(&error) => Ok(String::new()),
        Err(error) => Err(error),
        Ok(_) => Ok(text(&buffer[1..9])),
    }
}

/// Channels of `interface` in use, and how many there may be; None where the driver does not say.
pub fn channels(interface: &str) -> io::Result<Option<(u32, u32)>> {
    // struct ethtool_channels: the command; most of receiving, sending, other and combined ones; how many of each.
    let mut buffer = [0u32; 9];
    buffer[0] = GET_CHANNELS;
    match ioctl(interface, &mut buffer) {
        Err(error) if unsupported(&error) => Ok(None),
        Err(error) => Err(error),
        Ok(_) => Ok((buffer[4] > 0).then_some((buffer[8], buffer[4]))),
    }
}

/// How `offload` stands on `interface`; off and not free where the kernel does not know it.
pub fn offload(interface: &str, offload: Offload) -> io::Result<Switch> {
    let Some(place) = Place::of(interface, offload)? else {
        return Ok(Switch::default());
    };
    // struct ethtool_gfeatures: command, blocks; available, requested, active, never changed of each block.
    let mut buffer = vec![0u32; 2 + 4 * place.blocks];
    (buffer[0], buffer[1]) = (GET_FEATURES, place.blocks as u32);
    ioctl(interface, &mut buffer)?;
    let words = &buffer[2 + 4 * place.block..];
    let set = |word: u32| word & place.bit != 0;
    Ok(Switch {
        on: set(words[2]),
        free: set(words[0]) && !set(words[3]),
    })
}

/// Switches an offload.
///
/// # Errors
/// The kernel's; also where it said yes and did otherwise.
pub fn switch(interface: &str, which: Offload, on: bool) -> io::Result<()> {
    let unknown = || io::Error::other(format!("{interface} has no {}", which.name()));
    let Place { blocks, block, bit } = Place::of(interface, which)?.ok_or_else(unknown)?;
    // struct ethtool_sfeatures: command, blocks (all of them); valid, requested of each block.
    let mut buffer = vec![0u32; 2 + 2 * blocks];
    (buffer[0], buffer[1]) = (SET_FEATURES, blocks as u32);
    buffer[2 + 2 * block] = bit;
    buffer[3 + 2 * block] = if on { bit } else { 0 };
    ioctl(interface, &mut buffer)?;
    if offload(interface, which)?.on != on {
        return Err(io::Error::other(format!(
            "the driver of {interface} does not let go of {}",
            which.name()
        )));
    }
    Ok(())
}

/// Where a feature's bit is.
struct Place {
    blocks: usize,
    block: usize,
    bit: u32,
}

impl Place {
    fn of(interface: &str, offload: Offload) -> io::Result<Option<Self>> {
        // struct ethtool_sset_info: command, reserved, a mask of the sets asked for (64 bits), their sizes.
        let mut sizes = [GET_SET_SIZES, 0, 1 << FEATURES, 0, 0];
        ioctl(interface, &mut sizes)?;
        let count = sizes[4] as usize;
        // struct ethtool_gstrings: command, set, count, names.
        let mut names = vec![0u32; 3 + count * NAME / 4];
        (names[0], names[1], names[2]) = (GET_STRINGS, FEATURES, count as u32);
        ioctl(interface, &mut names)?;
        let mut names = names[3..].chunks_exact(NAME / 4);
        let index = names.position(|name| text(name) == offload.feature());
        Ok(index.map(|index| Self {
            blocks: count.div_ceil(32),
            block: index / 32,
            bit: 1 << (index % 32),
        }))
    }
}

/// Characters up to the first zero.
fn text(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

/// `buffer` begins with a command and has the size that the command reads and writes.
fn ioctl(interface: &str, buffer: &mut [u32]) -> io::Result<i32> {
    let mut name = [0u8; libc::IFNAMSIZ];
    let length = interface.len();
    if length >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    name[..length].copy_from_slice(interface.as_bytes());
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request = libc::ifreq {
        ifr_name: name.map(|byte| byte as libc::c_char),
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: buffer.as_mut_ptr().cast(),
        },
    };
    // SAFETY: the request names a buffer of the size that its command works on; both live across the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), REQUEST, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
