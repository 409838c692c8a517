//! Who on this host gives packets another source, and so takes ports of an own address that nobody can see: rules with
//! `masquerade` in nftables, those of `iptables` that live there among them, asked of the kernel itself; those of the
//! older `iptables-legacy` by its own tool, where it is used at all.

use std::{
    fs, io,
    process::{Command, Stdio},
};

use rtnetlink::sys::{Socket, SocketAddr};

/// A rule that masquerades.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Masquerade {
    pub table: String,
    pub chain: String,
}

impl Masquerade {
    /// Whether kube-proxy made it: by the names of its nftables and iptables modes.
    pub fn is_kube_proxy(&self) -> bool {
        self.table == "kube-proxy" || self.chain == "KUBE-POSTROUTING"
    }
}

/// `NETLINK_NETFILTER`
const NETFILTER: isize = 12;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE`, and the answer's `NFT_MSG_NEWRULE`
const GET_RULE: u16 = 10 << 8 | 7;
const NEW_RULE: u16 = 10 << 8 | 6;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// struct nlmsghdr, struct nfgenmsg
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// `NFTA_RULE_*`
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const EXPRESSIONS: u16 = 4;
/// `NFTA_EXPR_*`
const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFTA_TARGET_NAME`
const TARGET: u16 = 1;

/// Every chain of the calling thread's network namespace that masquerades, sorted.
///
/// # Errors
/// The kernel's: EPERM without `CAP_NET_ADMIN`. A kernel without nftables has no rules in them.
pub fn masquerades() -> io::Result<Vec<Masquerade>> {
    let mut found = nftables()?;
    // The file is there when the module is, and names the tables in use.
    let legacy = ["ip", "ip6"].into_iter().any(|family| {
        let names = fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names"));
        names.is_ok_and(|names| names.lines().any(|name| name == "nat"))
    });
    if legacy {
        for tool in ["iptables-legacy-save", "ip6tables-legacy-save"] {
            let saved = Command::new(tool)
                .args(["-t", "nat"])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .output();
            // Without the tool nobody could have made rules, but for another one's container.
            if let Ok(saved) = saved {
                found.extend(saved_rules(&String::from_utf8_lossy(&saved.stdout)));
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Chains with `-j MASQUERADE` of what `iptables-save -t nat` prints.
fn saved_rules(text: &str) -> Vec<Masquerade> {
    let rules = text
        .lines()
        .filter(|line| line.starts_with("-A ") && line.contains(" MASQUERADE"));
    let chains = rules.filter_map(|line| line.split_ascii_whitespace().nth(1));
    chains
        .map(|chain| Masquerade {
            table: "nat".to_owned(),
            chain: chain.to_owned(),
        })
        .collect()
}

fn nftables() -> io::Result<Vec<Masquerade>> {
    let mut socket = match Socket::new(NETFILTER) {
        // A kernel without any of it.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        socket => socket?,
    };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(), 0)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&bytes) {
            match kind {
                NEW_RULE => found.extend(masquerade(body.get(FAMILY..).unwrap_or_default())),
                DONE => return Ok(found),
                ERROR => {
                    let code = body
                        .first_chunk()
                        .map_or(0, |code| i32::from_ne_bytes(*code));
                    let error = io::Error::from_raw_os_error(-code);
                    return match error.raw_os_error() {
                        // No such subsystem: no nftables.
                        Some(libc::EINVAL | libc::EOPNOTSUPP) => Ok(found),
                        _ => Err(error),
                    };
                }
                _ => {}
            }
        }
    }
}

/// All rules of all families.
fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + FAMILY);
    bytes.extend(((HEADER + FAMILY) as u32).to_ne_bytes());
    bytes.extend(GET_RULE.to_ne_bytes());
    bytes.extend(DUMP.to_ne_bytes());
    // Sequence and port; family 0 (all), version 0, resource 0.
    bytes.extend([0; 8 + FAMILY]);
    bytes
}

/// Types and bodies of the messages in a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let message = bytes
            .get(..length)
            .filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        Some((kind, &message[HEADER..]))
    })
}

/// Types (without the flags of nesting and byte order) and values of the attributes of a message.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// The rule's place, if one of its expressions masquerades: `masq`, or what `iptables` calls a target.
fn masquerade(rule: &[u8]) -> Option<Masquerade> {
    let expressions = attribute(rule, EXPRESSIONS)?;
    let does = attributes(expressions).any(|(_, expression)| {
        let name = attribute(expression, NAME).map(text);
        let target = || {
            let data = attribute(expression, DATA)?;
            attribute(data, TARGET).map(text)
        };
        match name.as_deref() {
            Some("masq") => true,
            Some("target") => target().as_deref() == Some("MASQUERADE"),
            _ => false,
        }
    });
    does.then(|| Masquerade {
        table: attribute(rule, TABLE).map(text).unwrap_or_default(),
        chain: attribute(rule, CHAIN).map(text).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn rule(table: &[u8], chain: &[u8], expressions: &[Vec<u8>]) -> Vec<u8> {
        let list: Vec<u8> = expressions.iter().flat_map(|one| put(1, one)).collect();
        // NLA_F_NESTED
        [
            put(TABLE, table),
            put(CHAIN, chain),
            put(0x8000 | EXPRESSIONS, &list),
        ]
        .concat()
    }

    #[test]
    fn rules_of_either_kind_are_found() {
        let masq = put(NAME, b"masq\0");
        let target = [
            put(NAME, b"target\0"),
            put(DATA, &put(TARGET, b"MASQUERADE\0")),
        ]
        .concat();
        let counter = put(NAME, b"counter\0");
        let found = masquerade(&rule(
            b"kube-proxy\0",
            b"masquerading\0",
            &[counter.clone(), masq],
        ));
        assert!(found.as_ref().is_some_and(Masquerade::is_kube_proxy));
        assert_eq!(found.unwrap().chain, "masquerading");
        let found = masquerade(&rule(b"nat\0", b"KUBE-POSTROUTING\0", &[target]));
        assert!(found.is_some_and(|found| found.is_kube_proxy()));
        assert_eq!(masquerade(&rule(b"nat\0", b"x\0", &[counter])), None);
    }

    #[test]
    fn saved_rules_are_read_by_line() {
        let text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
                    -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n-A OUTPUT -j KUBE-SERVICES\nCOMMIT\n";
        let chains: Vec<_> = saved_rules(text)
            .into_iter()
            .map(|rule| rule.chain)
            .collect();
        assert_eq!(chains, ["POSTROUTING", "KUBE-POSTROUTING"]);
    }

    #[test]
    fn garbage_is_no_rule() {
        for bytes in [&[][..], &[0xff; 3], &[0xff; 64], &[0; 64]] {
            assert_eq!(masquerade(bytes), None);
            assert!(messages(bytes).count() < 64);
        }
    }
}
