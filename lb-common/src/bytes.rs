//! Addresses and ports as they lie in a packet, aligned so that each is one machine word or a row of them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A 16-bit field in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The field as the CPU loaded it.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// The value in host byte order.
    #[inline(always)]
    pub const fn to_host(self) -> u16 {
        u16::from_be(self.0)
    }

    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// The field as the CPU loads it: what checksum arithmetic works on (RFC 1071, section 2 B).
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// An address of either family; the generic parameter of the pipeline.
pub trait Address: Copy + Eq + core::fmt::Debug {
    /// 4 or 6.
    const VERSION: u8;
    /// Words of 32 bits.
    const WORDS: usize;

    /// The 32-bit word at `index` (< [`Self::WORDS`]), as loaded by the CPU.
    fn word(&self, index: usize) -> u32;
    fn to_addr(&self) -> Addr;
    /// The address of this family in `addr`. An address of the other family gives nonsense, not an error: map
    /// contents are checked when they are planned.
    fn from_addr(addr: &Addr) -> Self;
}

/// An IPv4 address in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(transparent)]
pub struct V4(pub u32);

impl V4 {
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }

    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

impl Address for V4 {
    const VERSION: u8 = 4;
    const WORDS: usize = 1;

    #[inline(always)]
    fn word(&self, _index: usize) -> u32 {
        self.0
    }

    #[inline(always)]
    fn to_addr(&self) -> Addr {
        Addr([0, 0, 0xffff_u32.to_be(), self.0])
    }

    #[inline(always)]
    fn from_addr(addr: &Addr) -> Self {
        Self(addr.0[3])
    }
}

impl From<Ipv4Addr> for V4 {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_bytes(ip.octets())
    }
}

/// An IPv6 address in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(transparent)]
pub struct V6(pub [u32; 4]);

impl V6 {
    #[inline(always)]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    #[inline(always)]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let mut word = 0;
        while word < 4 {
            let quarter = self.0[word].to_ne_bytes();
            let mut byte = 0;
            while byte < 4 {
                bytes[word * 4 + byte] = quarter[byte];
                byte += 1;
            }
            word += 1;
        }
        bytes
    }
}

impl V6 {
    /// The solicited-node multicast address: where a neighbour asks for this one (RFC 4291, section 2.7.1).
    pub fn solicited_node(self) -> Self {
        let [.., a, b, c] = self.to_bytes();
        Self::from_bytes([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
    }
}

impl Address for V6 {
    const VERSION: u8 = 6;
    const WORDS: usize = 4;

    #[inline(always)]
    fn word(&self, index: usize) -> u32 {
        self.0[index & 3]
    }

    #[inline(always)]
    fn to_addr(&self) -> Addr {
        Addr(self.0)
    }

    #[inline(always)]
    fn from_addr(addr: &Addr) -> Self {
        Self(addr.0)
    }
}

impl From<Ipv6Addr> for V6 {
    fn from(ip: Ipv6Addr) -> Self {
        Self::from_bytes(ip.octets())
    }
}

/// An address of either family in 16 bytes, IPv4 as an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    pub const UNSPECIFIED: Self = Self([0; 4]);

    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    pub fn to_ip(&self) -> IpAddr {
        let ip = Ipv6Addr::from(V6(self.0).to_bytes());
        ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => V4::from(ip).to_addr(),
            IpAddr::V6(ip) => V6::from(ip).to_addr(),
        }
    }
}

/// A link-layer address.
pub type Mac = [u8; 6];

/// The first twelve bytes of an Ethernet header, in words: destination, then source. As two arrays of bytes they would
/// cost the BPF target a load and a store for each byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Macs([u32; 3]);

impl Macs {
    #[inline(always)]
    pub const fn new(destination: Mac, source: Mac) -> Self {
        let ([a, b, c, d, e, f], [u, v, w, x, y, z]) = (destination, source);
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, u, v]),
            u32::from_ne_bytes([w, x, y, z]),
        ])
    }

    /// From words with a MAC each in their first six bytes; the other two are ignored.
    #[inline(always)]
    pub(crate) const fn from_words(destination: u64, source: u64) -> Self {
        Self([
            destination as u32,
            (destination >> 32) as u32 & 0xffff | (source as u32) << 16,
            (source >> 16) as u32,
        ])
    }

    /// As loaded from a header.
    #[inline(always)]
    pub(crate) const fn from_header(words: [u32; 3]) -> Self {
        Self(words)
    }

    #[inline(always)]
    pub(crate) const fn as_header(&self) -> &[u32; 3] {
        &self.0
    }

    /// Those of a packet that goes back.
    #[inline(always)]
    pub(crate) const fn swapped(self) -> Self {
        let [a, b, c] = self.0;
        Self([b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16])
    }

    /// Those of an answer to such a packet from `own` (in the first six bytes).
    #[inline(always)]
    pub(crate) const fn back_from(self, own: u64) -> Self {
        let Self([to, rest, _]) = self.swapped();
        Self([to, rest & 0xffff | (own as u32) << 16, (own >> 16) as u32])
    }

    /// Whether such a packet is for an interface with the MAC `own` (in the first six bytes): for it alone, or for many;
    /// and from a single sender.
    #[inline(always)]
    pub(crate) const fn reach(&self, own: u64) -> bool {
        const GROUP: u32 = 1;
        let [to, rest, _] = self.0;
        let for_own = to == own as u32 && rest & 0xffff == (own >> 32) as u32 & 0xffff;
        (to & GROUP != 0 || for_own) && (rest >> 16) & GROUP == 0
    }

    pub const fn destination(&self) -> Mac {
        let ([a, b, c, d], [e, f, _, _]) = (self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes());
        [a, b, c, d, e, f]
    }

    pub const fn source(&self) -> Mac {
        self.swapped().destination()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_round_trip() {
        for ip in ["192.0.2.10", "2001:db8::10", "0.0.0.0", "::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(Addr::from(ip).to_ip(), ip);
            assert_eq!(Addr::from(ip).is_v4(), ip.is_ipv4());
        }
    }

    #[test]
    fn macs_lie_as_in_a_header() {
        let (to, from) = ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]);
        let macs = Macs::new(to, from);
        let bytes: Vec<u8> = macs
            .as_header()
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(bytes, [to, from].concat());
        assert_eq!((macs.destination(), macs.source()), (to, from));
        assert_eq!(macs.swapped(), Macs::new(from, to));
        let word = |mac: Mac, rest: u64| {
            u64::from_le_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0]) | rest << 48
        };
        assert_eq!(Macs::from_words(word(to, 3), word(from, 1500)), macs);
    }

    #[test]
    fn answers_go_to_the_sender_alone() {
        let (asker, own) = ([2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13]);
        let word = u64::from_le_bytes([8, 9, 10, 11, 12, 13, 0, 0]);
        let asked = Macs::new([0xff; 6], asker);
        assert_eq!(asked.back_from(word), Macs::new(asker, own));
        assert!(asked.reach(word));
        assert!(Macs::new(own, asker).reach(word));
        assert!(!Macs::new([8, 9, 10, 11, 12, 14], asker).reach(word));
        assert!(!Macs::new([0xff; 6], [3, 3, 4, 5, 6, 7]).reach(word));
    }

    #[test]
    fn neighbours_ask_for_an_address_at_its_group() {
        let asked = |text: &str| V6::from(text.parse::<Ipv6Addr>().unwrap());
        assert_eq!(
            asked("2001:db8::1:800:200e:8c6c").solicited_node(),
            asked("ff02::1:ff0e:8c6c")
        );
    }

    #[test]
    fn fields_keep_network_order_in_memory() {
        assert_eq!(Be16::new(0x1234).to_bytes(), [0x12, 0x34]);
        assert_eq!(V4::from(Ipv4Addr::new(1, 2, 3, 4)).to_bytes(), [1, 2, 3, 4]);
        let v6: Ipv6Addr = "2001:db8::1:2".parse().unwrap();
        assert_eq!(V6::from(v6).to_bytes(), v6.octets());
    }
}
