//! Questions to rtnetlink, asked and answered at once: what is attached to an interface, what it is.
//!
//! Interfaces are those of the calling thread's network namespace.

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
        tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// An interface, as far as attaching needs to know it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    /// Bytes, without the Ethernet header.
    pub(super) mtu: u32,
    pub(super) xdp: Option<Xdp>,
    /// Index of the interface that it is a VLAN of.
    pub(super) vlan_of: Option<u32>,
    /// Index of the interface that it is a port of.
    pub(super) port_of: Option<u32>,
}

/// The XDP program of an interface. With one program in each mode the native one is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Xdp {
    pub(super) program: u32,
    pub(super) generic: bool,
}

/// A BPF filter of `clsact`'s or `ingress`' incoming side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Filter {
    pub(super) priority: u16,
    pub(super) handle: u32,
    /// The name it was given when it was added.
    pub(super) name: String,
    pub(super) program: u32,
}

/// The interface of this name.
pub(super) fn interface(name: &str) -> io::Result<Option<Interface>> {
    let mut ask = LinkMessage::default();
    ask.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let answer = match request(RouteNetlinkMessage::GetLink(ask), NLM_F_REQUEST | NLM_F_ACK) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        answer => answer?,
    };
    Ok(answer.into_iter().find_map(link))
}

/// All interfaces.
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let ask = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answer = request(ask, NLM_F_REQUEST | NLM_F_DUMP)?;
    Ok(answer.into_iter().filter_map(link).collect())
}

/// Kinds of the queueing disciplines at an interface's ingress hook (`clsact` or `ingress`), at most one.
pub(super) fn ingress_discipline(ifindex: u32) -> io::Result<Option<String>> {
    let ask = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(ifindex as i32));
    let answer = request(ask, NLM_F_REQUEST | NLM_F_DUMP)?;
    Ok(answer.into_iter().find_map(|message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(message)
            if message.header.index == ifindex as i32 =>
        {
            kind(&message).filter(|kind| matches!(kind.as_str(), "clsact" | "ingress"))
        }
        _ => None,
    }))
}

/// Filters of one side of an interface: `parent` is [`INGRESS`] or [`EGRESS`]. Those of other kinds than `bpf` have
/// program 0.
pub(super) fn filters(ifindex: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let mut ask = TcMessage::with_index(ifindex as i32);
    ask.header.parent = TcHandle::from(parent);
    let ask = RouteNetlinkMessage::GetTrafficFilter(ask);
    let answer = match request(ask, NLM_F_REQUEST | NLM_F_DUMP) {
        // No queueing discipline, no filters.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            return Ok(Vec::new());
        }
        answer => answer?,
    };
    Ok(answer
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewTrafficFilter(message) => Some(message),
            _ => None,
        })
        // The kernel also lists the (empty) head of each priority, with handle 0.
        .filter(|message| u32::from(message.header.handle) != 0)
        .map(filter)
        .collect())
}

/// `TC_H_CLSACT` with `TC_H_MIN_INGRESS`
pub(super) const INGRESS: u32 = 0xffff_fff2;
/// `TC_H_CLSACT` with `TC_H_MIN_EGRESS`
pub(super) const EGRESS: u32 = 0xffff_fff3;

/// Removes `clsact` from an interface, with all filters that it has.
pub(super) fn remove_clsact(ifindex: u32) -> io::Result<()> {
    let mut ask = TcMessage::with_index(ifindex as i32);
    ask.header.parent = TcHandle::from(0xffff_fff1);
    ask.header.handle = TcHandle::from(0xffff_0000);
    ask.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    let ask = RouteNetlinkMessage::DelQueueDiscipline(ask);
    request(ask, NLM_F_REQUEST | NLM_F_ACK).map(drop)
}

pub(crate) fn link(message: RouteNetlinkMessage) -> Option<Interface> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut interface = Interface {
        index: message.header.index,
        ..Interface::default()
    };
    let (mut vlan, mut below, mut elsewhere) = (false, None, false);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Xdp(attributes) => interface.xdp = xdp(&attributes),
            LinkAttribute::Link(index) => below = Some(index),
            LinkAttribute::Controller(index) => interface.port_of = Some(index),
            // The interface below is one of another namespace.
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                vlan |= infos.contains(&LinkInfo::Kind(InfoKind::Vlan));
            }
            _ => {}
        }
    }
    interface.vlan_of = below.filter(|_| vlan && !elsewhere);
    Some(interface)
}

fn xdp(attributes: &[LinkXdp]) -> Option<Xdp> {
    let mut found = None;
    for attribute in attributes {
        match attribute {
            LinkXdp::DrvProgId(program) | LinkXdp::HwProgId(program) => {
                return Some(Xdp {
                    program: *program,
                    generic: false,
                });
            }
            LinkXdp::SkbProgId(program) => {
                found = Some(Xdp {
                    program: *program,
                    generic: true,
                });
            }
            _ => {}
        }
    }
    // Kernels before 4.19 tell the id and the mode apart.
    found.or_else(|| {
        let program = attributes.iter().find_map(|attribute| match attribute {
            LinkXdp::ProgId(program) => Some(*program),
            _ => None,
        })?;
        Some(Xdp {
            program,
            generic: attributes.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer)),
        })
    })
}

pub(crate) fn filter(message: TcMessage) -> Filter {
    let mut filter = Filter {
        // Priority and protocol share the word.
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle.into(),
        name: String::new(),
        program: 0,
    };
    let options = message
        .attributes
        .into_iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    for option in options.flatten() {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = name,
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = id,
            _ => {}
        }
    }
    filter
}

fn kind(message: &TcMessage) -> Option<String> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.clone()),
            _ => None,
        })
}

/// Sends one request and collects all of its answer.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let mut answer = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if take(&datagram, &mut answer)? {
            return Ok(answer);
        }
    }
}

/// Adds what a datagram tells to `answer`; true if that was the last of it.
///
/// # Errors
/// The kernel's refusal, or bytes that are no messages of rtnetlink.
pub(crate) fn take(datagram: &[u8], answer: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message =
            NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
        let length = (message.header.length as usize).next_multiple_of(4).max(4);
        rest = rest.get(length..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => answer.push(inner),
            // An acknowledgement is an error with number 0.
            NetlinkPayload::Error(error) => match error.code {
                None => return Ok(true),
                Some(_) => return Err(error.to_io()),
            },
            NetlinkPayload::Done(_) => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}
