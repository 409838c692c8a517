//! Loading, pinning, adopting, replacing and leaving, each in a namespace and a pin folder of its own.

#[path = "attach/adopt.rs"]
mod adopt;
#[path = "attach/interfaces.rs"]
mod interfaces;
#[path = "attach/refuse.rs"]
mod refuse;
#[path = "attach/rights.rs"]
mod rights;
#[path = "attach/uplinks.rs"]
mod uplinks;

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use lb_tests::netns::{Folder, Netns, run, unique_name};
use lb_userspace::{
    attach::{self, AttachError, Installation, Mode, Options},
    plan::Limits,
};

/// A namespace with a pair of devices, `eth0` being the one to attach to, and folders to install in.
struct Place {
    netns: Netns,
    other: Netns,
    options: Options,
    _run: Folder,
}

/// Small maps load faster, and many sets of them fit beside each other.
const SMALL: Limits = Limits {
    frontends: 64,
    backends: 256,
    flows: 4096,
};

impl Place {
    fn make() -> Result<Self> {
        let netns = Netns::create("attach")?;
        let other = Netns::create("other")?;
        let peer = other.name();
        netns.ip([
            &*format!("link add eth0 type veth peer name eth1 netns {peer}"),
            "link set eth0 up",
        ])?;
        other.ip(["link set eth1 up"])?;
        let run = Folder::create("run")?;
        let options = Options {
            pin_root: PathBuf::from("/sys/fs/bpf").join(unique_name("pins")),
            run_folder: run.path().to_owned(),
            limits: SMALL,
            ..Options::default()
        };
        Ok(Self {
            netns,
            other,
            options,
            _run: run,
        })
    }

    fn open(&self) -> Result<Installation, AttachError> {
        self.netns.enter(|| Installation::open(&self.options))
    }

    fn attach(&self, installation: &mut Installation) -> Result<attach::Attached, AttachError> {
        self.netns
            .enter(|| installation.attach("eth0", Mode::Native))
    }

    fn detach(&self) -> Result<attach::Detached, AttachError> {
        let Options {
            pin_root,
            run_folder,
            ..
        } = &self.options;
        self.netns
            .enter(|| attach::detach(pin_root, run_folder, None))
    }

    fn network(&self) -> Result<String> {
        let bpftool = self.netns.run(Command::new("bpftool").arg("net"))?;
        let clsact = self
            .netns
            .run(Command::new("tc").args(["qdisc", "show", "dev", "eth0"]))?;
        Ok(bpftool + &clsact)
    }

    /// Id of the XDP link on `eth0`.
    fn link(&self) -> Result<u64> {
        let path = self.options.pin_root.join("links/xdp-eth0");
        let shown = run(Command::new("bpftool")
            .args(["-j", "link", "show", "pinned"])
            .arg(path))?;
        serde_json::from_str::<serde_json::Value>(&shown)?["id"]
            .as_u64()
            .with_context(|| shown.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.options.pin_root));
    }
}
