//! Waiting until no packet is in the program any more that saw the maps as they were.
#![expect(
    unsafe_code,
    reason = "membarrier(2) and map creation through bpf(2); neither touches memory of ours"
)]

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_cmd, bpf_map_type};

use super::syscall::{attributes, bpf, bpf_fd};

/// `MEMBARRIER_CMD_GLOBAL`: an RCU grace period (kernel 4.3; measured 8 ms). XDP programs run within one RCU read-side
/// section. EINVAL on kernels with `nohz_full`.
const MEMBARRIER_GLOBAL: libc::c_int = 1;

/// Waits for an RCU grace period.
pub(super) fn wait() -> io::Result<()> {
    // SAFETY: membarrier takes three integers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
    if result == 0 {
        return Ok(());
    }
    wait_by_map_of_maps()
}

/// An update of a map of maps returns after a grace period (since kernel 4.20), whatever the scheduler is set to.
fn wait_by_map_of_maps() -> io::Result<()> {
    let inner = create(bpf_map_type::BPF_MAP_TYPE_ARRAY, None)?;
    let outer = create(bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS, Some(&inner))?;
    let (key, value) = (0u32, inner.as_raw_fd() as u32);
    let mut attr = attributes();
    attr.__bindgen_anon_2.map_fd = outer.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(&key).addr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(&value).addr() as u64;
    // SAFETY: key and value are 4 bytes, as the map was made.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr)? };
    Ok(())
}

fn create(kind: bpf_map_type, inner: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    attr.__bindgen_anon_1.map_type = kind as u32;
    attr.__bindgen_anon_1.key_size = 4;
    attr.__bindgen_anon_1.value_size = 4;
    attr.__bindgen_anon_1.max_entries = 1;
    attr.__bindgen_anon_1.inner_map_fd = inner.map_or(0, |fd| fd.as_raw_fd() as u32);
    // SAFETY: the attribute names no memory, and the command gives back a descriptor.
    unsafe { bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_map_of_maps_can_stand_in_for_membarrier() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: root");
            return;
        }
        super::wait_by_map_of_maps().expect("bpf(2) is allowed");
        super::wait().expect("some way to wait");
    }
}
