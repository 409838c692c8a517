//! Replies whose connection the kernel no longer tracks (idle, or `conntrack -D`): a backend of this node that speaks first
//! again looks to the CNI's masquerading like one that opens a connection, and its reply would get the node's address before
//! it reaches our program at tc egress. So such packets keep their own source, by a chain that stands right before:
//!
//! ```text
//! table inet millrace {
//!   set backends4 { typeof ip saddr . meta l4proto . th sport }
//!   set backends6 { typeof ip6 saddr . meta l4proto . th sport }
//!   chain replies {
//!     type nat hook postrouting priority 99
//!     ip saddr . meta l4proto . th sport @backends4 snat to ip saddr
//!     ip6 saddr . meta l4proto . th sport @backends6 snat to ip6 saddr
//!   }
//! }
//! ```
//! It concerns only what comes from the backends' own ports, so that it is harmless where nobody looks after it; and it is
//! there only while the packet path takes packets: gone in bypass and with `detach`.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
};

use super::nft::{
    Attributes, Batch, DELETE_ELEMENTS, DELETE_TABLE, NEW_CHAIN, NEW_ELEMENTS, NEW_RULE, NEW_SET,
    NEW_TABLE, Nft,
};

const TABLE: &str = "millrace";
const CHAIN: &str = "replies";

/// One before `NF_IP_PRI_NAT_SRC`, where CNIs and kube-proxy masquerade.
const PRIORITY: u32 = 99;
/// `NF_INET_POST_ROUTING`
const POSTROUTING: u32 = 4;

/// Elements of one message: its attributes' length has 16 bits.
const ELEMENTS: usize = 1000;

/// Where a backend of this node answers from: address, port, IP protocol number.
pub type Answering = (SocketAddr, u8);

/// What differs between the families.
struct Family {
    set: &'static str,
    /// The types of the components, for `nft list`: `ipv4_addr` (7) or `ipv6_addr` (8), `inet_proto` (12) and
    /// `inet_service` (13), 6 bits each.
    key_type: u32,
    /// Bytes of an address.
    address: u32,
    /// Of the source address in the IP header.
    offset: u32,
    /// `NFPROTO_*`
    protocol: u8,
    id: u32,
}

const V4: Family = Family {
    set: "backends4",
    key_type: 0x730d,
    address: 4,
    offset: 12,
    protocol: 2,
    id: 1,
};

const V6: Family = Family {
    set: "backends6",
    key_type: 0x830d,
    address: 16,
    offset: 8,
    protocol: 10,
    id: 2,
};

/// Makes the table with these backends, in the place of one that is there.
///
/// # Errors
/// The kernel's: nothing is changed then. EPERM without `CAP_NET_ADMIN`; ENOENT or EOPNOTSUPP without nftables.
pub fn write(nft: &mut Nft, backends: &BTreeSet<Answering>) -> io::Result<()> {
    let mut batch = Batch::new();
    let table = Attributes::default().text(1, TABLE);
    // To delete it, it must be there.
    batch.push(NEW_TABLE, &table);
    batch.push(DELETE_TABLE, &table);
    batch.push(NEW_TABLE, &table);
    let hook = Attributes::default()
        .number(1, POSTROUTING)
        .number(2, PRIORITY);
    let chain = Attributes::default()
        .text(1, TABLE)
        .text(3, CHAIN)
        .nested(4, &hook)
        .text(7, "nat");
    batch.push(NEW_CHAIN, &chain);
    for family in [&V4, &V6] {
        let set = Attributes::default()
            .text(1, TABLE)
            .text(2, family.set)
            .number(3, 0)
            .number(4, family.key_type)
            // Each component takes whole words.
            .number(5, family.address + 8)
            .number(10, family.id);
        batch.push(NEW_SET, &set);
        let rule = Attributes::default()
            .text(1, TABLE)
            .text(2, CHAIN)
            .nested(4, &rule(family));
        batch.push(NEW_RULE, &rule);
    }
    batch.commit(nft)?;
    change(nft, backends, &BTreeSet::new())
}

/// Adds and removes backends.
///
/// # Errors
/// As [`write()`]; ENOENT if the table is gone.
pub fn change(
    nft: &mut Nft,
    added: &BTreeSet<Answering>,
    removed: &BTreeSet<Answering>,
) -> io::Result<()> {
    elements(nft, NEW_ELEMENTS, added)?;
    elements(nft, DELETE_ELEMENTS, removed)
}

/// Whether the table is there.
///
/// # Errors
/// The kernel's.
pub fn are_kept(nft: &mut Nft) -> io::Result<bool> {
    nft.has_table(TABLE)
}

/// Removes the table; says whether it was there.
///
/// # Errors
/// The kernel's.
pub fn remove(nft: &mut Nft) -> io::Result<bool> {
    if !are_kept(nft)? {
        return Ok(false);
    }
    let mut batch = Batch::new();
    batch.push(DELETE_TABLE, &Attributes::default().text(1, TABLE));
    match batch.commit(nft) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(true),
    }
}

/// As many at a time as fit the socket's buffer.
fn elements(nft: &mut Nft, message: u16, backends: &BTreeSet<Answering>) -> io::Result<()> {
    for family in [&V4, &V6] {
        let of_family = |(socket, _): &&Answering| socket.ip().is_ipv4() == (family.protocol == 2);
        let all: Vec<_> = backends.iter().filter(of_family).collect();
        for some in all.chunks(ELEMENTS) {
            let list = some.iter().fold(Attributes::default(), |list, backend| {
                let key = Attributes::default().bytes(1, &key(backend));
                list.nested(1, &Attributes::default().nested(1, &key))
            });
            let attributes = Attributes::default()
                .text(1, TABLE)
                .text(2, family.set)
                .nested(3, &list);
            let mut batch = Batch::new();
            batch.push(message, &attributes);
            batch.commit(nft)?;
        }
    }
    Ok(())
}

/// Components as they lie in registers: network byte order, padded to words.
fn key((socket, protocol): &Answering) -> Vec<u8> {
    let mut key = match socket.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    key.extend([*protocol, 0, 0, 0]);
    key.extend(socket.port().to_be_bytes());
    key.extend([0, 0]);
    key
}

/// The expressions of a family's rule.
fn rule(family: &Family) -> Attributes {
    /// `NFT_REG32_00`, and those of 32 bits behind it.
    const REGISTER: u32 = 8;
    let words = family.address / 4;
    let expression = |list: Attributes, name: &str, data: &Attributes| {
        let one = Attributes::default().text(1, name).nested(2, data);
        list.nested(1, &one)
    };
    // meta nfproto: NFT_META_NFPROTO is 15, NFT_META_L4PROTO 16.
    let meta = |key: u32, to: u32| Attributes::default().number(1, to).number(2, key);
    let payload = |to: u32, base: u32, offset: u32, length: u32| {
        Attributes::default()
            .number(1, to)
            .number(2, base)
            .number(3, offset)
            .number(4, length)
    };
    let value = Attributes::default().bytes(1, &[family.protocol]);
    let equal = Attributes::default()
        .number(1, REGISTER)
        .number(2, 0)
        .nested(3, &value);
    let lookup = Attributes::default()
        .text(1, family.set)
        .number(2, REGISTER)
        .number(4, family.id);
    // NFT_NAT_SNAT, to what the register still has.
    let nat = Attributes::default()
        .number(1, 0)
        .number(2, family.protocol.into())
        .number(3, REGISTER);
    let list = expression(Attributes::default(), "meta", &meta(15, REGISTER));
    let list = expression(list, "cmp", &equal);
    let list = expression(
        list,
        "payload",
        &payload(REGISTER, 1, family.offset, family.address),
    );
    let list = expression(list, "meta", &meta(16, REGISTER + words));
    let list = expression(list, "payload", &payload(REGISTER + words + 1, 2, 0, 2));
    let list = expression(list, "lookup", &lookup);
    expression(list, "nat", &nat)
}
