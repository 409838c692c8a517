//! The few BPF instructions that the bench's own programs are made of: written by hand, so that nothing of them is in
//! the object that ships.

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// A register. `R1` holds the context at entry, `R6`–`R9` survive calls.
#[derive(Clone, Copy, Debug)]
pub(super) enum R {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R5 = 5,
    R6 = 6,
    R7 = 7,
}

/// Width of a load or store.
#[derive(Clone, Copy, Debug)]
pub(super) enum Size {
    Half = 0x08,
    Word = 0x00,
    Double = 0x18,
}

/// Operations on 64 bits (`linux/bpf_common.h`, `BPF_ADD` and so on).
#[derive(Clone, Copy, Debug)]
pub(super) enum Alu {
    Add = 0x00,
    Sub = 0x10,
    Or = 0x40,
    And = 0x50,
    LeftShift = 0x60,
    RightShift = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}

/// Numbers of helpers (linux/bpf.h).
pub(super) mod helper {
    pub(in super::super) const TAIL_CALL: i32 = 12;
    pub(in super::super) const REDIRECT: i32 = 23;
    pub(in super::super) const ADJUST_HEAD: i32 = 44;
}

/// A program under construction.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<[u8; 8]>,
    /// Jumps that wait for the address of the end.
    to_end: Vec<usize>,
}

impl Assembler {
    fn push(&mut self, op: u8, dst: u8, src: u8, offset: i16, value: i32) -> &mut Self {
        let [o0, o1] = offset.to_le_bytes();
        let [v0, v1, v2, v3] = value.to_le_bytes();
        self.code.push([op, dst | src << 4, o0, o1, v0, v1, v2, v3]);
        self
    }

    pub(super) fn alu(&mut self, op: Alu, dst: R, src: R) -> &mut Self {
        self.push(0x0f | op as u8, dst as u8, src as u8, 0, 0)
    }

    /// `value` is extended with its sign.
    pub(super) fn alu_value(&mut self, op: Alu, dst: R, value: i32) -> &mut Self {
        self.push(0x07 | op as u8, dst as u8, 0, 0, value)
    }

    pub(super) fn load(&mut self, size: Size, dst: R, base: R, offset: i16) -> &mut Self {
        self.push(0x61 | size as u8, dst as u8, base as u8, offset, 0)
    }

    pub(super) fn store(&mut self, size: Size, base: R, offset: i16, src: R) -> &mut Self {
        self.push(0x63 | size as u8, base as u8, src as u8, offset, 0)
    }

    /// The address of a map, as helpers take it.
    pub(super) fn map(&mut self, dst: R, map: BorrowedFd<'_>) -> &mut Self {
        self.push(0x18, dst as u8, 1, 0, map.as_raw_fd())
            .push(0, 0, 0, 0, 0)
    }

    /// The address of the first byte of an array map's values.
    pub(super) fn map_value(&mut self, dst: R, map: BorrowedFd<'_>) -> &mut Self {
        self.push(0x18, dst as u8, 2, 0, map.as_raw_fd())
            .push(0, 0, 0, 0, 0)
    }

    pub(super) fn call(&mut self, helper: i32) -> &mut Self {
        self.push(0x85, 0, 0, 0, helper)
    }

    /// Goes to the end unless `reg` is 0.
    pub(super) fn end_if_not_zero(&mut self, reg: R) -> &mut Self {
        self.to_end.push(self.code.len());
        self.push(0x55, reg as u8, 0, 0, 0)
    }

    /// Goes to the end if `one` > `other`.
    pub(super) fn end_if_above(&mut self, one: R, other: R) -> &mut Self {
        self.to_end.push(self.code.len());
        self.push(0x2d, one as u8, other as u8, 0, 0)
    }

    pub(super) fn exit(&mut self) -> &mut Self {
        self.push(0x95, 0, 0, 0, 0)
    }

    /// Adds the end, at which the program returns `action`.
    pub(super) fn finish(mut self, action: u32) -> Vec<[u8; 8]> {
        let end = self.code.len();
        for at in std::mem::take(&mut self.to_end) {
            let [low, high] = ((end - at - 1) as i16).to_le_bytes();
            self.code[at][2] = low;
            self.code[at][3] = high;
        }
        self.alu_value(Alu::Move, R::R0, action as i32).exit();
        self.code
    }
}
