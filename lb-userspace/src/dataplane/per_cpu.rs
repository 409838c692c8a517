//! Per-CPU arrays of counters: sums over all CPUs, zeroing.

use std::{io, ops::Range, os::fd::AsFd as _, path::Path};

use aya::maps::MapData;

use super::{
    open::{self, OpenError},
    syscall,
};

/// Words that one system call reads or writes at most (512 KiB).
const CHUNK_WORDS: usize = 65_536;

/// A per-CPU array whose elements are `W` counters of 64 bits.
#[derive(Debug)]
pub(super) struct PerCpu<const W: usize> {
    name: &'static str,
    map: MapData,
    elements: u32,
    cpus: usize,
}

impl<const W: usize> PerCpu<W> {
    pub(super) fn open(folder: &Path, name: &'static str) -> Result<Self, OpenError> {
        let (map, info) = open::map(folder, name)?;
        open::expect_size(name, "key", info.key_size(), size_of::<u32>())?;
        open::expect_size(name, "value", info.value_size(), W * size_of::<u64>())?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| OpenError::Cpus(error))?;
        Ok(Self {
            name,
            map,
            elements: info.max_entries(),
            cpus,
        })
    }

    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    pub(super) const fn elements(&self) -> u32 {
        self.elements
    }

    /// The sums over all CPUs of the elements in `range`, which is cut at the map's end.
    pub(super) fn sums(&self, range: Range<u32>) -> io::Result<Vec<[u64; W]>> {
        let range = range.start..range.end.min(self.elements);
        let mut sums = Vec::with_capacity(range.len());
        let chunk = (CHUNK_WORDS / self.words()).max(1) as u32;
        for first in range.clone().step_by(chunk as usize) {
            let count = chunk.min(range.end - first) as usize;
            let words = self.read(first, count)?;
            sums.extend(words.chunks_exact(self.words()).map(|element| {
                let mut sum = [0u64; W];
                for one_cpu in element.chunks_exact(W) {
                    for (sum, word) in sum.iter_mut().zip(one_cpu) {
                        *sum = sum.wrapping_add(*word);
                    }
                }
                sum
            }));
        }
        Ok(sums)
    }

    /// Zeroes the elements in `range`.
    pub(super) fn zero(&self, range: &Range<u32>) -> io::Result<()> {
        let zeroes = vec![0; range.len() * self.words()];
        syscall::update_array(self.map.fd().as_fd(), range.start, range.len(), &zeroes)
    }

    /// Words of one element on all CPUs. The kernel pads each CPU's value to 8 bytes, which these are anyway.
    const fn words(&self) -> usize {
        W * self.cpus
    }

    fn read(&self, first: u32, count: usize) -> io::Result<Vec<u64>> {
        let map = self.map.fd().as_fd();
        match syscall::lookup_array_batch(map, first, count, self.words()) {
            Err(error) if syscall::batch_unknown(&error) => {
                let mut all = Vec::with_capacity(count * self.words());
                for index in (first..).take(count) {
                    all.extend(syscall::lookup_array(map, index, self.words())?);
                }
                Ok(all)
            }
            read => read,
        }
    }
}
