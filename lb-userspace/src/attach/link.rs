//! BPF links, raw: made without aya's silent fall-back to netlink (such an attachment cannot be pinned), and asked what
//! they are attached to.
#![expect(
    unsafe_code,
    reason = "bpf(2) takes addresses as integers; the buffers live across each call"
)]

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_link_info, bpf_link_type};

use crate::dataplane::syscall::{attributes, bpf, bpf_fd};

/// What a link holds where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Info {
    /// A `bpf_link_type`.
    pub(super) kind: u32,
    pub(super) program: u32,
    /// 0: the interface is gone.
    pub(super) ifindex: u32,
}

impl Info {
    pub(super) const XDP: u32 = bpf_link_type::BPF_LINK_TYPE_XDP as u32;
    pub(super) const TCX: u32 = bpf_link_type::BPF_LINK_TYPE_TCX as u32;
}

/// Attaches a program. `flags`: those of the attach type (`XDP_FLAGS_*`, `BPF_F_BEFORE`).
pub(super) fn create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = attach_type as u32;
    attr.link_create.flags = flags;
    // SAFETY: the attribute names no memory; the command gives back a new descriptor.
    unsafe { bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr) }
}

/// Puts another program in the place of the link's one, in one step: every packet meets one of the two.
pub(super) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attributes();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    // SAFETY: the attribute names no memory.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes the program off the interface at once (kernel 5.9). What holds the link keeps an empty one.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attributes();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    // SAFETY: the attribute names no memory.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

pub(super) fn info(link: BorrowedFd<'_>) -> io::Result<Info> {
    // SAFETY: integers only.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attr = attributes();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info).addr() as u64;
    // SAFETY: `info` has the size that is given.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    let ifindex = match info.type_ {
        // SAFETY: the kernel fills this member for this type; any bits are a u32.
        Info::XDP => unsafe { info.__bindgen_anon_1.xdp.ifindex },
        // SAFETY: as above.
        Info::TCX => unsafe { info.__bindgen_anon_1.tcx.ifindex },
        _ => 0,
    };
    Ok(Info {
        kind: info.type_,
        program: info.prog_id,
        ifindex,
    })
}

/// Keeps an object alive under a name, with or without a process.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = attributes();
    attr.__bindgen_anon_4.pathname = name.as_ptr().addr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    // SAFETY: the name ends with a zero and lives across the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// What is pinned in a file.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) fd: OwnedFd,
    pub(super) kind: PinKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PinKind {
    Map,
    Program,
    Link,
    Other,
}

pub(super) fn open(path: &Path) -> io::Result<Pinned> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = attributes();
    attr.__bindgen_anon_4.pathname = name.as_ptr().addr() as u64;
    // SAFETY: the name ends with a zero and lives across the call; the command gives back a new descriptor.
    let fd = unsafe { bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)? };
    let shown = fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))?;
    let shown = shown.to_string_lossy();
    let kind = match shown
        .trim_start_matches("anon_inode:")
        .trim_matches(['[', ']'])
    {
        "bpf-map" => PinKind::Map,
        "bpf-prog" => PinKind::Program,
        "bpf_link" | "bpf-link" => PinKind::Link,
        _ => PinKind::Other,
    };
    Ok(Pinned { fd, kind })
}
