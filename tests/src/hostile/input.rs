//! Hostile bytes as numbers and runs of bytes. What is missing at the end is zero.

/// The bytes that are left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// At most `length` bytes.
    pub(super) fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(super) fn u8(&mut self) -> u8 {
        self.u64_of(1) as u8
    }

    pub(super) fn u16(&mut self) -> u16 {
        self.u64_of(2) as u16
    }

    pub(super) fn u32(&mut self) -> u32 {
        self.u64_of(4) as u32
    }

    pub(super) fn u64(&mut self) -> u64 {
        self.u64_of(8)
    }

    /// Little-endian.
    fn u64_of(&mut self, length: usize) -> u64 {
        let bytes = self.bytes(length);
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}
