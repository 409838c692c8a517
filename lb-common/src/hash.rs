//! The flow hash: SipHash-1-3 (Aumasson and Bernstein, 2012; one compression and three finalization rounds) with a
//! secret 128-bit key, so that nobody can craft flows that meet in one slot. Written over words, because the input is
//! words: for the same bytes it equals the byte-wise definition.

use crate::{
    abi::Tuple,
    bytes::{Address, Be16},
};

struct Sip {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl Sip {
    #[inline(always)]
    const fn new(key: &[u64; 2]) -> Self {
        Self {
            v0: key[0] ^ 0x736f_6d65_7073_6575,
            v1: key[1] ^ 0x646f_7261_6e64_6f6d,
            v2: key[0] ^ 0x6c79_6765_6e65_7261,
            v3: key[1] ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    const fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    const fn block(&mut self, block: u64) {
        self.v3 ^= block;
        self.round();
        self.v0 ^= block;
    }

    #[inline(always)]
    const fn finish(mut self) -> u64 {
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

/// Hash of the bytes source, destination, source port, destination port, protocol (13 for IPv4, 37 for IPv6).
#[inline(always)]
pub fn flow<A: Address>(key: &[u64; 2], tuple: &Tuple<A>) -> u64 {
    let mut sip = Sip::new(key);
    if A::WORDS == 1 {
        sip.block(pair(tuple.source.word(0), tuple.destination.word(0)));
    } else {
        sip.block(pair(tuple.source.word(0), tuple.source.word(1)));
        sip.block(pair(tuple.source.word(2), tuple.source.word(3)));
        sip.block(pair(tuple.destination.word(0), tuple.destination.word(1)));
        sip.block(pair(tuple.destination.word(2), tuple.destination.word(3)));
    }
    let length = (A::WORDS as u64 * 8 + 5) << 56;
    let ports = ports(tuple.source_port, tuple.destination_port);
    sip.block(length | u64::from(tuple.protocol) << 32 | ports);
    sip.finish()
}

/// Hash of the client's address alone (4 or 16 bytes), for `clientIP` affinity (contract A8.4).
#[inline(always)]
pub fn client<A: Address>(key: &[u64; 2], client: &A) -> u64 {
    let mut sip = Sip::new(key);
    if A::WORDS == 1 {
        sip.block(4 << 56 | u64::from(client.word(0)));
    } else {
        sip.block(pair(client.word(0), client.word(1)));
        sip.block(pair(client.word(2), client.word(3)));
        sip.block(16 << 56);
    }
    sip.finish()
}

/// Tag of a tunnelled packet (design.md section 6): of its flow's hash as 8 little-endian bytes, the backend's address (4 or
/// 16 bytes), its port and the packet's kind, with a key of the nodes' own. Who does not know both keys cannot make one; who has seen one can
/// send it again.
#[inline(always)]
pub fn tag<A: Address>(key: &[u64; 2], flow: u64, backend: &A, port: Be16, kind: u8) -> u64 {
    let mut sip = Sip::new(key);
    sip.block(flow);
    let end = u64::from(port.raw()) | u64::from(kind) << 16;
    if A::WORDS == 1 {
        sip.block(15 << 56 | end << 32 | u64::from(backend.word(0)));
    } else {
        sip.block(pair(backend.word(0), backend.word(1)));
        sip.block(pair(backend.word(2), backend.word(3)));
        sip.block(27 << 56 | end);
    }
    sip.finish()
}

#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

#[inline(always)]
const fn ports(source: Be16, destination: Be16) -> u64 {
    source.raw() as u64 | (destination.raw() as u64) << 16
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;
    use std::hash::DefaultHasher;

    use proptest::prelude::*;

    use super::*;
    use crate::bytes::{V4, V6};

    /// The standard library's hasher is SipHash-1-3 with a zero key.
    fn reference(bytes: &[u8]) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        hasher.finish()
    }

    proptest! {
        #[test]
        fn equals_the_bytewise_definition(
            source in any::<[u8; 16]>(),
            destination in any::<[u8; 16]>(),
            source_port in any::<u16>(),
            destination_port in any::<u16>(),
            protocol in any::<u8>(),
        ) {
            let (from, to) = (Be16::new(source_port), Be16::new(destination_port));
            let tail = [from.to_bytes(), to.to_bytes()].concat();
            let v6 = Tuple {
                source: V6::from_bytes(source), destination: V6::from_bytes(destination),
                source_port: from, destination_port: to, protocol, pad: [0; 3],
            };
            let bytes = [&source[..], &destination[..], &tail[..], &[protocol]].concat();
            prop_assert_eq!(flow(&[0, 0], &v6), reference(&bytes));
            prop_assert_eq!(client(&[0, 0], &v6.source), reference(&source));
            let (a, b) = ([1, 2, 3, source[0]], [4, 5, 6, destination[0]]);
            let v4 = Tuple {
                source: V4::from_bytes(a), destination: V4::from_bytes(b),
                source_port: from, destination_port: to, protocol, pad: [0; 3],
            };
            let bytes = [&a[..], &b[..], &tail[..], &[protocol]].concat();
            prop_assert_eq!(flow(&[0, 0], &v4), reference(&bytes));
            prop_assert_eq!(client(&[0, 0], &v4.source), reference(&a));
            let seen = 0x0123_4567_89ab_cdef_u64.wrapping_mul(u64::from(source_port) + 1);
            let bytes = [&seen.to_le_bytes()[..], &a[..], &to.to_bytes()[..], &[protocol]].concat();
            prop_assert_eq!(tag(&[0, 0], seen, &v4.source, to, protocol), reference(&bytes));
            let bytes = [&seen.to_le_bytes()[..], &source[..], &to.to_bytes()[..], &[protocol]].concat();
            prop_assert_eq!(tag(&[0, 0], seen, &v6.source, to, protocol), reference(&bytes));
        }
    }

    #[test]
    fn matches_a_keyed_vector() {
        // SipHash-1-3, key 00..0f, of the 16 bytes 00..0f.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let address = V6::from_bytes(core::array::from_fn(|at| at as u8));
        assert_ne!(client(&key, &address), client(&[0, 0], &address));
    }
}
