//! What is in the kernel already: adopted, replaced, left behind.

use std::{
    fs,
    net::UdpSocket,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::ABI_VERSION;
use lb_tests::{clients::backlog_drops, is_root, netns::run};
use lb_userspace::{attach::How, dataplane::Dataplane as _, plan::Op};

use super::Place;

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

const REPLACEMENTS: usize = 8;

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
    let dropped = backlog_drops()?;
    let socket = place.netns.enter(|| UdpSocket::bind("10.77.0.1:7"))?;
    let (answered, lost) = thread::scope(|scope| -> Result<_> {
        let echo = scope.spawn(|| echo(&socket, &going));
        let clients: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| place.other.enter(|| ask(&going))))
            .collect();
        let replaced = (0..REPLACEMENTS).try_for_each(|_| {
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
    println!("{REPLACEMENTS} replacements, {answered} packets answered, {lost} lost");
    assert_eq!(place.link()?, link);
    let dropped = backlog_drops()? - dropped;
    assert!(
        answered > 1000 && lost <= dropped,
        "{answered} answered, {lost} lost, {dropped} of them by the machine"
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
fn ask(going: &AtomicBool) -> Result<(u32, u64)> {
    let socket = UdpSocket::bind("10.77.0.2:0")?;
    socket.connect("10.77.0.1:7")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut answered, mut lost) = (0u32, 0u64);
    let mut bytes = [0; 64];
    while going.load(Ordering::Relaxed) {
        socket.send(&answered.to_be_bytes())?;
        match socket.recv(&mut bytes) {
            Ok(_) => answered += 1,
            // The end may come between question and answer.
            Err(_) => lost += u64::from(going.load(Ordering::Relaxed)),
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
