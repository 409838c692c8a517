//! Programs and maps of the bench's own, by bpf(2): aya loads from ELF files only.
#![expect(
    unsafe_code,
    reason = "bpf(2) takes addresses as integers; each caller below owns the buffers it names"
)]

use std::{
    io::{Error, Result},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// What an XDP program returns (`linux/bpf.h`).
pub(super) const XDP_DROP: u32 = 1;
pub(super) const XDP_PASS: u32 = 2;
pub(super) const XDP_TX: u32 = 3;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;

const MAP_ARRAY: u32 = 2;
const MAP_PROGRAMS: u32 = 3;
const PROGRAM_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`
const LIVE_FRAMES: u32 = 2;
/// `XDP_FLAGS_DRV_MODE`
const NATIVE: u32 = 1 << 2;

fn bpf(command: libc::c_long, attributes: &mut [u64; 16]) -> Result<i32> {
    let size = size_of_val(attributes);
    // SAFETY: the attributes are valid for `size` bytes; the callers below own what these point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(result as i32)
}

fn bpf_fd(command: libc::c_long, attributes: &mut [u64; 16]) -> Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the commands that this is used for return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads an XDP program.
pub(super) fn load(code: &[[u8; 8]]) -> Result<OwnedFd> {
    let licence = c"Dual MIT/GPL";
    let mut attributes = [0; 16];
    attributes[0] = u64::from(PROGRAM_XDP) | (code.len() as u64) << 32;
    attributes[1] = code.as_ptr().addr() as u64;
    attributes[2] = licence.as_ptr().addr() as u64;
    // `expected_attach_type`, at byte 68: a program array holds programs of one.
    attributes[8] = u64::from(ATTACH_XDP) << 32;
    bpf_fd(PROG_LOAD, &mut attributes)
}

/// An array map with one element that a program reads and writes directly.
#[derive(Debug)]
pub(super) struct Cell {
    map: OwnedFd,
    size: usize,
}

impl Cell {
    /// `size` in bytes.
    pub(super) fn create(size: usize) -> Result<Self> {
        let map = create_map(MAP_ARRAY, size)?;
        Ok(Self { map, size })
    }

    pub(super) fn write(&self, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len(), self.size);
        element(&self.map, MAP_UPDATE, bytes.as_ptr().addr())
    }

    pub(super) fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0_u8; self.size];
        element(&self.map, MAP_LOOKUP, bytes.as_mut_ptr().addr())?;
        Ok(bytes)
    }
}

impl AsFd for Cell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// A program array with one element: what a tail call goes to.
#[derive(Debug)]
pub(super) struct Target(OwnedFd);

impl Target {
    pub(super) fn create() -> Result<Self> {
        create_map(MAP_PROGRAMS, 4).map(Self)
    }

    pub(super) fn set(&self, program: BorrowedFd<'_>) -> Result<()> {
        let fd = program.as_raw_fd();
        element(&self.0, MAP_UPDATE, std::ptr::from_ref(&fd).addr())
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn create_map(kind: u32, value: usize) -> Result<OwnedFd> {
    let mut attributes = [0; 16];
    attributes[0] = u64::from(kind) | 4 << 32;
    attributes[1] = value as u64 | 1 << 32;
    bpf_fd(MAP_CREATE, &mut attributes)
}

/// A look-up or update of element 0 with the value at `address`.
fn element(map: &OwnedFd, command: libc::c_long, address: usize) -> Result<()> {
    let key = 0_u32;
    let mut attributes = [0; 16];
    attributes[0] = map.as_raw_fd() as u64;
    attributes[1] = std::ptr::from_ref(&key).addr() as u64;
    attributes[2] = address as u64;
    bpf(command, &mut attributes).map(drop)
}

/// Runs an XDP program `repeat` times on one buffer: what it returned last.
pub(super) fn run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<u32> {
    let mut attributes = test_run(program, frame, repeat);
    bpf(PROG_TEST_RUN, &mut attributes)?;
    Ok((attributes[0] >> 32) as u32)
}

/// Runs an XDP program on `count` frames that the kernel treats as received: what it redirects goes out.
pub(super) fn inject(program: BorrowedFd<'_>, frame: &[u8], count: u32) -> Result<()> {
    let mut attributes = test_run(program, frame, count);
    attributes[8] = u64::from(LIVE_FRAMES);
    // A NIC driver's usual poll.
    attributes[9] = 64;
    bpf(PROG_TEST_RUN, &mut attributes).map(drop)
}

fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> [u64; 16] {
    let mut attributes = [0; 16];
    attributes[0] = program.as_raw_fd() as u64;
    attributes[1] = frame.len() as u64;
    attributes[2] = frame.as_ptr().addr() as u64;
    attributes[4] = u64::from(repeat);
    attributes
}

/// Attaches an XDP program in native mode to an interface of this thread's namespace, until the link is dropped.
pub(super) fn attach(program: BorrowedFd<'_>, ifindex: u32) -> Result<OwnedFd> {
    let mut attributes = [0; 16];
    attributes[0] = program.as_raw_fd() as u64 | u64::from(ifindex) << 32;
    attributes[1] = u64::from(ATTACH_XDP) | u64::from(NATIVE) << 32;
    bpf_fd(LINK_CREATE, &mut attributes)
}
