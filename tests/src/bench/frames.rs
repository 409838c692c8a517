//! Frames, and the program that makes a fresh one before each run.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Result, ensure};
use etherparse::PacketBuilder;

use super::{
    assembler::{Alu, Assembler, R, Size, helper},
    kernel::{self, Cell, Target, XDP_DROP},
};
use crate::{
    datagrams::{self, Message},
    world::TUNNEL_PORT,
};

/// What kind of packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Syn,
    Ack,
    Udp,
    /// An ICMP error about a packet that the frontend sent to the client.
    Error,
    /// The first fragment of a UDP datagram, and the one that follows.
    First,
    Later,
    /// An ACK in a tunnel, as another node sends it; not made here.
    Wrapped,
}

/// The fields of a frame, each stored as a whole: a program that loads one from two stores would wait for both, as it
/// never does for what a NIC has written.
struct Fields {
    same: &'static [(i16, Size)],
    /// Behind those.
    more: &'static [(i16, Size)],
    /// The end of the source address, whose last two bytes vary; and their first bit in it.
    address: (i16, Size, i32),
    /// Both ports, of which the source's varies.
    ports: i16,
    /// Bytes up to the end of a TCP header.
    header: usize,
}

const V4: Fields = Fields {
    same: &[
        (0, Size::Double),
        (8, Size::Word),
        (12, Size::Half),
        (14, Size::Double),
        (30, Size::Word),
        (38, Size::Double),
        (46, Size::Double),
    ],
    more: &[],
    address: (26, Size::Word, 16),
    ports: 34,
    header: 54,
};
/// With what an ICMP error embeds, of as little as may be.
const V4_ERROR: Fields = Fields {
    more: &[(54, Size::Double), (62, Size::Double)],
    header: 70,
    ..V4
};
/// In IPv4 and Geneve, of IPv4.
const WRAPPED: Fields = Fields {
    same: &[
        (0, Size::Double),
        (8, Size::Word),
        (12, Size::Half),
        (14, Size::Double),
        (30, Size::Word),
        (38, Size::Word),
    ],
    more: &[
        (42, Size::Double),
        (50, Size::Double),
        (58, Size::Double),
        (66, Size::Word),
        (70, Size::Double),
        (78, Size::Double),
        (86, Size::Word),
        (90, Size::Word),
        (94, Size::Double),
        (102, Size::Double),
    ],
    header: 110,
    ..V4
};
const V6: Fields = Fields {
    same: &[
        (0, Size::Double),
        (8, Size::Word),
        (12, Size::Half),
        (14, Size::Double),
        (22, Size::Double),
        (38, Size::Double),
        (46, Size::Double),
        (58, Size::Double),
        (66, Size::Double),
    ],
    more: &[],
    address: (30, Size::Double, 48),
    ports: 54,
    header: 74,
};

/// MAC addresses of a frame: from, to.
pub(super) type Macs = [[u8; 6]; 2];

/// The TCP or UDP checksum is that of the first flow: a NIC has looked at it, nothing on the way does.
pub(super) fn frame(macs: Macs, source: IpAddr, to: SocketAddr, kind: Kind) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(macs[0], macs[1]);
    let builder = match (source, to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(to)) => builder.ipv4(source.octets(), to.octets(), 64),
        (IpAddr::V6(source), IpAddr::V6(to)) => builder.ipv6(source.octets(), to.octets(), 64),
        _ => anyhow::bail!("{source} and {to} are of different families"),
    };
    let mut frame = Vec::new();
    match kind {
        Kind::Udp => builder.udp(0, to.port()).write(&mut frame, &[0; 12])?,
        Kind::First | Kind::Later => {
            builder.udp(0, to.port()).write(&mut frame, &[0; 1600])?;
            let (part, more) = if kind == Kind::First {
                (0..800, true)
            } else {
                (800..1608, false)
            };
            return Ok(datagrams::fragment(&frame, 1, part, more));
        }
        Kind::Ack => {
            let tcp = builder.tcp(0, to.port(), 1, 65_535).ack(1);
            tcp.write(&mut frame, &[])?;
        }
        Kind::Syn => {
            let tcp = builder.tcp(0, to.port(), 1, 65_535).syn();
            tcp.write(&mut frame, &[])?;
        }
        Kind::Error => return error(macs, source, to),
        Kind::Wrapped => anyhow::bail!("another node makes these"),
    }
    let header = fields(&frame).header;
    frame.resize(header.max(60), 0);
    Ok(frame)
}

/// A host is unreachable, a router of the client's network says.
fn error(macs: Macs, client: IpAddr, from: SocketAddr) -> Result<Vec<u8>> {
    let (IpAddr::V4(client), IpAddr::V4(vip)) = (client, from.ip()) else {
        anyhow::bail!("errors are measured in IPv4");
    };
    let mut sent = Vec::new();
    PacketBuilder::ethernet2(macs[0], macs[1])
        .ipv4(vip.octets(), client.octets(), 64)
        .tcp(from.port(), 0, 1, 65_535)
        .ack(1)
        .write(&mut sent, &[])?;
    let message = Message {
        kind: 3,
        code: 1,
        word: 0,
    };
    Ok(datagrams::about(&sent, macs, client.into(), message, 28))
}

fn fields(frame: &[u8]) -> Fields {
    match (frame[12], frame[23]) {
        (8, 1) => V4_ERROR,
        (8, 17) if frame[36..38] == TUNNEL_PORT.to_be_bytes() => WRAPPED,
        (8, _) => V4,
        _ => V6,
    }
}

/// A program that turns whatever its buffer holds into the frame, from the next of `flows` sources, and hands it to
/// another.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) frame: Vec<u8>,
    program: OwnedFd,
    target: Target,
}

impl Fresh {
    pub(super) fn new(frame: Vec<u8>, flows: u64) -> Result<Self> {
        let target = Target::create()?;
        let cell = cell(&frame)?;
        let mut code = rewrite(&frame, &cell, flows)?;
        code.alu(Alu::Move, R::R1, R::R6)
            .map(R::R2, target.as_fd())
            .alu_value(Alu::Move, R::R3, 0)
            .call(helper::TAIL_CALL);
        Ok(Self {
            program: kernel::load(&code.finish(XDP_DROP))?,
            frame,
            target,
        })
    }

    /// The whole, with `program` at its end.
    pub(super) fn before(&self, program: BorrowedFd<'_>) -> Result<BorrowedFd<'_>> {
        self.target.set(program)?;
        Ok(self.program.as_fd())
    }
}

/// A program that makes a frame like [`Fresh`] and sends it out of the interface.
pub(super) fn generator(frame: &[u8], flows: u64, ifindex: u32) -> Result<OwnedFd> {
    let cell = cell(frame)?;
    let mut code = rewrite(frame, &cell, flows)?;
    code.alu_value(Alu::Move, R::R1, ifindex as i32)
        .alu_value(Alu::Move, R::R2, 0)
        .call(helper::REDIRECT)
        .exit();
    Ok(kernel::load(&code.finish(XDP_DROP))?)
}

/// A program that counts what it drops, in the first word of the cell.
pub(super) fn sink(cell: &Cell) -> Result<OwnedFd> {
    let mut code = Assembler::default();
    code.map_value(R::R7, cell.as_fd())
        .load(Size::Double, R::R1, R::R7, 0)
        .alu_value(Alu::Add, R::R1, 1)
        .store(Size::Double, R::R7, 0, R::R1);
    Ok(kernel::load(&code.finish(XDP_DROP))?)
}

/// The counter of flows, then the header.
fn cell(frame: &[u8]) -> Result<Cell> {
    let bytes = [&[0; COUNTER], &frame[..fields(frame).header]].concat();
    let cell = Cell::create(bytes.len())?;
    cell.write(&bytes)?;
    Ok(cell)
}

/// Bytes of the counter in front of the header.
const COUNTER: usize = 8;

/// Where a byte of the header is in the cell.
const fn kept(offset: i16) -> i16 {
    COUNTER as i16 + offset
}

/// Stores TTL, protocol and the checksum of an IPv4 header, to which `R1` has been added (RFC 1624): the stack drops
/// packets whose checksum is wrong.
fn header_checksum(code: &mut Assembler) {
    const WORD: i16 = 22;
    code.load(Size::Word, R::R3, R::R7, kept(WORD))
        .alu(Alu::Move, R::R4, R::R3)
        .alu_value(Alu::And, R::R3, 0xffff)
        .alu_value(Alu::RightShift, R::R4, 16)
        .alu_value(Alu::Xor, R::R4, 0xffff)
        .alu(Alu::Add, R::R4, R::R1)
        .alu(Alu::Move, R::R5, R::R4)
        .alu_value(Alu::RightShift, R::R5, 16)
        .alu_value(Alu::And, R::R4, 0xffff)
        .alu(Alu::Add, R::R4, R::R5)
        .alu_value(Alu::Xor, R::R4, 0xffff)
        .alu_value(Alu::LeftShift, R::R4, 16)
        .alu(Alu::Or, R::R3, R::R4)
        .store(Size::Word, R::R2, WORD, R::R3);
}

/// Length and header of the frame; `R6` keeps the context. `flows` is a power of two; the source of flow `n` has the
/// low 16 bits of `n` as port, and the next 16 as the end of its address.
fn rewrite(frame: &[u8], cell: &Cell, flows: u64) -> Result<Assembler> {
    ensure!(flows.is_power_of_two() && flows <= 1 << 31);
    let length = frame.len() as i32;
    let v4 = frame[12] == 8;
    let fields = fields(frame);
    let mut code = Assembler::default();
    code.alu(Alu::Move, R::R6, R::R1)
        .load(Size::Word, R::R3, R::R6, 0)
        .load(Size::Word, R::R2, R::R6, 4)
        .alu(Alu::Sub, R::R2, R::R3)
        .alu_value(Alu::Sub, R::R2, length)
        // Called whether the frame has grown or not, so that it costs the same before every program.
        .call(helper::ADJUST_HEAD)
        .end_if_not_zero(R::R0)
        .load(Size::Word, R::R2, R::R6, 0)
        .load(Size::Word, R::R3, R::R6, 4)
        .alu(Alu::Move, R::R1, R::R2)
        .alu_value(Alu::Add, R::R1, length)
        .end_if_above(R::R1, R::R3)
        .map_value(R::R7, cell.as_fd());
    for (offset, size) in fields.same.iter().chain(fields.more) {
        code.load(*size, R::R1, R::R7, kept(*offset))
            .store(*size, R::R2, *offset, R::R1);
    }
    let (address, size, bit) = fields.address;
    code.load(Size::Double, R::R1, R::R7, 0)
        .alu(Alu::Move, R::R3, R::R1)
        .alu_value(Alu::Add, R::R3, 1)
        .store(Size::Double, R::R7, 0, R::R3)
        .alu_value(Alu::And, R::R1, (flows - 1) as i32)
        .alu(Alu::Move, R::R3, R::R1)
        .alu_value(Alu::And, R::R3, 0xffff)
        .load(Size::Word, R::R4, R::R7, kept(fields.ports))
        .alu(Alu::Or, R::R4, R::R3)
        .store(Size::Word, R::R2, fields.ports, R::R4)
        .alu_value(Alu::RightShift, R::R1, 16);
    if v4 {
        header_checksum(&mut code);
    }
    code.alu_value(Alu::LeftShift, R::R1, bit)
        .load(size, R::R4, R::R7, kept(address))
        .alu(Alu::Or, R::R4, R::R1)
        .store(size, R::R2, address, R::R4);
    Ok(code)
}
