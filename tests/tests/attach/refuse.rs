//! What an agent refuses to start beside.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    is_root,
    netns::{Folder, run, unique_name},
    pass::PassProgram,
};
use lb_userspace::attach::{AttachError, Installation, Kind, Mode, Options};

use super::Place;

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
