//! Loading, pinning, adopting, replacing and leaving, each in a namespace and a pin folder of its own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData, MapInfo};
use lb_tests::{
    foreign::ForeignXdp,
    is_root,
    netns::{Folder, Netns, run, unique_name},
};
use lb_userspace::{
    attach::{self, AttachError, How, Installation, Kind, Mode, Options, TcChoice},
    dataplane::Dataplane as _,
    plan::{Limits, Op},
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

    fn pins(&self) -> Vec<PathBuf> {
        files(&self.options.pin_root)
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

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn an_installation_outlives_its_process_and_is_adopted() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    let before = place.network()?;
    let mut first = place.open()?;
    assert!(first.is_fresh());
    let attached = place.attach(&mut first)?;
    assert_eq!((attached.xdp, attached.tc), (How::Attached, How::Attached));
    first
        .dataplane()?
        .apply(&[Op::Address { index: 7, word: 42 }])?;
    let link = place.link()?;
    // As SIGKILL leaves it: nothing of ours runs at the end.
    drop(first);
    assert_ne!(place.network()?, before);

    let mut second = place.open()?;
    assert!(!second.is_fresh());
    let map = MapData::from_pin(second.maps().join("ADDRESSES"))?;
    let words: Array<_, u64> = Array::try_from(Map::Array(map))?;
    assert_eq!(words.get(&7, 0)?, 42);
    let attached = place.attach(&mut second)?;
    assert_eq!((attached.xdp, attached.tc), (How::Replaced, How::Replaced));
    assert_eq!(place.link()?, link);
    drop(second);

    let detached = place.detach()?;
    assert!(detached.all && detached.interfaces.contains("eth0"));
    assert_eq!(place.network()?, before);
    assert!(!place.options.pin_root.exists());
    assert!(!place.options.run_folder.exists());
    Ok(())
}
