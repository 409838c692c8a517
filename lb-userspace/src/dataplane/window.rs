//! An `Array` map as words in memory: what the agent writes is what the program reads, without a system call.
//!
//! The kernel puts every page of a mapping in place at once, so a whole slot array would add its whole size to the
//! agent's resident memory (measured: 160 MB for 164 MB). Only windows in use are mapped, the least recently used
//! goes first: writing all 65 MiB of the default slots added 4 MiB. Elements may lie across two windows, words never do: the kernel rounds elements up to 8 bytes.
#![expect(
    unsafe_code,
    reason = "mapped memory that the kernel reads concurrently; every access is an atomic of one word"
)]

use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    os::fd::AsFd as _,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::{MapData, MapInfo};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::open::{self, OpenError};

/// Bytes of a window; a multiple of every page size of the supported architectures.
const WINDOW: u64 = 512 * 1024;
/// Windows of one map that stay mapped.
const KEPT: usize = 8;

/// `BPF_F_MMAPABLE` (kernel 5.5).
const MMAPABLE: u32 = 1 << 10;

/// One array map.
#[derive(Debug)]
pub(super) struct Words {
    name: &'static str,
    map: MapData,
    /// Bytes from one element to the next.
    stride: u64,
    elements: u32,
    /// Bytes that can be mapped: the elements, rounded up to whole pages.
    mappable: u64,
    /// The most recently used first.
    windows: VecDeque<Window>,
}

#[derive(Debug)]
struct Window {
    /// Offset in the map of the first byte.
    start: u64,
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is the process's, not a thread's, and only its owner unmaps it.
unsafe impl Send for Window {}

/// An index that the map does not have.
#[derive(Debug)]
pub(super) enum Fault {
    Outside { index: u32, elements: u32 },
    Mapping(io::Error),
}

impl Words {
    /// The array pinned as `name`, whose values are `T`.
    pub(super) fn open<T>(folder: &std::path::Path, name: &'static str) -> Result<Self, OpenError> {
        let (map, info) = open::map(folder, name)?;
        open::expect_size(name, "value", info.value_size(), size_of::<T>())?;
        Self::new(name, map, &info)
    }

    fn new(name: &'static str, map: MapData, info: &MapInfo) -> Result<Self, OpenError> {
        if info.map_flags() & MMAPABLE == 0 {
            return Err(OpenError::Layout {
                map: name,
                what: "flags",
                found: info.map_flags(),
                wanted: MMAPABLE,
            });
        }
        let stride = u64::from(info.value_size()).next_multiple_of(8);
        let page = rustix::param::page_size() as u64;
        Ok(Self {
            name,
            map,
            stride,
            elements: info.max_entries(),
            mappable: (stride * u64::from(info.max_entries())).next_multiple_of(page),
            windows: VecDeque::with_capacity(KEPT),
        })
    }

    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    pub(super) const fn elements(&self) -> u32 {
        self.elements
    }

    /// Stores the 64-bit word at byte `offset` of an element. Everything stored before is visible to whoever sees it.
    pub(super) fn store(&mut self, index: u32, offset: usize, word: u64) -> Result<(), Fault> {
        let at = self.word(index, offset)?;
        // SAFETY: `word` gives the address of 8 mapped, aligned bytes that only atomics touch.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }.store(word, Ordering::Release);
        Ok(())
    }

    /// Stores the 32-bit word at byte `offset` of an element.
    pub(super) fn store_half(&mut self, index: u32, offset: usize, word: u32) -> Result<(), Fault> {
        let at = self.word(index, offset & !7)?;
        // SAFETY: `word` gives the address of 8 mapped, aligned bytes; the half asked for lies in them.
        unsafe { AtomicU32::from_ptr(at.as_ptr().add(offset & 4).cast()) }
            .store(word, Ordering::Release);
        Ok(())
    }

    /// Stores a whole element, first word first.
    pub(super) fn store_element<T: aya::Pod>(
        &mut self,
        index: u32,
        value: &T,
    ) -> Result<(), Fault> {
        for (number, word) in words(value).enumerate() {
            self.store(index, number * 8, word)?;
        }
        Ok(())
    }

    /// Stores consecutive elements of one word each.
    pub(super) fn store_run(&mut self, first: u32, run: &[u64]) -> Result<(), Fault> {
        self.check(first, run.len())?;
        for (index, word) in (first..).zip(run) {
            self.store(index, 0, *word)?;
        }
        Ok(())
    }

    pub(super) fn load(&mut self, index: u32, offset: usize) -> Result<u64, Fault> {
        let at = self.word(index, offset)?;
        // SAFETY: as in `store`.
        Ok(unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }.load(Ordering::Acquire))
    }

    /// Loads a whole element, word by word.
    pub(super) fn load_element<T: aya::Pod>(&mut self, index: u32) -> Result<T, Fault> {
        const { assert!(size_of::<T>().is_multiple_of(8)) }
        let mut value = MaybeUninit::<T>::uninit();
        for number in 0..size_of::<T>() / 8 {
            let word = self.load(index, number * 8)?;
            let place = value.as_mut_ptr().cast::<u64>();
            // SAFETY: within the value.
            unsafe { place.add(number).write_unaligned(word) };
        }
        // SAFETY: every word was written, and any bits are a value of a Pod.
        Ok(unsafe { value.assume_init() })
    }

    fn check(&self, first: u32, count: usize) -> Result<(), Fault> {
        if u64::from(first) + count as u64 <= u64::from(self.elements) {
            return Ok(());
        }
        Err(Fault::Outside {
            index: first.saturating_add(count.saturating_sub(1) as u32),
            elements: self.elements,
        })
    }

    /// Address of the 8 bytes at `offset` (a multiple of 8 within the stride) of an element.
    fn word(&mut self, index: u32, offset: usize) -> Result<NonNull<u8>, Fault> {
        self.check(index, 1)?;
        debug_assert!(offset.is_multiple_of(8) && (offset as u64) < self.stride);
        let byte = u64::from(index) * self.stride + offset as u64;
        let start = byte - byte % WINDOW;
        match self.windows.iter().position(|window| window.start == start) {
            Some(0) => {}
            Some(position) => {
                if let Some(window) = self.windows.remove(position) {
                    self.windows.push_front(window);
                }
            }
            None => {
                self.windows.truncate(KEPT - 1);
                let window = self.map_window(start).map_err(Fault::Mapping)?;
                self.windows.push_front(window);
            }
        }
        let window = &self.windows[0];
        // SAFETY: start ≤ byte, and byte + 8 is within the window: windows are cut at multiples of 8 and the last one
        // ends where the elements do.
        Ok(unsafe { window.memory.add((byte - start) as usize) })
    }

    fn map_window(&self, start: u64) -> io::Result<Window> {
        let bytes = WINDOW.min(self.mappable - start) as usize;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                self.map.fd().as_fd(),
                start,
            )?
        };
        let memory = NonNull::new(memory.cast())
            .ok_or_else(|| io::Error::other("mmap gave the null address"))?;
        Ok(Window {
            start,
            memory,
            bytes,
        })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: mapped by `map_window` with this size; no reference to it is left, addresses live for one access.
        let unmapped = unsafe { munmap(self.memory.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The 64-bit words of a value, in memory order.
fn words<T: aya::Pod>(value: &T) -> impl Iterator<Item = u64> {
    const { assert!(size_of::<T>().is_multiple_of(8)) }
    let address: *const u64 = std::ptr::from_ref(value).cast();
    (0..size_of::<T>() / 8).map(move |number| {
        // SAFETY: within the value, all of whose bytes are initialised (Pod without padding).
        unsafe { address.add(number).read_unaligned() }
    })
}
