//! The cluster's network namespaces, and programs run in them.

use super::{
    layout::{self, Layout},
    nic,
};
use crate::run::{quietly, text};
use anyhow::{Context as _, Result, ensure};
use std::{
    ffi::OsStr,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// For every place. Duplicate address detection takes a second per address.
const SETTINGS: [&str; 6] = [
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.all.accept_ra=0",
    "net.ipv6.conf.default.accept_ra=0",
];

/// For those that forward.
const FORWARDING: [&str; 2] = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];

/// Full checksums in each frame, nothing left to a NIC that is none, and GRO as NICs have it.
const LIKE_A_WIRE: &str = "tx off txvlan off rxvlan off gso off gro on";

/// An error where a cluster runs whose state is gone: nobody knows its processes.
pub(super) fn ensure_unused(layout: &Layout) -> Result<()> {
    for place in layout.places() {
        let namespace = layout.namespace(&place);
        ensure!(
            !path(&namespace).exists(),
            "a cluster is running whose folder was removed: end what `ip netns pids {namespace}` names, then \
             `ip netns del {namespace}`"
        );
    }
    Ok(())
}

/// Makes all namespaces and the links between them.
pub(super) fn lay(layout: &Layout) -> Result<()> {
    for place in layout.places() {
        quietly(Command::new("ip").args(["netns", "add", &layout.namespace(&place)]))?;
        let forwards = place == "router" || place.starts_with("node");
        let settings = SETTINGS
            .iter()
            .chain(forwards.then_some(&FORWARDING).into_iter().flatten());
        quietly(&mut inside(
            layout,
            &place,
            ["sysctl", "--quiet", "--write"].iter().chain(settings),
        ))?;
    }
    apply(layout, &layout::links(layout))?;
    nic::take_everything(layout)?;
    for place in layout.places().skip(1) {
        for (namespace, device) in [(place.as_str(), "eth0"), ("router", place.as_str())] {
            let ethtool = ["ethtool", "-K", device]
                .into_iter()
                .chain(LIKE_A_WIRE.split(' '));
            quietly(&mut inside(layout, namespace, ethtool))?;
        }
    }
    Ok(())
}

/// Runs batches of `ip` commands, each in its place.
pub(super) fn apply(layout: &Layout, commands: &[(String, String)]) -> Result<()> {
    for (place, commands) in commands {
        batch(&layout.namespace(place), commands).with_context(|| place.clone())?;
    }
    Ok(())
}

/// Deletes what there is of the namespaces; who may still hold one keeps it without its name.
pub(super) fn remove(layout: &Layout) -> Result<()> {
    for place in layout.places() {
        let namespace = layout.namespace(&place);
        if path(&namespace).exists() {
            quietly(Command::new("ip").args(["netns", "del", &namespace]))?;
        }
    }
    Ok(())
}

/// A command line in a place's network, and nothing else of it: unlike `ip netns exec`, which mounts another `/sys` and
/// so hides the cgroups.
pub(super) fn entering<S: AsRef<OsStr>>(
    layout: &Layout,
    place: &str,
    line: impl IntoIterator<Item = S>,
) -> Vec<std::ffi::OsString> {
    let namespace = path(&layout.namespace(place));
    let mut whole = vec![
        "nsenter".into(),
        format!("--net={}", namespace.display()).into(),
        "--".into(),
    ];
    whole.extend(line.into_iter().map(|word| word.as_ref().to_owned()));
    whole
}

pub(super) fn inside<S: AsRef<OsStr>>(
    layout: &Layout,
    place: &str,
    line: impl IntoIterator<Item = S>,
) -> Command {
    let line = entering(layout, place, line);
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]);
    command
}

fn path(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

fn batch(namespace: &str, commands: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip")?;
    let mut input = ip.stdin.take().context("stdin of ip")?;
    input.write_all(commands.as_bytes())?;
    drop(input);
    let output = ip.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip -batch: {}\n{commands}",
        text(&output.stderr)
    );
    Ok(())
}
