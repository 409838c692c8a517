//! Interfaces of all kinds: without TCX, renamed, gone and back, without native XDP.

use std::process::Command;

use anyhow::Result;
use lb_tests::is_root;
use lb_userspace::attach::{How, Kind, Mode, TcChoice};

use super::Place;

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
