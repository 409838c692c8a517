//! Capabilities: those that are needed, and what is told without.

use std::{path::PathBuf, thread};

use anyhow::{Result, ensure};
use lb_tests::{is_root, netns::unique_name};
use lb_userspace::attach::{How, Installation, Kind, Mode, Options};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::Place;

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
