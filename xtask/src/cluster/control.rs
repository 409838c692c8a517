//! The control plane: etcd, API server, controllers, scheduler and DNS, as plain processes of one namespace.

use super::{
    Cni,
    layout::{CONTROL, Layout, PODS, SERVICES},
    network,
    pki::{self, ACCOUNTS, AUTHORITY, CERTIFICATE, KEY, TOKENS},
    process::{Process, until},
    programs::Programs,
    state::State,
};
use crate::run::quietly;
use anyhow::{Context as _, Result, bail};
use std::{fs, path::Path, process::Command, time::Duration};

/// On two busy cores; alone it takes 6 s.
const PATIENCE: Duration = Duration::from_mins(2);

/// Starts everything and waits for the API server; what comes after it may still be starting.
pub(super) fn start(state: &mut State, programs: &Programs, cni: Cni) -> Result<()> {
    run(state, programs, "etcd", &etcd(&state.layout))?;
    run(
        state,
        programs,
        "kube-apiserver",
        &api_server(&state.layout),
    )?;
    until(PATIENCE, || {
        for name in ["etcd", "kube-apiserver"] {
            ended(state, name)?;
        }
        kubectl(state, &["get", "--raw=/readyz"]).map(drop)
    })?;
    // The controllers give up if there is no server for 10 s.
    let controllers = controllers(&state.layout, cni);
    run(state, programs, "kube-controller-manager", &controllers)?;
    run(state, programs, "kube-scheduler", &scheduler(&state.layout))?;
    let corefile = state.layout.file("Corefile");
    let text = corefile_text(&pki::kubeconfig(&state.layout, "coredns"));
    fs::write(&corefile, text).with_context(|| corefile.display().to_string())?;
    let coredns = vec!["-conf".to_owned(), corefile.display().to_string()];
    run(state, programs, "coredns", &coredns)
}

/// Waits for the last of the control plane.
pub(super) fn wait(state: &State) -> Result<()> {
    until(PATIENCE, || {
        ended(state, "coredns")?;
        let question = ["curl", "-sS", "--fail", "http://127.0.0.1:8181/ready"];
        quietly(&mut network::inside(&state.layout, "control", question)).map(drop)
    })
    .context("coredns")?;
    // Pods are refused until their service account is there.
    until(PATIENCE, || {
        kubectl(state, &["get", "serviceaccount", "default"]).map(drop)
    })
}

/// The administrator's kubectl, in the control plane's network.
pub(super) fn kubectl_command(state: &State) -> Result<Command> {
    let kubectl = state.path("kubectl")?;
    let mut command = network::inside(&state.layout, "control", [kubectl]);
    command
        .arg("--kubeconfig")
        .arg(pki::kubeconfig(&state.layout, "admin"));
    Ok(command)
}

pub(super) fn kubectl(state: &State, arguments: &[&str]) -> Result<Vec<u8>> {
    quietly(kubectl_command(state)?.args(arguments))
}

fn run(state: &mut State, programs: &Programs, name: &str, arguments: &[String]) -> Result<()> {
    let mut line = vec![programs.file(name)?.into_os_string()];
    line.extend(arguments.iter().map(Into::into));
    let line = network::entering(&state.layout, "control", line);
    let log = state.layout.file(&format!("log/{name}"));
    state.started(Process::start(name, line, &log)?)
}

/// An error where a program ended, with the end of what it said.
pub(super) fn ended(state: &State, name: &str) -> Result<()> {
    if state.process(name)?.alive() {
        return Ok(());
    }
    let log = state.layout.file(&format!("log/{name}"));
    let said = fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<_> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(20)..].join("\n");
    bail!("{name} ended ({}):\n{last}", log.display());
}

/// Synchronising to a disk is for data that shall be there tomorrow.
fn etcd(layout: &Layout) -> Vec<String> {
    let mut line = words(
        "--unsafe-no-fsync --log-level=warn
         --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379
         --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380
         --initial-cluster=default=http://127.0.0.1:2380",
    );
    line.push(format!("--data-dir={}", layout.file("etcd").display()));
    line
}

/// On the port of the service `kubernetes`, so that a cluster without kube-proxy needs routes only.
fn api_server(layout: &Layout) -> Vec<String> {
    let file = |path: &str| layout.file(path).display().to_string();
    let mut line = words(
        "--etcd-servers=http://127.0.0.1:2379 --secure-port=443 --allow-privileged=true
         --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
         --kubelet-preferred-address-types=InternalIP
         --service-account-issuer=https://kubernetes.default.svc.cluster.local",
    );
    line.extend([
        format!("--advertise-address={}", CONTROL.v4),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--tls-cert-file={}", file(CERTIFICATE)),
        format!("--tls-private-key-file={}", file(KEY)),
        format!("--service-account-key-file={}", file(ACCOUNTS)),
        format!("--service-account-signing-key-file={}", file(ACCOUNTS)),
        format!("--token-auth-file={}", file(TOKENS)),
    ]);
    line
}

/// A dead node is known after 20 s, not 50. Flannel has nodes' networks from here.
fn controllers(layout: &Layout, cni: Cni) -> Vec<String> {
    let file = |path: &str| layout.file(path).display().to_string();
    let mut line = words(
        "--leader-elect=false --bind-address=127.0.0.1 --use-service-account-credentials=true
         --node-monitor-period=2s --node-monitor-grace-period=20s",
    );
    line.extend([
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--service-account-private-key-file={}", file(ACCOUNTS)),
        format!("--root-ca-file={}", file(AUTHORITY)),
        kubeconfig(layout, "kube-controller-manager"),
        format!("--allocate-node-cidrs={}", cni == Cni::Flannel),
        format!("--cluster-cidr={PODS}"),
    ]);
    line
}

fn scheduler(layout: &Layout) -> Vec<String> {
    let mut line = words("--leader-elect=false --bind-address=127.0.0.1");
    line.push(kubeconfig(layout, "kube-scheduler"));
    line
}

fn kubeconfig(layout: &Layout, user: &str) -> String {
    format!("--kubeconfig={}", pki::kubeconfig(layout, user).display())
}

fn corefile_text(kubeconfig: &Path) -> String {
    format!(
        ".:53 {{
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {}
        pods insecure
        ttl 5
    }}
}}
",
        kubeconfig.display()
    )
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_has_two_families_and_both_halves_of_the_accounts_key() {
        let line = api_server(&Layout::new(Path::new("/x"), 2));
        for word in [
            "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112",
            "--service-account-signing-key-file=/x/pki/accounts.key",
            "--authorization-mode=Node,RBAC",
        ] {
            assert!(line.iter().any(|have| have == word), "{line:?}");
        }
    }

    #[test]
    fn everyone_finds_his_own_kubeconfig() {
        let layout = Layout::new(Path::new("/x"), 1);
        let own = "--kubeconfig=/x/kubeconfig/kube-scheduler".to_owned();
        assert!(scheduler(&layout).contains(&own));
        assert!(corefile_text(Path::new("/x/kubeconfig/coredns")).contains("kubeconfig /x/kube"));
    }
}
