//! What is served by the packet path goes through its node's own stack: that meets clients as they are, and packets of any
//! shape arrive.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Reason;
use lb_tests::{
    cluster::{Agents, Cluster, NodeWire, PATIENCE, Reach, vips, with_agents},
    datagrams,
    netns::{run, until},
};
use serde_json::json;

/// Connections to each family's frontend. With half of the pods here, one run in 2^19 meets none of one kind.
const CALLS: usize = 10;

/// A10.1
#[test]
fn a_nodes_own_stack_meets_clients_as_they_are() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("stack")?;
        space.spread("web", 1)?;
        space.service("web", &vips(110), &json!({}))?;
        let near = json!({"selector": {"app": "web"}, "externalTrafficPolicy": "Local"});
        space.service("near", &vips(111), &near)?;
        let (mut own, mut others) = (0, 0);
        for server in agents.serve_vips(vips(110))? {
            let served = only_kube_proxy_translates(cluster, server)?;
            own += served;
            others += CALLS - served;
        }
        ensure!(own > 0 && others > 0, "{own} and {others} by kube-proxy");
        for server in agents.serve_vips(vips(111))? {
            a_network_policy_holds(cluster, agents, server)?;
            strict_paths_are_kept(cluster, agents, server)?;
        }
        Ok(())
    })
}

/// Connection tracking has the client at both ends of what the packet path serves, which is how many calls; kube-proxy
/// masquerades the others.
fn only_kube_proxy_translates(cluster: &Cluster, server: SocketAddr) -> Result<usize> {
    let mut own = 0;
    for caller in cluster.callers(CALLS, server.is_ipv6())? {
        let mut call = caller.call(server)?;
        let served = call.seen()? == call.from;
        let known = cluster.tracked("node1", call.from)?;
        ensure!(!known.is_empty(), "{}: nothing", call.from);
        for known in &known {
            let [_, to] = known.original;
            let [_, back] = known.reply;
            ensure!((back == call.from) == served, "{known:?}");
            ensure!((to == server) != served, "{known:?}");
        }
        own += usize::from(served);
    }
    Ok(own)
}

/// What forbids a client the pods of a node, forbids him those that he is served by the packet path.
fn a_network_policy_holds(
    cluster: &Cluster,
    agents: &Agents<'_>,
    server: SocketAddr,
) -> Result<()> {
    let v6 = server.is_ipv6();
    let client = cluster.address("client", v6)?;
    let (other, _until_then) = cluster.second_address(v6)?;
    let family = if v6 { "ip6" } else { "ip" };
    let chain = format!(
        "chain forward {{
            type filter hook forward priority 0;
            oifname cni0 {family} saddr {client} drop
        }}"
    );
    let policy = cluster.filter("node1", "denied", &chain)?;
    let before = agents.served("node1", server)?;
    cluster.caller(client)?.ensure(Reach::Silent, server)?;
    let after = agents.served("node1", server)?;
    ensure!(after.new_flows > before.new_flows, "{before:?}, {after:?}");
    let mut call = cluster.caller(other)?.call(server)?;
    ensure!(call.seen()? == call.from, "{}", call.seen()?);
    drop(policy);
    cluster.caller(client)?.ensure(Reach::Answered, server)
}

/// A node that takes packets only from where it would send to, takes those whose destination was rewritten in its driver.
fn strict_paths_are_kept(cluster: &Cluster, agents: &Agents<'_>, server: SocketAddr) -> Result<()> {
    let _strict = cluster.strict_paths("node1")?;
    // As firewalld does it for IPv6, which has no setting.
    let chain = "chain prerouting {
            type filter hook prerouting priority raw;
            icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
            meta nfproto ipv6 fib saddr . iif oif missing drop
        }";
    let _strict6 = cluster.filter("node1", "strict", chain)?;
    let (_, done) = agents.answering("node1", server)?;
    let new = done.new_flows;
    ensure!(new == Cluster::REQUESTS, "{server}: {new} by XDP");
    cluster.ensure_seen(server)
}

/// Whoever loads a firewall of his own begins with `flush ruleset`.
#[test]
fn a_table_that_somebody_removed_is_made_again() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("flushed")?;
        space.spread("web", 1)?;
        space.service("web", &vips(114), &json!({}))?;
        agents.serve_vips(vips(114))?;
        let table = ["inet", "millrace"];
        let shown = || {
            run(cluster
                .on_node("node1")?
                .args(["nft", "list", "table"])
                .args(table))
        };
        let before = until(PATIENCE, shown)?;
        run(cluster
            .on_node("node1")?
            .args(["nft", "delete", "table"])
            .args(table))?;
        until(PATIENCE, || {
            let after = shown()?;
            ensure!(after == before, "{after}, before: {before}");
            Ok(())
        })
    })
}

/// Bytes that go in several packets, each way.
const MUCH: usize = 100_000;

/// What the servers read of one datagram, less the word that asks for an echo: two fragments on Ethernet.
const LARGE: usize = 2000;

/// What a marked packet of the client's is like in front of its pod: the router and the node have each taken one hop.
const HOPS: u8 = 62;

/// A10.4, A10.5, A10.6
#[test]
fn packets_of_any_shape_reach_the_pod_that_owns_the_flow() -> Result<()> {
    with_agents(|cluster, agents| {
        let space = cluster.space("shapes")?;
        space.spread("web", 1)?;
        let policy = json!({"externalTrafficPolicy": "Local"});
        space.service("web", &vips(112), &policy)?;
        let wire = cluster.wire("node1")?;
        for server in agents.serve_vips(vips(112))? {
            fragments_follow_their_first(cluster, agents, server)?;
            a_fragment_before_its_first_is_dropped(cluster, agents, &wire, server)?;
            unusual_headers_are_read(cluster, agents, &wire, server)?;
            a_network_that_the_node_is_not_in_stays_apart(cluster, &wire, server)?;
            marks_are_kept(cluster, server)?;
            a_pod_learns_of_a_smaller_mtu(cluster, agents, server)?;
        }
        Ok(())
    })
}

/// Question and answer are each a datagram in two fragments.
fn fragments_follow_their_first(
    cluster: &Cluster,
    agents: &Agents<'_>,
    server: SocketAddr,
) -> Result<()> {
    let before = agents.served_datagrams("node1", server)?;
    let client = cluster.datagrams(server)?;
    let large: String = ('a'..='z').cycle().take(LARGE).collect();
    let answer = client.exchange(format!("echo {large}").as_bytes())?;
    ensure!(answer == large.as_bytes(), "{} bytes", answer.len());
    let after = agents.served_datagrams("node1", server)?;
    ensure!(after.new_flows == before.new_flows + 1, "{after:?}");
    ensure!(after.replies > before.replies, "{before:?}, {after:?}");
    ensure!(after.passed == before.passed, "{before:?}, {after:?}");
    Ok(())
}

/// A piece that comes before the one with the ports is dropped, and counted; the whole datagram in order behind it arrives,
/// and nothing of that piece is in it.
fn a_fragment_before_its_first_is_dropped(
    cluster: &Cluster,
    agents: &Agents<'_>,
    wire: &NodeWire,
    server: SocketAddr,
) -> Result<()> {
    let client = cluster.datagrams(server)?;
    // Of no other datagram in the last seconds.
    let id = u32::from(client.ends()?[0].port());
    let pieces = |filling: &str| -> Result<Vec<Vec<u8>>> {
        let question = format!("echo {}", filling.repeat(LARGE));
        let whole = wire.question(&client, &question)?;
        Ok(datagrams::fragments(&whole, id, 1400))
    };
    let dropped = || agents.ended("node1", Reason::FragmentUnknown);
    let before = dropped()?;
    wire.send(&pieces("x")?[1])?;
    until(PATIENCE, || {
        let dropped = dropped()?;
        ensure!(dropped == before + 1, "{server}: {dropped} after {before}");
        Ok(())
    })?;
    let inorder = pieces("y")?;
    inorder.iter().try_for_each(|piece| wire.send(piece))?;
    let answer = client.answer()?;
    ensure!(answer == "y".repeat(LARGE).as_bytes(), "{answer:?}");
    let dropped = dropped()?;
    ensure!(dropped == before + 1, "{server}: {dropped} after {before}");
    Ok(())
}

/// Priority 5 in no VLAN (IEEE 802.1Q, section 6.9), as customer's tag and as service tag.
const PRIORITY: [u8; 4] = [0x81, 0, 0xa0, 0];
const SERVICE_PRIORITY: [u8; 4] = [0x88, 0xa8, 0xa0, 0];

/// What becomes of a frame.
type Shape = fn(&[u8]) -> Vec<u8>;

/// Options, extension headers and a checksum that is none are at the pod what they were at the client; tags that name no
/// VLAN are the node's alone. Each comes in a flow of its own.
fn unusual_headers_are_read(
    cluster: &Cluster,
    agents: &Agents<'_>,
    wire: &NodeWire,
    server: SocketAddr,
) -> Result<()> {
    let chain = "counter kept {}
        chain forward {
            type filter hook forward priority 0;
            oifname cni0 udp dport 8080 ip hdrlength 6 counter name kept
            oifname cni0 udp dport 8080 meta nfproto ipv4 udp checksum 0 counter name kept
            oifname cni0 udp dport 8080 exthdr hbh exists exthdr dst exists counter name kept
        }";
    let filter = cluster.filter("node1", "unusual", chain)?;
    let mut shapes: Vec<Shape> = vec![
        datagrams::with_options,
        |frame| datagrams::tagged(frame, &[PRIORITY]),
        |frame| datagrams::tagged(frame, &[SERVICE_PRIORITY, PRIORITY]),
    ];
    let mut kept = 1;
    if server.is_ipv4() {
        shapes.push(datagrams::without_checksum);
        kept += 1;
    }
    let before = agents.served_datagrams("node1", server)?;
    for (number, shape) in shapes.iter().enumerate() {
        let client = cluster.datagrams(server)?;
        let text = format!("shape {number}");
        wire.send(&shape(&wire.question(&client, &format!("echo {text}"))?))?;
        let answer = client
            .answer()
            .with_context(|| format!("{server}: {text}"))?;
        ensure!(answer == text.as_bytes(), "{answer:?}");
    }
    let done = agents.served_datagrams("node1", server)?.since(before);
    let all = shapes.len() as u64;
    ensure!(
        [done.new_flows, done.replies] == [all; 2] && done.passed == 0,
        "{done:?}"
    );
    let counted = filter.counted("kept")?;
    ensure!(counted == kept, "{server}: {counted} of {kept}");
    Ok(())
}

/// The node has no device for a VLAN, so a question from there ends in its stack, as without us; one without the tag is
/// answered.
fn a_network_that_the_node_is_not_in_stays_apart(
    cluster: &Cluster,
    wire: &NodeWire,
    server: SocketAddr,
) -> Result<()> {
    let client = cluster.datagrams(server)?;
    let chain = format!(
        "counter delivered {{}}
        chain forward {{
            type filter hook forward priority 0;
            oifname cni0 udp sport {} counter name delivered
        }}",
        client.ends()?[0].port()
    );
    let filter = cluster.filter("node1", "apart", &chain)?;
    let apart = wire.question(&client, "echo apart")?;
    wire.send(&datagrams::tagged(&apart, &[[0x81, 0, 0, 7]]))?;
    wire.send(&wire.question(&client, "echo here")?)?;
    let answer = client.answer()?;
    ensure!(answer == b"here", "{answer:?}");
    let delivered = filter.counted("delivered")?;
    ensure!(delivered == 1, "{server}: {delivered} at a pod");
    Ok(())
}

/// DSCP and ECN are at the pod what they were at the client, and the other way round; each hop is counted once.
fn marks_are_kept(cluster: &Cluster, server: SocketAddr) -> Result<()> {
    let v6 = server.is_ipv6();
    let (vip, client) = (server.ip(), cluster.address("client", v6)?);
    let (family, hops) = if v6 {
        ("ip6", "ip6 hoplimit")
    } else {
        ("ip", "ip ttl")
    };
    let asking = format!(
        "counter marked {{}}
        chain output {{
            type filter hook output priority 0;
            {family} daddr {vip} {family} dscp set af41 {family} ecn set ect0
        }}
        chain input {{
            type filter hook input priority 0;
            {family} saddr {vip} {family} dscp cs1 {family} ecn ect1 counter name marked
        }}"
    );
    let answering = format!(
        "counter marked {{}}
        chain forward {{
            type filter hook forward priority 0;
            oifname cni0 {family} saddr {client} {family} dscp af41 {family} ecn ect0 {hops} {HOPS} counter name marked
            iifname cni0 {family} daddr {client} {family} dscp set cs1 {family} ecn set ect1
        }}"
    );
    let asking = cluster.filter("client", "marks", &asking)?;
    let answering = cluster.filter("node1", "marks", &answering)?;
    cluster.get(server, "hostname")?;
    for (place, filter) in [("node1", answering), ("client", asking)] {
        let marked = filter.counted("marked")?;
        ensure!(marked > 0, "{server}: no marked packet at {place}");
    }
    Ok(())
}

/// The router tells the VIP that large segments do not fit on their way to the client; the pod that sent them is told, and
/// sends smaller ones.
fn a_pod_learns_of_a_smaller_mtu(
    cluster: &Cluster,
    agents: &Agents<'_>,
    server: SocketAddr,
) -> Result<()> {
    let chain = "counter told {}
        chain forward {
            type filter hook forward priority 0;
            oifname cni0 icmp code frag-needed counter name told
            oifname cni0 icmpv6 type packet-too-big counter name told
        }";
    let told = cluster.filter("node1", "told", chain)?;
    let _narrow = cluster.narrow(server.is_ipv6(), 1400)?;
    let before = agents.served("node1", server)?;
    let answer = cluster.get(server, &format!("echo?msg={}", "x".repeat(MUCH)))?;
    let came = answer.bytes().filter(|&byte| byte == b'x').count();
    ensure!(came == MUCH, "{server}: {came} bytes");
    let after = agents.served("node1", server)?;
    ensure!(after.new_flows == before.new_flows + 1, "{after:?}");
    let told = told.counted("told").context("told")?;
    ensure!(told > 0, "{server}: nobody was told");
    Ok(())
}
