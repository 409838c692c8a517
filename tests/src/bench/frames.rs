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

/// What kind of packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Syn,
    Ack,
    Udp,
}

/// Where the frame's source address is varied (its last two bytes), its source port, and how much is rewritten.
struct Offsets {
    address: i16,
    port: i16,
    header: usize,
}

const V4: Offsets = Offsets {
    address: 28,
    port: 34,
    header: 56,
};
const V6: Offsets = Offsets {
    address: 36,
    port: 54,
    header: 80,
};

/// MAC addresses of a frame: from, to.
pub(super) type Macs = [[u8; 6]; 2];

/// Checksums are those of the first flow: nothing on the way looks at them.
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
        Kind::Ack => {
            let tcp = builder.tcp(0, to.port(), 1, 65_535).ack(1);
            tcp.write(&mut frame, &[])?;
        }
        Kind::Syn => {
            let tcp = builder.tcp(0, to.port(), 1, 65_535).syn();
            tcp.write(&mut frame, &[])?;
        }
    }
    let header = offsets(to.is_ipv4()).header;
    frame.resize(header.max(64), 0);
    Ok(frame)
}

const fn offsets(v4: bool) -> Offsets {
    if v4 { V4 } else { V6 }
}

/// A program that turns whatever its buffer holds into the frame, from the next of `flows` sources, and hands it on.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) frame: Vec<u8>,
    program: OwnedFd,
    /// The counter of flows, then the header.
    _cell: Cell,
    target: Target,
}

impl Fresh {
    /// Goes on with the program that [`Self::before`] is given.
    pub(super) fn tail_call(frame: Vec<u8>, flows: u64) -> Result<Self> {
        let target = Target::create()?;
        let cell = cell(&frame)?;
        let mut code = rewrite(&frame, &cell, flows)?;
        code.alu(Alu::Move, R::R1, R::R6)
            .map(R::R2, target.as_fd())
            .alu_value(Alu::Move, R::R3, 0)
            .call(helper::TAIL_CALL);
        let program = kernel::load(&code.finish(XDP_DROP))?;
        Ok(Self {
            frame,
            program,
            _cell: cell,
            target,
        })
    }

    /// The whole, with `program` at its end.
    pub(super) fn before(&self, program: BorrowedFd<'_>) -> Result<BorrowedFd<'_>> {
        self.target.set(program)?;
        Ok(self.program.as_fd())
    }
}

fn contents(frame: &[u8]) -> Vec<u8> {
    let v4 = frame[12] == 8;
    let header = &frame[..offsets(v4).header];
    [&[0; 8], header].concat()
}

fn cell(frame: &[u8]) -> Result<Cell> {
    let bytes = contents(frame);
    let cell = Cell::create(bytes.len())?;
    cell.write(&bytes)?;
    Ok(cell)
}

/// Length and header of the frame: `R6` keeps the context. `flows` is a power of two; the source of flow `n` has the
/// low 16 bits of `n` as port, and the next 16 as the end of its address.
fn rewrite(frame: &[u8], cell: &Cell, flows: u64) -> Result<Assembler> {
    ensure!(flows.is_power_of_two() && flows <= 1 << 31);
    let length = frame.len() as i32;
    let at = offsets(frame[12] == 8);
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
    for offset in (0..at.header as i16).step_by(8) {
        code.load(Size::Double, R::R1, R::R7, 8 + offset)
            .store(Size::Double, R::R2, offset, R::R1);
    }
    code.load(Size::Double, R::R1, R::R7, 0)
        .alu(Alu::Move, R::R3, R::R1)
        .alu_value(Alu::Add, R::R3, 1)
        .store(Size::Double, R::R7, 0, R::R3)
        .alu_value(Alu::And, R::R1, (flows - 1) as i32)
        .store(Size::Half, R::R2, at.port, R::R1)
        .alu_value(Alu::RightShift, R::R1, 16)
        .store(Size::Half, R::R2, at.address, R::R1);
    Ok(code)
}
