//! What the program counted, summed over all CPUs, by id.

use std::{io, ops::Range, path::Path};

use lb_common::abi::{BackendCount, FrontendCount, Reason};

use super::{AnnouncedMaps, AnnouncedVips, DumpError, open::OpenError, per_cpu::PerCpu};

/// Packets by [`Reason`] (as index) of one frontend. Numbers without a reason stay 0.
pub type ReasonCounts = [u64; Reason::COUNT as usize];

/// The counter maps, opened for reading. Counters only grow, but for an id that is given again: they start at 0 then.
#[derive(Debug)]
pub struct Counters {
    frontends: PerCpu<4>,
    backends: PerCpu<2>,
    reasons: PerCpu<1>,
    announced: AnnouncedMaps,
}

impl Counters {
    /// `folder` is that of the pinned maps.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            frontends: PerCpu::open(folder, "FRONTEND_STATS")?,
            backends: PerCpu::open(folder, "BACKEND_STATS")?,
            reasons: PerCpu::open(folder, "REASONS")?,
            announced: AnnouncedMaps::open(folder)?,
        })
    }

    /// By frontend id; ids beyond the map's end are left out.
    pub fn frontends(&self, ids: Range<u32>) -> io::Result<Vec<FrontendCount>> {
        let sums = self.frontends.sums(ids)?;
        Ok(sums
            .into_iter()
            .map(|[packets, bytes, new_flows, replies]| FrontendCount {
                packets,
                bytes,
                new_flows,
                replies,
            })
            .collect())
    }

    /// By backend id.
    pub fn backends(&self, ids: Range<u32>) -> io::Result<Vec<BackendCount>> {
        let sums = self.backends.sums(ids)?;
        Ok(sums
            .into_iter()
            .map(|[packets, new_flows]| BackendCount { packets, new_flows })
            .collect())
    }

    /// All VIPs that the program answers neighbours for.
    pub fn announced(&self) -> Result<AnnouncedVips, DumpError> {
        self.announced.read()
    }

    /// By frontend id; id 0 has what belongs to no frontend.
    pub fn reasons(&self, ids: Range<u32>) -> io::Result<Vec<ReasonCounts>> {
        let elements = ids.start * Reason::COUNT..ids.end.saturating_mul(Reason::COUNT);
        let sums = self.reasons.sums(elements)?;
        Ok(sums
            .chunks_exact(Reason::COUNT as usize)
            .map(|counts| std::array::from_fn(|reason| counts[reason][0]))
            .collect())
    }
}
