//! `millrace explain` on a node: by which line of the contract a client's packet goes its way, and that it does go there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::cluster::{Agents, Call, Cluster, Explained, Reach, vips, with_agents};
use lb_userspace::observe::view::Outcome;
use serde_json::{Value, json};

/// Source ports to each frontend. With half of the pods here, one run in 2^19 meets none of one kind.
const PORTS: usize = 10;

/// Who answers, by address; and those that are here.
struct Pods {
    names: BTreeMap<IpAddr, String>,
    here: BTreeSet<String>,
}

/// Fields of a Service that serves the client's own addresses, and nobody else.
fn only_the_client(cluster: &Cluster) -> Result<Value> {
    let v4 = cluster.address("client", false)?;
    let v6 = cluster.address("client", true)?;
    let ranges = [format!("{v4}/32"), format!("{v6}/128")];
    Ok(json!({"loadBalancerSourceRanges": ranges}))
}

/// The agent is asked first, for a port that is bound already; then the client connects from there. Who is told to be
/// served here meets the pod that was named, which sees who asks; kube-proxy masquerades the others.
///
/// A2.4, A3.13, A4.1, A4.2, A9.1, A10.1
#[test]
fn clients_meet_what_an_agent_explains() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("explained")?;
        space.spread("web", 2)?;
        space.service("web", &vips(100), &only_the_client(cluster)?)?;
        let near = json!({"selector": {"app": "web"}, "externalTrafficPolicy": "Local"});
        space.service("near", &vips(101), &near)?;
        let pods = Pods {
            names: space.pods_by_address("web")?,
            here: space.pods("web", Some("node1"))?,
        };
        let mut local = 0;
        for server in agents.serve_vips(vips(100))? {
            local += compare(cluster, agents, &pods, server, "A4.1")?;
        }
        ensure!(local > 0 && local < 2 * PORTS, "{local} are this node's");
        for server in agents.serve_vips(vips(101))? {
            let local = compare(cluster, agents, &pods, server, "A4.2")?;
            ensure!(local == PORTS, "{server}: {local} are this node's");
        }
        Ok(())
    })
}

/// How many of the packets explained and sent are this node's.
fn compare(
    cluster: &Cluster,
    agents: &Agents<'_>,
    pods: &Pods,
    server: SocketAddr,
    set: &str,
) -> Result<usize> {
    let callers = cluster.callers(PORTS, server.is_ipv6())?;
    let ports: Vec<_> = callers.iter().map(|caller| caller.from).collect();
    let said = agents.explain("node1", &ports, server, "syn")?;
    let before = agents.served("node1", server)?;
    let mut local = Vec::new();
    let mut calls = Vec::new();
    for (caller, said) in callers.into_iter().zip(&said) {
        said.ensure_rule("frontend", "A2.4")?;
        said.ensure_rule("source", "A9.1")?;
        said.ensure_rule("backend", set)?;
        said.ensure_rule("mode", "A3.13")?;
        let mut call = caller.call(server)?;
        if meets(pods, &mut call, said).with_context(|| format!("{server}: {said:#?}"))? {
            local.push(call.from);
        }
        calls.push(call);
    }
    let after = agents.served("node1", server)?;
    let new = after.new_flows - before.new_flows;
    ensure!(new == local.len() as u64, "{server}: {new}, not {local:?}");
    let passes = after.passed > before.passed;
    ensure!(passes == (local.len() < calls.len()), "{server}: {after:?}");

    // The calls go on, so the packet path knows each that is its own.
    let flows = agents.flows("node1", server)?;
    for (from, said) in ports.iter().zip(&said) {
        let flow = flows.iter().find(|flow| flow.client == *from);
        let named = said.said.backend.filter(|_| local.contains(from));
        let backend = flow.map(|flow| flow.backend);
        ensure!(backend == named, "{from}: {flow:?}, not {said:#?}");
    }
    let again: Vec<_> = local.iter().copied().take(1).collect();
    for said in agents.explain("node1", &again, server, "ack")? {
        ensure!(said.step("flow") == ("hit", "known flow"), "{said:#?}");
    }
    Ok(local.len())
}

/// Whether it is the node's own; it is an error if it is not as it was said.
fn meets(pods: &Pods, call: &mut Call, said: &Explained) -> Result<bool> {
    let (name, seen) = (call.get("hostname")?, call.seen()?);
    let named = said.said.backend.context("a backend")?;
    let named = &pods.names[&named.ip()];
    let local = match said.step("mode").0 {
        "local" => true,
        "pass" => false,
        other => bail!("mode {other}"),
    };
    ensure!(pods.here.contains(named) == local, "{named}");
    if local {
        ensure!(said.exit == Some(0) && said.said.outcome == Outcome::Forwarded);
        ensure!(name == *named, "{name}, not {named}");
        ensure!(seen == call.from, "seen as {seen}");
    } else {
        ensure!(said.exit == Some(3) && said.said.outcome == Outcome::Passed);
        ensure!(pods.names.values().any(|pod| *pod == name), "{name}");
        ensure!(seen.ip() != call.from.ip(), "seen as {seen}");
    }
    Ok(local)
}

/// A2.11, A6.1, A6.2, A9.1
#[test]
fn clients_that_no_pod_serves_meet_what_an_agent_explains() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("unserved")?;
        space.spread("web", 1)?;
        space.service("web", &vips(102), &only_the_client(cluster)?)?;
        let pods = space.pods("web", Some("node2"))?;
        let elsewhere = pods.first().context("a pod of node2")?;
        space.kubectl(&["label", "pod", elsewhere, "far=yes"])?;
        let far = json!({"selector": {"far": "yes"}, "externalTrafficPolicy": "Local"});
        space.service("far", &vips(103), &far)?;
        space.service("nobody", &vips(104), &json!({}))?;
        agents.serve_vips(vips(102))?;
        for (number, reach) in [(103, Reach::Silent), (104, Reach::Refused)] {
            for vip in vips(number) {
                cluster.route(vip, "node1")?;
                cluster.wait_until(reach, SocketAddr::new(vip, 80))?;
            }
        }
        for v6 in [false, true] {
            let own = cluster.address("client", v6)?;
            let (second, _until_then) = cluster.second_address(v6)?;
            let at = |number, port| SocketAddr::new(vips(number)[usize::from(v6)], port);
            for (from, server, line, outcome, reach) in [
                (own, at(102, 9), "A2.11", Outcome::Answered, Reach::Refused),
                (own, at(103, 80), "A6.2", Outcome::Dropped, Reach::Silent),
                (own, at(104, 80), "A6.1", Outcome::Answered, Reach::Refused),
                (second, at(102, 80), "A9.1", Outcome::Dropped, Reach::Silent),
            ] {
                let caller = cluster.caller(from)?;
                let said = agents.explain("node1", &[caller.from], server, "syn")?;
                let [said] = &said[..] else {
                    bail!("{said:#?}");
                };
                said.ensure_rule("VERDICT", line)?;
                ensure!(said.said.outcome == outcome, "{server}: {said:#?}");
                ensure!(said.exit == Some(1), "{server}: {said:#?}");
                caller.ensure(reach, server)?;
            }
        }
        Ok(())
    })
}
