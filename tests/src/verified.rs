//! How many instructions the verifier looks at, asked of its log: program info has the number since 5.16 only.

use std::{
    collections::{HashMap, HashSet},
    ffi::CStr,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use anyhow::{Context as _, Result};
use aya_obj::{Object, ProgramSection};
use lb_userspace::attach::object as object_bytes;

use crate::{
    kernel::{Kernel, data},
    pass::{PROG_LOAD, bpf},
};

/// `BPF_PROG_TYPE_*` (linux/bpf.h).
const SCHED_CLS: u64 = 3;
const XDP: u64 = 6;

/// `BPF_XDP` as expected attach type.
const EXPECT_XDP: u64 = 37;

/// `BPF_LOG_STATS`, since 5.2.
const LOG_STATS: u64 = 4;

/// Loads a program of ours on the maps of `kernel`, and reads the verifier's summary.
pub fn instructions(kernel: &mut Kernel, name: &str) -> Result<u32> {
    let mut fds: HashMap<String, RawFd> = HashMap::new();
    for (name, map) in kernel.ebpf.maps_mut() {
        fds.insert(name.to_owned(), data(map)?.fd().as_fd().as_raw_fd());
    }
    let mut object = Object::parse(object_bytes())?;
    let text: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    let maps = std::mem::take(&mut object.maps);
    let relocated = maps
        .iter()
        .filter_map(|(name, map)| Some((name.as_str(), *fds.get(name)?, map)));
    object.relocate_maps(relocated, &text)?;
    object.relocate_calls(&text)?;
    let program = object.programs.get(name).context("program")?;
    let kind = match program.section {
        ProgramSection::SchedClassifier => SCHED_CLS,
        _ => XDP,
    };
    let instructions = &object.functions[&program.function_key()].instructions;
    let licence = c"Dual MIT/GPL";
    let mut log = [0_u8; 4096];
    let mut attributes = [0_u64; 16];
    attributes[0] = kind | (instructions.len() as u64) << 32;
    attributes[1] = instructions.as_ptr() as u64;
    attributes[2] = licence.as_ptr() as u64;
    attributes[3] = LOG_STATS | (log.len() as u64) << 32;
    attributes[4] = log.as_mut_ptr() as u64;
    if kind == XDP {
        // As that of what it calls: newer kernels compare the two.
        attributes[8] = EXPECT_XDP << 32;
    }
    let loaded = bpf(PROG_LOAD, &attributes);
    let said = CStr::from_bytes_until_nul(&log)?.to_string_lossy();
    loaded.with_context(|| said.to_string())?;
    // processed 103488 insns (limit 1000000) max_states_per_insn 28 ...
    let number = said
        .split("processed ")
        .nth(1)
        .and_then(|tail| tail.split(' ').next());
    number
        .context("no summary")?
        .parse()
        .with_context(|| said.to_string())
}
