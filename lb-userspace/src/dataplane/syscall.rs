//! bpf(2) itself, for the commands that aya 0.14 does not offer: batches, links without a fall-back, what a link is
//! attached to, maps in maps.
#![expect(
    unsafe_code,
    reason = "bpf(2) takes addresses as integers; each caller below owns the buffers it names"
)]

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya::Pod;
use aya_obj::generated::{bpf_attr, bpf_cmd};

/// An attribute of zeroes: what the kernel reads as "not given".
pub(crate) fn attributes() -> bpf_attr {
    // SAFETY: the union is made of integers, for which zero is a value.
    unsafe { mem::zeroed() }
}

/// Runs a command whose attribute names no memory, or memory that stays valid for the call and is of the size the
/// kernel expects.
///
/// # Safety
/// Every address in `attr` is that of a live buffer of at least the size the command reads or writes there.
pub(crate) unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes at most the given size of `attr`; the caller vouches for what it names.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// As [`bpf`], for commands that give back a descriptor.
///
/// # Safety
/// As [`bpf`], and the command gives back a new descriptor.
pub(crate) unsafe fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr)? };
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Where a batch goes on, in the terms of its map's type: the bucket of a hash map, the last key of an array.
pub(super) type Cursor = u32;

/// A piece of a map.
#[derive(Debug)]
pub(super) struct Batch<K, V> {
    pub(super) keys: Vec<K>,
    pub(super) values: Vec<V>,
    /// None: the map ends here.
    pub(super) next: Option<Cursor>,
}

/// Up to `count` entries of a hash map (kernel 5.6). ENOSPC: a bucket holds more than `count`.
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<Cursor>,
    count: usize,
) -> io::Result<Batch<K, V>> {
    let mut keys: Vec<K> = Vec::with_capacity(count);
    let mut values: Vec<V> = Vec::with_capacity(count);
    let (found, next) = {
        // SAFETY: the map's key and value sizes were compared with K and V when it was opened, and both buffers have
        // room for `count` of them.
        unsafe {
            raw_lookup_batch(
                map,
                from,
                count,
                keys.as_mut_ptr().addr(),
                values.as_mut_ptr().addr(),
            )?
        }
    };
    // SAFETY: the kernel has filled `found` elements of both; any bits are a value of a Pod.
    unsafe {
        keys.set_len(found);
        values.set_len(found);
    }
    Ok(Batch { keys, values, next })
}

/// The elements `first .. first + count` of a per-CPU array (kernel 5.13; ENOTSUPP, 524, before) into `values`, which
/// has `words` words for each element.
pub(super) fn lookup_array_batch(
    map: BorrowedFd<'_>,
    first: u32,
    count: usize,
    words: usize,
) -> io::Result<Vec<u64>> {
    let mut keys: Vec<u32> = Vec::with_capacity(count);
    let mut values: Vec<u64> = Vec::with_capacity(count * words);
    // SAFETY: keys of arrays are u32; the caller computed `words` from the map's value size and the number of CPUs.
    let (found, _) = unsafe {
        raw_lookup_batch(
            map,
            first.checked_sub(1),
            count,
            keys.as_mut_ptr().addr(),
            values.as_mut_ptr().addr(),
        )?
    };
    // SAFETY: the kernel has filled that many.
    unsafe { values.set_len(found * words) };
    Ok(values)
}

/// # Safety
/// `keys` and `values` have room for `count` keys and values of the map.
unsafe fn raw_lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<Cursor>,
    count: usize,
    keys: usize,
    values: usize,
) -> io::Result<(usize, Option<Cursor>)> {
    let mut out: Cursor = 0;
    let mut attr = attributes();
    attr.batch.in_batch = from
        .as_ref()
        .map_or(0, |from| std::ptr::from_ref(from).addr() as u64);
    attr.batch.out_batch = std::ptr::from_mut(&mut out).addr() as u64;
    attr.batch.keys = keys as u64;
    attr.batch.values = values as u64;
    attr.batch.count = count as u32;
    attr.batch.map_fd = map.as_raw_fd() as u32;
    // SAFETY: cursors are u32 for the map types used here (array key, hash bucket); the rest is the caller's promise.
    let end = match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    // SAFETY: any bits are a u32; the kernel wrote the number of elements here.
    let found = unsafe { attr.batch.count } as usize;
    Ok((found, (!end).then_some(out)))
}

/// One element of a per-CPU array.
pub(super) fn lookup_array(map: BorrowedFd<'_>, index: u32, words: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0u64; words];
    let mut attr = attributes();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(&index).addr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = values.as_mut_ptr().addr() as u64;
    // SAFETY: the key is a u32, the value `words` words as the caller computed from the map.
    unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)? };
    Ok(values)
}

/// Writes `values` (the words of `count` elements) to `first ..` of a per-CPU array: one call from kernel 5.13 on, one
/// an element before.
pub(super) fn update_array(
    map: BorrowedFd<'_>,
    first: u32,
    count: usize,
    values: &[u64],
) -> io::Result<()> {
    let keys: Vec<u32> = (first..).take(count).collect();
    let mut attr = attributes();
    attr.batch.keys = keys.as_ptr().addr() as u64;
    attr.batch.values = values.as_ptr().addr() as u64;
    attr.batch.count = count as u32;
    attr.batch.map_fd = map.as_raw_fd() as u32;
    // SAFETY: `count` keys, and as many values as the caller computed from the map.
    match unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) } {
        Ok(_) => return Ok(()),
        Err(error) if batch_unknown(&error) => {}
        Err(error) => return Err(error),
    }
    for (key, value) in keys.iter().zip(values.chunks(values.len() / count)) {
        let mut attr = attributes();
        attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = std::ptr::from_ref(key).addr() as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr().addr() as u64;
        // SAFETY: the key is a u32, the value one element's words.
        unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr)? };
    }
    Ok(())
}

/// Whether the kernel has no batch command for this type of map.
pub(super) fn batch_unknown(error: &io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(
        error.raw_os_error(),
        Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL)
    )
}
