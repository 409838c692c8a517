//! The balancer beside us: a ruleset in the shape that kube-proxy's nftables mode writes.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::{
    bench::contents::{self, Kind as Service},
    netns::Netns,
};

/// Lets a node balance a service.
pub(super) fn balance(node: &Netns, service: Service) -> Result<()> {
    nft(node, &rules(service))
}

/// Undoes [`balance`], and forgets the connections.
pub(super) fn stop(node: &Netns) -> Result<()> {
    nft(node, "flush ruleset")?;
    node.run(Command::new("conntrack").args(["-F"])).map(drop)
}

fn nft(node: &Netns, rules: &str) -> Result<()> {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped());
    let mut nft = node.enter(|| nft.spawn()).context("nft")?;
    std::io::Write::write_all(
        &mut nft.stdin.take().context("stdin of nft")?,
        rules.as_bytes(),
    )?;
    ensure!(nft.wait()?.success(), "nft refused:\n{rules}");
    Ok(())
}

/// As kube-proxy's nftables mode writes a service: a map from address, protocol and port to the service's chain, a random
/// backend of it, and masquerading of what was marked.
fn rules(service: Service) -> String {
    let vip = service.vip();
    let (address, port) = (vip.ip(), vip.port());
    let backends = || (0..contents::BACKENDS).map(|at| (at, service.backend(at)));
    let chains: Vec<String> = backends()
        .map(|(at, ip)| format!("chain endpoint-{at} {{ meta l4proto tcp dnat to {ip}:{port}; }}"))
        .collect();
    let choice: Vec<String> = backends()
        .map(|(at, _)| format!("{at} : goto endpoint-{at}"))
        .collect();
    let chains = chains.join("\n");
    let (count, choice) = (choice.len(), choice.join(", "));
    format!(
        "table ip kube-proxy {{
            map service-ips {{
                type ipv4_addr . inet_proto . inet_service : verdict
                elements = {{ {address} . tcp . {port} : goto service-web }}
            }}
            chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}
            {chains}
            chain service-web {{
                ip daddr {address} tcp dport {port} jump mark-for-masquerade
                numgen random mod {count} vmap {{ {choice} }}
            }}
            chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}
            chain nat-prerouting {{
                type nat hook prerouting priority dstnat; policy accept;
                jump services
            }}
            chain masquerading {{
                meta mark & 0x4000 == 0 return
                meta mark set meta mark ^ 0x4000
                masquerade fully-random
            }}
            chain nat-postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                jump masquerading
            }}
        }}"
    )
}
