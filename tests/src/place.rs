//! The installed program in a namespace with two interfaces, routes and neighbours, serving the world of
//! [`crate::world`].

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    TestRunAttrs, TestRunOptions,
    programs::{SchedClassifier, TestRun as _},
};
use lb_userspace::{
    attach::{Clock, Installation, Mode, Options},
    dataplane::Dataplane as _,
    net::{self, Facts},
    plan::Limits,
};

use crate::{
    kernel,
    netns::{Folder, Netns, run, unique_name},
    world,
};

const LIMITS: Limits = Limits {
    frontends: 64,
    backends: 256,
    flows: 16_384,
};

/// The program on `eth0` and `eth1`, and a network around them.
#[derive(Debug)]
pub struct Place {
    pub installation: Installation,
    pub pins: PathBuf,
    pub facts: Facts,
    _folders: Folder,
    _other: Netns,
}

impl Place {
    /// In the namespace of the calling thread, which is `netns`.
    pub fn make(netns: &Netns) -> Result<Self> {
        let other = Netns::create("other")?;
        for (number, device) in ["eth0", "eth1"].into_iter().enumerate() {
            let peer = other.name();
            let v6 = number + 1;
            netns.ip([
                &*format!("link add {device} type veth peer name {device} netns {peer}"),
                &*format!("addr add 10.{number}.0.1/24 dev {device}"),
                &*format!("addr add 2001:db8:{v6}::1/64 dev {device} nodad"),
                &*format!("link set {device} up"),
            ])?;
            other.ip([&*format!("link set {device} up")])?;
            netns.sysctl(&format!("net.ipv4.conf.{device}.forwarding"), "1")?;
            netns.sysctl(&format!("net.ipv6.conf.{device}.forwarding"), "1")?;
        }
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        netns.ip([
            "neigh add 10.0.0.254 lladdr 02:00:00:00:00:fe dev eth0 nud permanent",
            "neigh add 2001:db8:1::fe lladdr 02:00:00:00:00:fe dev eth0 nud permanent",
            "neigh add 10.0.0.13 lladdr 02:00:00:00:00:13 dev eth0 nud permanent",
            "neigh add 2001:db8:1::13 lladdr 02:00:00:00:00:13 dev eth0 nud permanent",
            "route add default via 10.0.0.254",
            "route add ::/0 via 2001:db8:1::fe",
            "route add unreachable 10.9.0.0/16",
        ])?;
        let folders = Folder::create("explain")?;
        let pins = PathBuf::from("/sys/fs/bpf").join(unique_name("explain"));
        let mut installation = Installation::open(&Options {
            pin_root: pins.clone(),
            run_folder: folders.path().to_owned(),
            limits: LIMITS,
            ..Options::default()
        })?;
        installation.attach("eth0", Mode::Native)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let facts = runtime.block_on(net::snapshot(|_, _| net::Sending::Always))?;
        let hz = Clock::load()?.rate()?;
        let place = Self {
            installation,
            pins,
            facts,
            _folders: folders,
            _other: other,
        };
        let ops = world::ops(hz, [place.interface("eth0")?, place.interface("eth1")?]);
        place.installation.dataplane()?.apply(&ops)?;
        Ok(place)
    }

    /// MAC and index.
    pub fn interface(&self, name: &str) -> Result<([u8; 6], u32)> {
        let found = self.facts.links.iter().find(|(_, link)| link.name == name);
        let (index, link) = found.context("interface")?;
        Ok((link.mac.context("MAC")?, *index))
    }

    /// Runs the XDP program: its action, and the frame as it leaves.
    pub fn inject(&mut self, frame: &[u8], ingress: u32) -> Result<(u32, Vec<u8>)> {
        let program = self.installation.ebpf().program_mut("millrace_xdp");
        kernel::run(program.context("millrace_xdp")?.try_into()?, frame, ingress)
    }

    /// Runs the tc program on a frame that came in by `lo`: its action.
    pub fn inject_at_tc(&mut self, frame: &[u8]) -> Result<i32> {
        let program = self.installation.ebpf().program_mut("millrace_tc");
        let program: &mut SchedClassifier = program.context("millrace_tc")?.try_into()?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            attrs: TestRunAttrs::new(),
            ..TestRunOptions::new()
        })?;
        Ok(result.return_value as i32)
    }

    /// Runs the program at tc egress: its action, and the frame as it leaves.
    pub fn inject_at_egress(&mut self, frame: &[u8]) -> Result<(i32, Vec<u8>)> {
        let program = self.installation.ebpf().program_mut("millrace_egress");
        kernel::run_tc(program.context("millrace_egress")?.try_into()?, frame)
    }

    /// What every map holds, as text.
    pub fn dump(&self) -> Result<BTreeMap<String, String>> {
        let folder: &Path = self.installation.maps();
        let mut dumps = BTreeMap::new();
        for pin in fs::read_dir(folder)? {
            let pin = pin?;
            // Each set of maps pins the program that uses it beside them.
            if pin.file_name().to_string_lossy().starts_with("program-") {
                continue;
            }
            let mut bpftool = Command::new("bpftool");
            let shown = run(bpftool
                .args(["-j", "map", "dump", "pinned"])
                .arg(pin.path()))?;
            dumps.insert(pin.file_name().to_string_lossy().into_owned(), shown);
        }
        ensure!(dumps.len() > 15, "maps: {:?}", dumps.keys());
        Ok(dumps)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.pins));
    }
}
