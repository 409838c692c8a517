//! nftables by netlink, as much of it as one table needs: no `nft` program is asked for, an image may have none.
//!
//! Attributes and numbers: `linux/netfilter/nf_tables.h`. Everything in one batch happens in one step or not at all.
//!
//! A connection is kept for what is to come: when one is closed the kernel first frees what batches have taken away, and
//! waits for that, a grace period long (the kernel's `nft_rcv_nl_event`).

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

/// `NETLINK_NETFILTER`
const NETFILTER: isize = 12;
/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;

/// `NFPROTO_UNSPEC`, `NFPROTO_INET`
const UNSPECIFIED: u8 = 0;
const INET: u8 = 1;

/// `NFT_MSG_*`
pub(super) const NEW_TABLE: u16 = 0;
pub(super) const GET_TABLE: u16 = 1;
pub(super) const DELETE_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const NEW_SET: u16 = 9;
pub(super) const NEW_ELEMENTS: u16 = 12;
pub(super) const DELETE_ELEMENTS: u16 = 14;

/// Attributes of a message, one after the other.
#[derive(Clone, Default, Debug)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, value: &Self) -> Self {
        self.bytes(kind | NESTED, &value.0)
    }

    pub(super) const fn length(&self) -> usize {
        self.0.len()
    }
}

/// Messages that take effect together.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            last: 0,
        };
        batch.put(
            BATCH_BEGIN,
            0,
            UNSPECIFIED,
            SUBSYSTEM,
            &Attributes::default(),
        );
        batch
    }

    /// A message about something in an `inet` table.
    pub(super) fn push(&mut self, message: u16, attributes: &Attributes) {
        let create = matches!(
            message,
            NEW_TABLE | NEW_CHAIN | NEW_RULE | NEW_SET | NEW_ELEMENTS
        );
        let flags = if create { CREATE } else { 0 };
        self.put(SUBSYSTEM << 8 | message, flags, INET, 0, attributes);
    }

    fn put(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &Attributes) {
        self.last = self.bytes.len();
        put(&mut self.bytes, kind, flags, family, resource, attributes);
    }

    /// Has the kernel do it.
    ///
    /// # Errors
    /// The kernel's, of the first message that it refuses: nothing is changed then. EPERM without `CAP_NET_ADMIN`.
    pub(super) fn commit(mut self, nft: &mut Nft) -> io::Result<()> {
        // Refusals come unasked, in the order of the messages; the last one's number comes in any case.
        let at = self.last + 6;
        let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | ACK;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        self.put(BATCH_END, 0, UNSPECIFIED, SUBSYSTEM, &Attributes::default());
        nft.ask(&self.bytes)
    }
}

/// The kernel's nftables, asked in the network namespace of the thread that asks first.
#[derive(Default, Debug)]
pub struct Nft(Option<Socket>);

impl Nft {
    /// Whether this `inet` table is there. A kernel without nftables has none.
    pub(super) fn has_table(&mut self, name: &str) -> io::Result<bool> {
        let mut bytes = Vec::new();
        let table = Attributes::default().text(1, name);
        put(&mut bytes, SUBSYSTEM << 8 | GET_TABLE, 0, INET, 0, &table);
        match self.ask(&bytes) {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => {
                    Ok(false)
                }
                _ => Err(error),
            },
        }
    }

    /// Sends, and waits for the first answer: an error number, or what was asked for. A refusal may have others behind it,
    /// which are no answers to what comes next: the connection ends with it.
    fn ask(&mut self, bytes: &[u8]) -> io::Result<()> {
        let socket = match self.0.take() {
            Some(socket) => socket,
            None => connect()?,
        };
        socket.send(bytes, 0)?;
        let (answer, _) = socket.recv_from_full()?;
        let kind = answer.get(4..6).and_then(|kind| kind.first_chunk());
        if kind.map(|kind| u16::from_ne_bytes(*kind)) == Some(ERROR) {
            let code = answer.get(16..20).and_then(|code| code.first_chunk());
            match code.map_or(-libc::EIO, |code| i32::from_ne_bytes(*code)) {
                0 => {}
                code => return Err(io::Error::from_raw_os_error(-code)),
            }
        }
        self.0 = Some(socket);
        Ok(())
    }
}

fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// struct nlmsghdr, struct nfgenmsg, attributes.
fn put(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    attributes: &Attributes,
) {
    bytes.extend((20 + attributes.length() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | REQUEST).to_ne_bytes());
    // Sequence and port.
    bytes.extend([0; 8]);
    // Version 0.
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(&attributes.0);
}
