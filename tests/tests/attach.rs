//! Loading, pinning, adopting, replacing and leaving, each in a namespace and a pin folder of its own.

use std::{
    fs,
    net::UdpSocket,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::ABI_VERSION;
use lb_tests::{
    is_root,
    netns::{Folder, Netns, run, unique_name},
    pass::PassProgram,
};
use lb_userspace::{
    attach::{self, AttachError, How, Installation, Kind, Mode, Options, TcChoice},
    dataplane::Dataplane as _,
    plan::{Limits, Op},
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

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

#[test]
fn a_new_program_takes_over_the_link_without_losing_a_packet() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    place.netns.ip(["address add 10.77.0.1/24 dev eth0"])?;
    place.other.ip(["address add 10.77.0.2/24 dev eth1"])?;
    let mut installation = place.open()?;
    place.attach(&mut installation)?;
    drop(installation);
    let link = place.link()?;
    let going = AtomicBool::new(true);
    let socket = place.netns.enter(|| UdpSocket::bind("10.77.0.1:7"))?;
    let (answered, lost) = thread::scope(|scope| -> Result<_> {
        let echo = scope.spawn(|| echo(&socket, &going));
        let clients: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| place.other.enter(|| ask(&going))))
            .collect();
        let replaced = (0..20).try_for_each(|_| {
            let mut installation = place.open()?;
            let attached = place.attach(&mut installation)?;
            let replaced = (attached.xdp, attached.tc) == (How::Replaced, How::Replaced);
            ensure!(replaced, "{attached:?}");
            Ok(())
        });
        going.store(false, Ordering::Relaxed);
        let (mut answered, mut lost) = (0, 0);
        for client in clients {
            let counts = client.join().expect("client")?;
            answered += counts.0;
            lost += counts.1;
        }
        echo.join().expect("echo")?;
        replaced.map(|()| (answered, lost))
    })?;
    println!("20 replacements, {answered} packets answered, {lost} lost");
    assert_eq!(place.link()?, link);
    assert!(
        answered > 1000 && lost == 0,
        "{answered} answered, {lost} lost"
    );
    Ok(())
}

/// Sends every datagram back.
fn echo(socket: &UdpSocket, going: &AtomicBool) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut bytes = [0; 64];
    while going.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(&bytes[..length], from)?;
        }
    }
    Ok(())
}

/// Asks one question after the other; how many were answered, how many were not within a second.
fn ask(going: &AtomicBool) -> Result<(u32, u32)> {
    let socket = UdpSocket::bind("10.77.0.2:0")?;
    socket.connect("10.77.0.1:7")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut answered, mut lost) = (0u32, 0u32);
    let mut bytes = [0; 64];
    while going.load(Ordering::Relaxed) {
        socket.send(&answered.to_be_bytes())?;
        match socket.recv(&mut bytes) {
            Ok(_) => answered += 1,
            // The end may come between question and answer.
            Err(_) => lost += u32::from(going.load(Ordering::Relaxed)),
        }
    }
    Ok((answered, lost))
}

#[test]
fn other_sizes_make_new_maps_beside_the_old_ones() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut place = Place::make()?;
    let mut installation = place.open()?;
    place.attach(&mut installation)?;
    let (link, old) = (place.link()?, installation.maps().to_owned());
    drop(installation);

    place.options.limits.backends *= 2;
    let installation = place.open()?;
    assert!(installation.is_fresh() && installation.maps() != old);
    let replaces = installation.replaces().context("the old maps are in use")?;
    assert!(
        replaces.why.contains("BACKENDS: entries"),
        "{}",
        replaces.why
    );
    assert_eq!((replaces.abi, replaces.flows), (ABI_VERSION, 0));
    // Killed while the new maps are filled: the old ones are still those in use, the new ones are left behind.
    let left = place.options.pin_root.join(format!("abi{ABI_VERSION}-7"));
    fs::create_dir(&left)?;
    for map in fs::read_dir(installation.maps())? {
        let map = map?.path();
        if map
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("program-"))
        {
            continue;
        }
        let copy = left.join(map.file_name().context("name")?);
        run(Command::new("bpftool")
            .args(["map", "pin", "pinned"])
            .arg(&map)
            .arg(copy))?;
    }
    drop(installation);
    let mut installation = place.open()?;
    assert!(installation.is_fresh() && old.exists() && !left.exists());
    place.attach(&mut installation)?;
    assert_eq!(place.link()?, link);
    assert_eq!(installation.retire()?, 1);
    assert!(!old.exists() && installation.replaces().is_none());
    drop(installation);

    // And the new maps are adopted from now on.
    assert!(!place.open()?.is_fresh());
    Ok(())
}

#[test]
fn a_pin_that_is_not_ours_is_refused_and_stays() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    let mut installation = place.open()?;
    place.attach(&mut installation)?;
    let maps = installation.maps().to_owned();
    drop(installation);
    let (pin, stranger) = (maps.join("FRONTENDS4"), maps.join("SLOTS"));
    fs::remove_file(&pin)?;
    run(Command::new("bpftool")
        .args(["map", "pin", "pinned"])
        .arg(&stranger)
        .arg(&pin))?;
    let error = place.open().expect_err("a map of another name");
    assert_eq!(error.kind(), Kind::ForeignPin);
    assert!(error.to_string().contains("FRONTENDS4"), "{error}");
    let error = place.detach().expect_err("what is not ours is not removed");
    assert_eq!(error.kind(), Kind::ForeignPin);
    assert!(pin.exists() && stranger.exists());

    // A program where a map should be.
    fs::remove_file(&pin)?;
    let program = place.options.pin_root.join("links/xdp-eth0");
    run(Command::new("bpftool")
        .args(["link", "pin", "pinned"])
        .arg(program)
        .arg(&pin))?;
    let error = place.open().expect_err("a link");
    assert_eq!(error.kind(), Kind::ForeignPin);
    Ok(())
}

#[test]
fn a_map_that_was_unpinned_is_not_made_anew_among_the_others() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    let mut installation = place.open()?;
    place.attach(&mut installation)?;
    let maps = installation.maps().to_owned();
    drop(installation);
    fs::remove_file(maps.join("MEMBERS"))?;
    let installation = place.open()?;
    assert!(installation.is_fresh());
    let replaces = installation.replaces().context("the rest is in use")?;
    assert_eq!(replaces.why, "MEMBERS: missing");
    Ok(())
}

#[test]
fn a_second_agent_is_refused_in_the_same_folder_and_on_the_same_interface() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    let mut first = place.open()?;
    place.attach(&mut first)?;
    let before = place.network()?;
    let error = place.open().expect_err("the folder is taken");
    assert_eq!(error.kind(), Kind::SecondAgent);
    let pid = std::process::id().to_string();
    assert!(error.to_string().contains(&pid), "{error}");
    assert_eq!(place.detach().expect_err("taken").kind(), Kind::SecondAgent);

    let elsewhere = Options {
        pin_root: PathBuf::from("/sys/fs/bpf").join(unique_name("pins2")),
        ..place.options.clone()
    };
    let error = place.netns.enter(|| -> Result<_> {
        let mut second = Installation::open(&elsewhere)?;
        let error = second.attach("eth0", Mode::Native);
        drop(second);
        ensure!(!elsewhere.pin_root.exists(), "maps of a refused start");
        Ok(error.expect_err("the interface is taken"))
    })?;
    assert_eq!(error.kind(), Kind::SecondAgent);
    assert!(error.to_string().contains("eth0"), "{error}");
    assert_eq!(place.network()?, before);
    Ok(())
}

#[test]
fn a_foreign_xdp_program_is_named_and_stays() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    let _stranger = PassProgram::attach(&place.netns, "eth0")?;
    let before = place.network()?;
    let mut installation = place.open()?;
    let error = place.attach(&mut installation).expect_err("taken");
    assert_eq!(error.kind(), Kind::ForeignProgram);
    let id = before.split(" id ").nth(1).context(before.clone())?;
    let id = id.split_whitespace().next().context("id")?;
    let named = format!("program {id}");
    assert!(error.to_string().contains(&named), "{error}");
    // The tc program, which was first, is gone again; and so are the maps when the agent gives up.
    assert_eq!(place.network()?, before);
    assert!(place.options.pin_root.exists());
    drop(installation);
    assert!(!place.options.pin_root.exists());
    Ok(())
}

#[test]
fn without_tcx_a_filter_is_added_and_a_shared_clsact_stays() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut place = Place::make()?;
    place.options.tc = TcChoice::Clsact;
    let before = place.network()?;
    // Ours alone: clsact comes and goes with the filter.
    for how in [How::Attached, How::Replaced] {
        let mut installation = place.open()?;
        let attached = place.attach(&mut installation)?;
        assert_eq!((attached.tc, attached.egress), (how, how));
    }
    for program in ["millrace_tc", "millrace_egress"] {
        assert!(place.network()?.contains(program));
    }
    place.detach()?;
    assert_eq!(place.network()?, before);

    // Someone else's: its filters stay, and so does it.
    let tc = |arguments: &str| {
        place
            .netns
            .run(Command::new("tc").args(arguments.split(' ')))
    };
    tc("qdisc add dev eth0 clsact")?;
    let bytecode = "1,6 0 0 0,";
    place.netns.run(
        Command::new("tc")
            .args("filter add dev eth0 ingress prio 1 bpf bytecode".split(' '))
            .arg(bytecode),
    )?;
    let before = place.network()?;
    let filters = tc("filter show dev eth0 ingress")?;
    let mut installation = place.open()?;
    place.attach(&mut installation)?;
    assert!(tc("filter show dev eth0 ingress")?.contains("millrace_tc"));
    assert!(tc("filter show dev eth0 egress")?.contains("millrace_egress"));
    drop(installation);
    place.detach()?;
    assert_eq!(place.network()?, before);
    assert_eq!(tc("filter show dev eth0 ingress")?, filters);
    assert_eq!(tc("filter show dev eth0 egress")?, "");
    Ok(())
}

#[test]
fn an_interface_that_comes_back_is_attached_again() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    let mut installation = place.open()?;
    place.attach(&mut installation)?;
    place
        .netns
        .ip(["link set eth0 down", "link set eth0 name uplink.5"])?;
    let renamed = place
        .netns
        .enter(|| installation.attach("uplink.5", Mode::Native))?;
    assert_eq!(renamed.xdp, How::Replaced);
    assert_eq!(installation.attached()?, ["uplink.5".to_owned()].into());

    place.netns.ip(["link del uplink.5"])?;
    let error = place.attach(&mut installation).expect_err("gone");
    assert_eq!(error.kind(), Kind::Interface);
    assert!(error.to_string().contains("eth0"), "{error}");
    assert!(installation.attached()?.is_empty());
    place.netns.ip(["link add eth0 type veth peer name eth1"])?;
    assert_eq!(place.attach(&mut installation)?.xdp, How::Attached);
    place.netns.enter(|| installation.release("eth0"))?;
    assert!(installation.attached()?.is_empty());
    Ok(())
}

#[test]
fn a_device_without_native_xdp_is_told_what_helps() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    let mut installation = place.open()?;
    let error = place
        .netns
        .enter(|| installation.attach("lo", Mode::Native))
        .expect_err("loopback has none");
    assert_eq!(error.kind(), Kind::Unfit);
    assert!(error.to_string().contains("xdp.mode: generic"), "{error}");
    let generic = place
        .netns
        .enter(|| installation.attach("lo", Mode::Generic))?;
    assert_eq!(generic.xdp, How::Attached);

    // A change of mode is a new attachment, both ways.
    for mode in [Mode::Native, Mode::Generic, Mode::Native] {
        let attached = place.netns.enter(|| installation.attach("eth0", mode))?;
        assert_eq!(attached.xdp, How::Attached);
        let shown = place.network()?;
        let eth0 = shown
            .lines()
            .find(|line| line.starts_with("eth0"))
            .unwrap_or(&shown);
        let expected = if mode == Mode::Native {
            "driver"
        } else {
            "generic"
        };
        assert!(eth0.contains(expected), "{shown}");
    }
    Ok(())
}

#[test]
fn a_folder_on_another_filesystem_is_refused_and_not_made() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut place = Place::make()?;
    let folder = Folder::create("pins")?;
    place.options.pin_root = folder.file("millrace");
    let error = place.open().expect_err("no BPF filesystem");
    assert!(matches!(error, AttachError::NoBpffs(_)), "{error}");
    assert!(!place.options.pin_root.exists());
    Ok(())
}

#[test]
fn missing_capabilities_are_named() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    // Capabilities are a thread's own, and this thread ends here.
    let error = thread::scope(|scope| {
        let powerless = scope.spawn(|| -> Result<_> {
            let mut sets = capabilities(None)?;
            sets.effective = CapabilitySet::empty();
            set_capabilities(None, sets)?;
            Ok(Installation::open(&place.options).expect_err("no rights"))
        });
        powerless.join().expect("thread")
    })?;
    assert_eq!(error.kind(), Kind::Privileges);
    for name in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"] {
        assert!(error.to_string().contains(name), "{error}");
    }
    Ok(())
}

/// What interface.md section 5 gives the agent's pod, on a thread of its own.
fn with_the_documented_capabilities<T: Send>(
    place: &Place,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    place.netns.enter(|| {
        let mut sets = capabilities(None)?;
        let documented = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::PERFMON;
        sets.effective = documented;
        set_capabilities(None, sets)?;
        work()
    })
}

#[test]
fn the_documented_capabilities_are_enough_to_tell_the_maps_in_use() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut place = Place::make()?;
    let old = with_the_documented_capabilities(&place, || {
        let mut first = Installation::open(&place.options)?;
        first.attach("eth0", Mode::Native)?;
        Ok(first.maps().to_owned())
    })?;
    let link = place.link()?;
    place.options.limits.backends *= 2;
    with_the_documented_capabilities(&place, || {
        let mut second = Installation::open(&place.options)?;
        ensure!(
            second.replaces().is_some(),
            "the maps in use were not found"
        );
        ensure!(old.exists(), "the maps in use were removed");
        let attached = second.attach("eth0", Mode::Native)?;
        ensure!(attached.xdp == How::Replaced, "{attached:?}");
        ensure!(second.retire()? == 1 && !old.exists());
        drop(second);
        ensure!(
            !Installation::open(&place.options)?.is_fresh(),
            "not adopted"
        );
        Ok(())
    })?;
    assert_eq!(place.link()?, link);
    Ok(())
}

#[test]
fn another_agent_is_known_after_the_right_to_look_is_dropped() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    let mut first = place.open()?;
    place.attach(&mut first)?;
    let elsewhere = Options {
        pin_root: PathBuf::from("/sys/fs/bpf").join(unique_name("pins2")),
        ..place.options.clone()
    };
    let mut second = place.netns.enter(|| Installation::open(&elsewhere))?;
    let error = with_the_documented_capabilities(&place, || {
        Ok(second.attach("eth0", Mode::Native).expect_err("taken"))
    })?;
    assert_eq!(error.kind(), Kind::SecondAgent, "{error}");
    Ok(())
}

#[test]
fn each_start_leaves_one_program_behind() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let place = Place::make()?;
    for _ in 0..4 {
        let mut installation = place.open()?;
        place.attach(&mut installation)?;
        installation.retire()?;
        let programs = fs::read_dir(installation.maps())?
            .flatten()
            .filter(|file| file.file_name().to_string_lossy().starts_with("program-"));
        assert_eq!(programs.count(), 1);
    }
    Ok(())
}
