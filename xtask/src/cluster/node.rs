//! A node: namespaces for its network, its name, its mounts and its processes, and in them containerd, kubelet and
//! kube-proxy at their usual places.
//!
//! Its first process is a shell that waits. When that one is killed, the kernel ends everything in the PID namespace,
//! pods and their shims included, and the mounts go with the last of them.

use super::{
    KubeProxy, cgroups, configs,
    layout::{Layout, Node},
    network, pki,
    process::{Process, until},
    programs::Programs,
    state::State,
};
use crate::run::quietly;
use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::{OsStr, OsString},
    fs,
    path::Path,
    process::Command,
    time::Duration,
};

/// On two busy cores; alone it takes 2 s.
const PATIENCE: Duration = Duration::from_mins(1);

/// Arguments: the node's folder and name. Everything usual lies below /var/lib, /var/log and /run. BPF programs are pinned on a
/// filesystem of the node's own.
///
/// The kubelet writes some settings of the kernel that are the whole machine's (a panic after an oops, for one). It
/// finds here that they are what it wants, and leaves them alone.
const HOLD: &str = r#"set -e
hostname "$2"
for folder in lib log; do mount --bind "$1/$folder" /var/$folder; done
mount -t tmpfs -o mode=755 tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t proc proc /proc
mkdir /run/settings
set -- vm/overcommit_memory 1 vm/panic_on_oom 0 kernel/panic 10 kernel/panic_on_oops 1 \
    kernel/keys/root_maxkeys 1000000 kernel/keys/root_maxbytes 25000000
while [ $# -gt 0 ]; do
    echo "$2" > "/run/settings/${1##*/}"
    mount --bind "/run/settings/${1##*/}" "/proc/sys/$1"
    shift 2
done
mount --make-rshared /
touch /run/held
while :; do sleep 3600; done
"#;

/// Starts a node as far as its container runtime.
pub(super) fn hold(state: &mut State, node: Node, pause: &str) -> Result<()> {
    let (layout, name) = (state.layout.clone(), node.name());
    let folder = layout.file(&name);
    for part in ["lib/kubelet", "log", "cni"] {
        let part = folder.join(part);
        fs::create_dir_all(&part).with_context(|| part.display().to_string())?;
    }
    cgroups::create(&layout.cgroup(node))?;
    for (file, text) in [
        (
            "containerd.toml",
            configs::containerd(&folder.join("cni"), pause),
        ),
        ("kubelet.yaml", configs::kubelet(&layout.cgroup(node))),
    ] {
        let path = folder.join(file);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    let unshare = [
        "unshare",
        "--uts",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
    ];
    let line: Vec<&OsStr> = unshare
        .into_iter()
        .chain(["--propagation", "private", "sh", "-c", HOLD, "hold"])
        .map(OsStr::new)
        .chain([folder.as_os_str(), OsStr::new(&name)])
        .collect();
    let line = network::entering(&layout, &name, line);
    let log = layout.file(&format!("log/{name}"));
    let holder = Process::start(&name, line, &log)?;
    state.started(holder.clone())?;
    let init = until(PATIENCE, || {
        let init = holder.child()?;
        let held = format!("/proc/{init}/root/run/held");
        ensure!(
            Path::new(&held).exists(),
            "{name} is not set up: {}",
            log.display()
        );
        Ok(init)
    })?;
    state.tell(&format!("{name} init"), init);
    let containerd = [
        "containerd".into(),
        "--config".into(),
        folder.join("containerd.toml").into_os_string(),
    ];
    start(state, node, "containerd", &containerd)
}

/// Starts what makes it a node of the cluster.
pub(super) fn join(
    state: &mut State,
    programs: &Programs,
    node: Node,
    kube_proxy: KubeProxy,
) -> Result<()> {
    let (layout, name) = (state.layout.clone(), node.name());
    let folder = layout.file(&name);
    let addresses = node.addresses();
    let kubelet = [
        programs.file("kubelet")?.into_os_string(),
        option("--config", &folder.join("kubelet.yaml")),
        option("--kubeconfig", &pki::kubeconfig(&layout, &name)),
        format!("--hostname-override={name}").into(),
        format!("--node-ip={},{}", addresses.v4, addresses.v6).into(),
    ];
    start(state, node, "kubelet", &kubelet)?;
    let Some(mode) = kube_proxy.mode() else {
        return Ok(());
    };
    let config = folder.join("kube-proxy.yaml");
    let kubeconfig = pki::kubeconfig(&layout, "kube-proxy");
    fs::write(&config, configs::kube_proxy(mode, &name, &kubeconfig))
        .with_context(|| config.display().to_string())?;
    let line = [
        programs.file("kube-proxy")?.into_os_string(),
        option("--config", &config),
    ];
    start(state, node, "kube-proxy", &line)
}

/// Brings an image into the node's container runtime, which may be starting still.
pub(super) fn import(state: &State, node: Node, archive: &Path) -> Result<()> {
    ensure!(archive.is_file(), "{}: no file", archive.display());
    until(PATIENCE, || {
        super::control::ended(state, &format!("{}-containerd", node.name()))?;
        let version = ["ctr", "version"].map(OsString::from);
        quietly(&mut command(state, node, &version)?).map(drop)
    })?;
    let import = ["ctr", "-n", "k8s.io", "images", "import"].map(OsString::from);
    let archive = archive.as_os_str().to_owned();
    let line: Vec<_> = import.into_iter().chain([archive]).collect();
    quietly(&mut command(state, node, &line)?).map(drop)
}

/// Ends a program, and the process that `nsenter` waits for where the program is inside of a node.
pub(super) fn end(layout: &Layout, process: &Process) -> Result<()> {
    let inside = |node: Node| process.name.starts_with(&format!("{}-", node.name()));
    if layout.nodes().any(inside)
        && process.alive()
        && let Some(child) = Pid::from_raw(process.child()?)
    {
        kill_process(child, Signal::KILL).with_context(|| process.name.clone())?;
    }
    process.kill()
}

/// A command line inside a node.
pub(super) fn command(state: &State, node: Node, line: &[OsString]) -> Result<Command> {
    let line = inside(state, node, line)?;
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]);
    Ok(command)
}

pub(super) fn start(state: &mut State, node: Node, name: &str, line: &[OsString]) -> Result<()> {
    let name = format!("{}-{name}", node.name());
    let line = inside(state, node, line)?;
    let log = state.layout.file(&format!("log/{name}"));
    state.started(Process::start(&name, line, &log)?)
}

/// By the node's first process, which has all its namespaces.
fn inside(state: &State, node: Node, line: &[OsString]) -> Result<Vec<OsString>> {
    let init = state.process(&node.name())?.child()?;
    let mut whole: Vec<OsString> = vec![
        "nsenter".into(),
        format!("--target={init}").into(),
        "--net".into(),
        "--uts".into(),
        "--mount".into(),
        "--pid".into(),
        "--".into(),
    ];
    whole.extend_from_slice(line);
    Ok(whole)
}

pub(super) fn option(name: &str, value: &Path) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    text
}

/// Removes what a node left outside of its namespaces.
pub(super) fn forget(layout: &Layout, node: Node) -> Result<()> {
    cgroups::remove(&layout.cgroup(node))
}
