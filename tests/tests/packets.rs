//! What the path does to each kind of packet, on the kernel and on the host. Expected frames and checksums are
//! etherparse's.

#![expect(
    unsafe_code,
    reason = "what all tests share is taken away when the program ends"
)]

#[path = "packets/arriving.rs"]
mod arriving;
#[path = "packets/dsr.rs"]
mod dsr;
#[path = "packets/echo.rs"]
mod echo;
#[path = "packets/flood.rs"]
mod flood;
#[path = "packets/fragments.rs"]
mod fragments;
#[path = "packets/hygiene.rs"]
mod hygiene;
#[path = "packets/icmp.rs"]
mod icmp;
#[path = "packets/lan.rs"]
mod lan;
#[path = "packets/local.rs"]
mod local;
#[path = "packets/moved.rs"]
mod moved;
#[path = "packets/mss.rs"]
mod mss;
#[path = "packets/mtu.rs"]
mod mtu;
#[path = "packets/odd.rs"]
mod odd;
#[path = "packets/ports.rs"]
mod ports;
#[path = "packets/probe.rs"]
mod probe;
#[path = "packets/stateful.rs"]
mod stateful;
#[path = "packets/stateless.rs"]
mod stateless;
#[path = "packets/vlan.rs"]
mod vlan;

use std::{
    net::IpAddr,
    sync::{Mutex, Once, PoisonError},
};

use anyhow::Result;
use etherparse::{PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use lb_tests::{both::Both, is_root, netns::Netns};

/// TCP flags of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
    Udp,
}

impl Kind {
    /// Of the packet that answers the first one of a flow.
    fn answered(self) -> Self {
        match self {
            Self::Udp => Self::Udp,
            _ => Self::SynAck,
        }
    }
}

/// A packet from `from` to `to`, with 40 bytes of payload unless asked for others.
#[derive(Clone, Copy, Debug)]
struct Packet {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    kind: Kind,
    ttl: u8,
    sequence: u32,
    acknowledged: u32,
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

impl Packet {
    fn new(from: (&str, u16), to: (&str, u16), kind: Kind) -> Self {
        Self {
            from: (ip(from.0), from.1),
            to: (ip(to.0), to.1),
            kind,
            ttl: 64,
            sequence: 1000,
            acknowledged: 7001,
        }
    }

    /// As it comes from the router to the balancer.
    fn frame(&self, both: &Both) -> Vec<u8> {
        self.between([2, 0, 0, 0, 0, 1], both.uplinks[0].0)
    }

    /// The same with `length` bytes of payload, no two words alike.
    fn long_frame(&self, both: &Both, length: usize) -> Vec<u8> {
        let payload: Vec<u8> = (0..=length as u32 / 4).flat_map(u32::to_be_bytes).collect();
        self.with_payload([2, 0, 0, 0, 0, 1], both.uplinks[0].0, &payload[..length])
    }

    /// The same, of TCP, with these options.
    fn frame_with(&self, both: &Both, options: &[u8]) -> Vec<u8> {
        self.with([2, 0, 0, 0, 0, 1], both.uplinks[0].0, options, &[0xa5; 40])
    }

    fn between(&self, source: [u8; 6], destination: [u8; 6]) -> Vec<u8> {
        self.with_payload(source, destination, &[0xa5; 40])
    }

    fn with_payload(&self, source: [u8; 6], destination: [u8; 6], payload: &[u8]) -> Vec<u8> {
        self.with(source, destination, &[], payload)
    }

    fn with(
        &self,
        source: [u8; 6],
        destination: [u8; 6],
        options: &[u8],
        payload: &[u8],
    ) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(source, destination);
        let builder = match (self.from.0, self.to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                builder.ipv4(from.octets(), to.octets(), self.ttl)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                builder.ipv6(from.octets(), to.octets(), self.ttl)
            }
            _ => unreachable!("ends of one family"),
        };
        let mut frame = Vec::new();
        if self.kind == Kind::Udp {
            builder
                .udp(self.from.1, self.to.1)
                .write(&mut frame, payload)
        } else {
            let mut tcp = TcpHeader::new(self.from.1, self.to.1, self.sequence, 1000);
            tcp.syn = matches!(self.kind, Kind::Syn | Kind::SynAck);
            tcp.ack = matches!(self.kind, Kind::SynAck | Kind::Ack | Kind::Fin);
            tcp.fin = self.kind == Kind::Fin;
            tcp.rst = self.kind == Kind::Rst;
            tcp.acknowledgment_number = if tcp.ack { self.acknowledged } else { 0 };
            tcp.set_options_raw(options).expect("at most 40 bytes");
            builder.tcp_header(tcp).write(&mut frame, payload)
        }
        .expect("a vector takes it");
        frame
    }
}

/// One pair of homes for all tests, as long as they succeed: the verifier's work is most of what a test does.
static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

struct Shared {
    both: Both,
    // Behind `both`, which is in it.
    netns: Netns,
}

impl Shared {
    fn make() -> Result<Self> {
        extern "C" fn end() {
            drop(take());
        }
        static ONCE: Once = Once::new();
        // SAFETY: takes a function that lives as long as the program.
        ONCE.call_once(|| assert_eq!(unsafe { libc::atexit(end) }, 0, "atexit"));
        let netns = Netns::create("packets")?;
        let both = netns.enter(|| Both::new(&netns))?;
        Ok(Self { both, netns })
    }
}

fn take() -> Option<Shared> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.take()
}

/// Runs a test in a namespace, with both homes as new; nothing without root.
fn with_both(test: impl FnOnce(&mut Both) -> Result<()> + Send) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut shared = match take() {
        Some(mut shared) => {
            shared.both.reset()?;
            shared
        }
        None => Shared::make()?,
    };
    let Shared { both, netns } = &mut shared;
    netns.enter(|| {
        test(both)?;
        both.check_reasons()
    })?;
    *SHARED.lock().unwrap_or_else(PoisonError::into_inner) = Some(shared);
    Ok(())
}

/// The same for a test that changes the network around: in a namespace of its own.
fn with_own_both(test: impl FnOnce(&mut Both) -> Result<()> + Send) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let netns = Netns::create("own")?;
    netns.enter(|| {
        let mut both = Both::new(&netns)?;
        test(&mut both)?;
        both.check_reasons()
    })
}

/// Asserts that every checksum of the frame is what etherparse computes.
fn assert_checksums(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a whole packet");
    let (v4, v6) = match packet.net.as_ref().expect("a network header") {
        etherparse::NetSlice::Ipv4(slice) => (Some(slice.header()), None),
        etherparse::NetSlice::Ipv6(slice) => (None, Some(slice.header())),
        etherparse::NetSlice::Arp(_) => unreachable!("an IP packet"),
    };
    if let Some(header) = v4 {
        assert_eq!(
            header.header_checksum(),
            header.to_header().calc_header_checksum()
        );
    }
    match packet.transport.as_ref().expect("a transport header") {
        TransportSlice::Tcp(tcp) => {
            let (header, payload) = (tcp.to_header(), tcp.payload());
            let sum = v4.map_or_else(
                || header.calc_checksum_ipv6(&v6.expect("IPv6").to_header(), payload),
                |v4| header.calc_checksum_ipv4(&v4.to_header(), payload),
            );
            assert_eq!(tcp.checksum(), sum.expect("short payload"));
        }
        TransportSlice::Udp(udp) => {
            let (header, payload) = (udp.to_header(), udp.payload());
            let sum = v4.map_or_else(
                || header.calc_checksum_ipv6(&v6.expect("IPv6").to_header(), payload),
                |v4| header.calc_checksum_ipv4(&v4.to_header(), payload),
            );
            assert_eq!(udp.checksum(), sum.expect("short payload"));
        }
        TransportSlice::Icmpv4(icmp) => {
            assert_eq!(
                icmp.checksum(),
                icmp.icmp_type().calc_checksum(icmp.payload())
            );
        }
        TransportSlice::Icmpv6(icmp) => {
            let ip = v6.expect("IPv6");
            let sum = icmp
                .icmp_type()
                .calc_checksum(ip.source(), ip.destination(), icmp.payload());
            assert_eq!(icmp.checksum(), sum.expect("short payload"));
        }
        other @ TransportSlice::Igmp(_) => unreachable!("{other:?}"),
    }
}
