//! The real programs with maps of their own: loaded, filled by ops, and run on frames by `BPF_PROG_TEST_RUN`.

use std::{fs, path::PathBuf, process};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader, TestRunAttrs, TestRunOptions,
    maps::{Map, MapData},
    programs::{SchedClassifier, TestRun as _, Xdp},
};
use lb_common::{abi::Settings, pipeline::Verdict};
use lb_userspace::{
    attach::{link_programs, object},
    dataplane::Bpf,
};

/// Room in front of an output buffer for what a program puts before a frame.
const GROWTH: usize = 256;

/// Names of the programs.
pub const PROGRAMS: [&str; 4] = [
    "millrace_xdp",
    "millrace_tunnel",
    "millrace_tc",
    "millrace_egress",
];

/// Index of `lo`, in every namespace.
pub const LOOPBACK: u32 = 1;

/// Whether the running kernel is this version or a later one.
pub fn is_at_least(major: u32, minor: u32) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|text| text.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// Loaded programs; the maps are pinned below a folder of this process and go away with it.
#[derive(Debug)]
pub struct Kernel {
    pub ebpf: Ebpf,
    pub dataplane: Bpf,
    pub folder: PathBuf,
}

/// Sizes of the maps, by name; those not named have the object's own.
pub type Sizes<'a> = &'a [(&'static str, u32)];

/// Maps small enough to fill and to dump.
pub const SMALL: Sizes<'static> = &[
    ("FRONTENDS4", 256),
    ("FRONTENDS6", 256),
    ("SERVICES", 256),
    ("SLOTS", 65_536),
    ("MEMBERS", 1024),
    ("BACKENDS", 512),
    ("NEXT_HOPS", 512),
    ("FLOWS4", 65_536),
    ("FLOWS6", 65_536),
    ("HALF_OPEN4", 65_536),
    ("HALF_OPEN6", 65_536),
    ("FRONTEND_STATS", 256),
    ("BACKEND_STATS", 512),
    ("REASONS", 8192),
];

impl Kernel {
    /// Loads the programs with maps of these sizes, pinned under a folder named after the process and `name`.
    pub fn load(name: &str, sizes: Sizes<'_>) -> Result<Self> {
        let mut kernel = Self::maps(name, sizes)?;
        for program in PROGRAMS {
            let program = kernel
                .ebpf
                .program_mut(program)
                .ok_or_else(|| anyhow!("no {program}"))?;
            match program {
                aya::programs::Program::Xdp(program) => program.load()?,
                aya::programs::Program::SchedClassifier(program) => program.load()?,
                other => return Err(anyhow!("unexpected program {other:?}")),
            }
        }
        link_programs(&mut kernel.ebpf)?;
        Ok(kernel)
    }

    /// The same without the programs.
    pub fn maps(name: &str, sizes: Sizes<'_>) -> Result<Self> {
        let folder = PathBuf::from(format!("/sys/fs/bpf/lb-test-{}-{name}", process::id()));
        fs::create_dir_all(&folder).context("bpffs at /sys/fs/bpf")?;
        let mut loader = EbpfLoader::new();
        // As installed: without logging.
        loader.override_global("AYA_LOG_LEVEL", &0u8, false);
        for (map, size) in sizes {
            loader.map_max_entries(map, *size);
        }
        let mut ebpf = loader.load(object())?;
        for (name, map) in ebpf.maps_mut() {
            if !name.starts_with('.') {
                data(map)?.pin(folder.join(name))?;
            }
        }
        let dataplane = Bpf::open(&folder)?;
        Ok(Self {
            ebpf,
            dataplane,
            folder,
        })
    }

    pub fn xdp(&mut self) -> Result<&mut Xdp> {
        let program = self
            .ebpf
            .program_mut("millrace_xdp")
            .context("millrace_xdp")?;
        Ok(program.try_into()?)
    }

    pub fn tc(&mut self) -> Result<&mut SchedClassifier> {
        let program = self
            .ebpf
            .program_mut("millrace_tc")
            .context("millrace_tc")?;
        Ok(program.try_into()?)
    }

    /// Runs the XDP program on a frame that came in by `ingress`: its action and the frame as it leaves.
    pub fn run(&mut self, frame: &[u8], ingress: u32) -> Result<(u32, Vec<u8>)> {
        run(self.xdp()?, frame, ingress)
    }
}

/// Runs an XDP program on a frame that came in by `ingress`: its action and the frame as it leaves.
pub fn run(program: &mut Xdp, frame: &[u8], ingress: u32) -> Result<(u32, Vec<u8>)> {
    let mut out = vec![0; frame.len() + GROWTH];
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context: Vec<u8> = [0, frame.len() as u32, 0, ingress, 0, 0]
        .iter()
        .flat_map(|field: &u32| field.to_ne_bytes())
        .collect();
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        // Without a context the frame comes in by loopback.
        ctx_in: (ingress != LOOPBACK).then_some(&context),
        attrs: TestRunAttrs::new(),
        ..TestRunOptions::new()
    })?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

/// Runs a tc program on a frame: its action and the frame as it leaves.
pub fn run_tc(program: &mut SchedClassifier, frame: &[u8]) -> Result<(i32, Vec<u8>)> {
    let mut out = vec![0; frame.len() + GROWTH];
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        attrs: TestRunAttrs::new(),
        ..TestRunOptions::new()
    })?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value as i32, out))
}

/// `XDP_*` (linux/bpf.h) of a verdict.
pub const fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop(_) => 1,
        Verdict::NotOurs | Verdict::Pass(_) | Verdict::Neighbour { .. } | Verdict::Rewritten => 2,
        Verdict::Transmit => 3,
        Verdict::Redirect { .. } => 4,
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // A pin that stays would be found by whoever looks at the host next.
        _ = fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn data(map: &mut Map) -> Result<&mut MapData> {
    Ok(match map {
        Map::Array(data)
        | Map::DevMapHash(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerfEventArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => data,
        other => return Err(anyhow!("unexpected map {other:?}")),
    })
}

/// Settings under which everything works: a fixed key, plenty of tokens.
pub fn settings() -> Settings {
    Settings {
        hash_key: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
        hz: 1000,
        // 61000 to 65535.
        nat_ports: 0xffff_ee48,
        reject_rate: 1_000_000,
        reject_burst: 1_000_000,
        flow_rate: 1_000_000,
        flow_burst: 1_000_000,
        fragment_rate: 1_000_000,
        fragment_burst: 1_000_000,
        ..Settings::default()
    }
}
