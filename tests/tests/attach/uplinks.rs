//! Uplinks of a running agent that a glob or a default route names: they come and go while it runs.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    balancer::{Balancer, PATIENCE},
    is_root,
    netns::{Netns, until},
};

const HEAD: &str = "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\n";

/// A namespace, and where the other ends of its interfaces are.
struct Host {
    netns: Netns,
    wire: Netns,
}

impl Host {
    fn make() -> Result<Self> {
        Ok(Self {
            netns: Netns::create("uplinks")?,
            wire: Netns::create("wire")?,
        })
    }

    /// An interface with `192.0.2.1/24`, or another third byte.
    fn plug(&self, name: &str, subnet: u8) -> Result<()> {
        let wire = self.wire.name();
        self.netns.ip([
            &*format!("link add {name} type veth peer name {name} netns {wire}"),
            &*format!("address add 192.0.{subnet}.1/24 dev {name}"),
            &*format!("link set {name} up"),
        ])
    }

    /// Names of the interfaces that have an XDP program, as the kernel has it.
    fn with_program(&self) -> Result<Vec<String>> {
        let shown = self
            .netns
            .run(Command::new("ip").args(["-j", "link", "show"]))?;
        let links: Vec<serde_json::Value> = serde_json::from_str(&shown)?;
        let programs = links.iter().filter(|link| link.get("xdp").is_some());
        let mut names: Vec<_> = programs
            .filter_map(|link| Some(link["ifname"].as_str()?.to_owned()))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Waits until these are the uplinks: of the agent, all attached, and of the kernel.
    fn has_uplinks(&self, balancer: &Balancer, names: &[&str]) -> Result<()> {
        until(PATIENCE, || {
            let status = balancer.json(&["status"])?;
            let shown = status["interfaces"].as_array().context("interfaces")?;
            let mut native = Vec::new();
            for interface in shown {
                ensure!(interface.to_string().contains("native"), "{interface}");
                native.push(interface["name"].as_str().context("a name")?);
            }
            ensure!(native == names, "{native:?}, not {names:?}");
            let with = self.with_program()?;
            ensure!(with == names, "{with:?} have programs, not {names:?}");
            Ok(())
        })
        .with_context(|| balancer.log())
    }
}

/// Nothing went wrong, and nothing is left of an interface that is gone.
fn ensure_clean(balancer: &Balancer, gone: &str) -> Result<()> {
    let log = balancer.log();
    ensure!(!log.contains("ERROR"), "{log}");
    for home in fs::read_dir(balancer.pins().join("links"))?.flatten() {
        let name = home.file_name().to_string_lossy().into_owned();
        ensure!(!name.ends_with(gone), "{name} is left");
    }
    Ok(())
}

/// A host with `eth0`, and an agent to be run for the interfaces of default routes.
fn prepared(services: &str) -> Result<(Host, Balancer)> {
    let host = Host::make()?;
    host.plug("eth0", 2)?;
    let balancer = Balancer::prepare(&host.netns)?;
    let kubeconfig = balancer.file().with_file_name("kubeconfig");
    fs::write(&kubeconfig, NOBODY)?;
    let services = services.replace("KUBECONFIG", &kubeconfig.display().to_string());
    balancer.write(&format!("{HEAD}interfaces: []\n{services}"))?;
    Ok((host, balancer))
}

fn default_routes_are_followed(services: &str) -> Result<()> {
    let (host, mut balancer) = prepared(services)?;
    host.netns.ip([DEFAULT])?;
    balancer.run()?;
    host.has_uplinks(&balancer, &["eth0"])?;

    host.plug("eth1", 3)?;
    host.plug("eth2", 4)?;
    host.netns
        .ip(["route add default via 192.0.3.254 dev eth1 metric 200"])?;
    host.has_uplinks(&balancer, &["eth0", "eth1"])?;
    host.netns.ip([
        "route del default via 192.0.2.254 dev eth0",
        "route add default via 192.0.4.254 dev eth2",
    ])?;
    host.has_uplinks(&balancer, &["eth0", "eth1", "eth2"])?;
    host.netns.ip(["link del eth1"])?;
    host.has_uplinks(&balancer, &["eth0", "eth2"])?;
    ensure_clean(&balancer, "eth1")?;

    // Gone while no agent runs, and with it the last default route.
    balancer.kill()?;
    host.netns.ip(["link del eth2"])?;
    balancer.run()?;
    host.has_uplinks(&balancer, &["eth0"])?;
    ensure_clean(&balancer, "eth2")
}

/// `eth0` becomes an uplink by this.
const DEFAULT: &str = "route add default via 192.0.2.254 dev eth0";

/// Services that come from [`NOBODY`].
const CLUSTER: &str = "kubernetes: {node: n1, kubeconfig: KUBECONFIG}\n";

/// An API server that does not answer.
const NOBODY: &str = "apiVersion: v1
kind: Config
current-context: nobody
clusters: [{name: nobody, cluster: {server: \"http://127.0.0.1:9\"}}]
contexts: [{name: nobody, context: {cluster: nobody, user: nobody}}]
users: [{name: nobody, user: {}}]
";

#[test]
fn interfaces_of_default_routes_come_and_go() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    default_routes_are_followed("services: []\n")
}

#[test]
fn interfaces_of_default_routes_come_and_go_in_a_cluster_too() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    default_routes_are_followed(CLUSTER)
}

#[test]
fn an_agent_in_a_cluster_waits_for_the_first_default_route() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (host, mut balancer) = prepared(CLUSTER)?;
    balancer.run()?;
    host.has_uplinks(&balancer, &[])?;
    let status = balancer.cli(&["status"])?;
    ensure!(status.contains("waits for an uplink"), "{status}");
    ensure!(
        balancer.log().contains("waiting for one"),
        "{}",
        balancer.log()
    );
    host.netns.ip([DEFAULT])?;
    host.has_uplinks(&balancer, &["eth0"])?;
    let status = balancer.cli(&["status"])?;
    ensure!(!status.contains("waits for an uplink"), "{status}");
    Ok(())
}

#[test]
fn an_agent_with_a_file_says_that_there_is_no_default_route() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (_host, balancer) = prepared("services: []\n")?;
    let (code, said) = balancer.refusal()?;
    ensure!(code == Some(7), "{code:?}: {said}");
    ensure!(said.contains("with a default route"), "{said}");
    Ok(())
}

#[test]
fn a_glob_means_interfaces_that_come_later_too() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let host = Host::make()?;
    host.plug("up0", 2)?;
    host.plug("down0", 3)?;
    let mut balancer = Balancer::prepare(&host.netns)?;
    balancer.write(&format!("{HEAD}interfaces: [\"up*\"]\nservices: []\n"))?;
    balancer.run()?;
    host.has_uplinks(&balancer, &["up0"])?;
    host.plug("up1", 4)?;
    host.has_uplinks(&balancer, &["up0", "up1"])?;
    host.netns.ip([
        "link del up1",
        "link set down0 down",
        "link set down0 name up2",
    ])?;
    host.has_uplinks(&balancer, &["up0", "up2"])?;
    ensure_clean(&balancer, "up1")
}
