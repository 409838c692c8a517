//! What starting needs for a moment goes back to the system.

#![expect(
    unsafe_code,
    reason = "settings of the allocator have no safe interface"
)]

/// Bytes of freed memory that stay with the process: glibc's own figure to begin with.
const KEPT: libc::c_int = 128 * 1024;

/// Has freed memory at the heap's end given back to the system from [`KEPT`] on.
///
/// Left alone, glibc keeps twice as much as the largest block that was ever freed (mallopt(3), `M_MMAP_THRESHOLD`), and
/// loading the programs takes blocks so large that an agent which uses 2 MB would hold 47.
pub fn give_back() {
    // SAFETY: no memory is passed, and a setting that is refused stays as it is.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) };
}
