//! An XDP program of two instructions that passes every packet, loaded by hand so that nothing of ours is in it.
//!
//! It is the stranger on an interface that the balancer must not replace, and it is what makes a veth take frames that
//! its peer sends by `XDP_TX`: with NAPI (GRO) but without a program they lie in the ring until an ordinary packet comes
//! along (`veth_xdp_flush` looks for a program; measured on 6.18: 40 ms a request).

#![expect(
    unsafe_code,
    reason = "bpf() has no safe wrapper for a program without an ELF file"
)]

use std::{
    io::{Error, Result},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::Context as _;

use crate::netns::Netns;

pub(crate) const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;

/// Stays attached until dropped.
#[derive(Debug)]
pub struct PassProgram {
    _link: OwnedFd,
}

impl PassProgram {
    /// Attaches the program to `device` in native mode.
    pub fn attach(netns: &Netns, device: &str) -> anyhow::Result<Self> {
        let program = load_pass()?;
        let mut ip = std::process::Command::new("ip");
        let shown = netns.run(ip.args(["-o", "link", "show", "dev", device]))?;
        let index = shown
            .split(':')
            .next()
            .and_then(|index| index.parse().ok())
            .context(shown.clone())?;
        Ok(Self {
            _link: netns.enter(|| create_link(&program, index))?,
        })
    }
}

/// `r0 = XDP_PASS; exit`
fn load_pass() -> Result<OwnedFd> {
    let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let licence = c"MIT";
    let mut attributes = [0_u64; 16];
    attributes[0] = u64::from(PROG_TYPE_XDP) | 2 << 32;
    attributes[1] = instructions.as_ptr() as u64;
    attributes[2] = licence.as_ptr() as u64;
    bpf(PROG_LOAD, &attributes)
}

fn create_link(program: &OwnedFd, interface: u32) -> Result<OwnedFd> {
    let mut attributes = [0_u64; 16];
    attributes[0] = program.as_raw_fd() as u64 | u64::from(interface) << 32;
    attributes[1] = u64::from(ATTACH_TYPE_XDP);
    bpf(LINK_CREATE, &attributes)
}

pub(crate) fn bpf(command: libc::c_long, attributes: &[u64; 16]) -> Result<OwnedFd> {
    let size = size_of_val(attributes);
    // SAFETY: the attributes are valid for `size` bytes, and what they point to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: both commands return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
