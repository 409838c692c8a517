//! What holds for every packet, and the filter that lets foreign packets leave at once.

use crate::bytes::{Address, Be16};

/// The one element of `SETTINGS`, 112 bytes. Each field is one word, so a change is seen whole; a tag key is written
/// while no packet is to be taken for its.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C, align(8))]
pub struct Settings {
    /// SipHash key, equal on all nodes; survives restarts in the pinned map.
    pub hash_key: [u64; 2],
    /// Bits of [`setting_flag`].
    pub flags: u32,
    /// Jiffies per second of this kernel.
    pub hz: u32,
    /// First and last port of `nat.ports`, host order; first in the low half. 0: no `nat`.
    pub nat_ports: u32,
    /// Of [`Tunnel`]: 0 without tunnels.
    pub tunnel: u32,
    /// Replies of our own (RST, ICMP) per second and CPU, and the most at once.
    pub reject_rate: u32,
    pub reject_burst: u32,
    /// New established flows per second and CPU, and the most at once.
    pub flow_rate: u32,
    pub flow_burst: u32,
    /// First fragments remembered per second and CPU, and the most at once.
    pub fragment_rate: u32,
    pub fragment_burst: u32,
    /// Jiffies after which everything passes, all 64 bits: these never come round again, so what has expired stays so
    /// until an agent writes another term. 0: never.
    pub expires: u64,
    /// Jiffies of the agent's last sign of life, for who looks without an agent. The program does not read it.
    pub heartbeat: u64,
    /// Keys of tags ([`crate::hash::tag`]), equal on all nodes: that with id `n` is at `n & 1`.
    pub tag_keys: [[u64; 2]; 2],
    /// Which of them count: [`Tunnel::accepted`].
    pub tag_ids: u32,
    /// Bytes of the largest packet that this node's uplinks carry; 0: there are no tunnels.
    pub mtu: u32,
}

/// [`Settings::tunnel`]: UDP port of the tunnels between nodes and the id of the key that what is sent is tagged with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel(pub u32);

impl Tunnel {
    #[inline(always)]
    pub const fn new(port: Be16, key: u8) -> Self {
        Self(port.raw() as u32 | (key as u32) << 16)
    }

    #[inline(always)]
    pub const fn port(self) -> Be16 {
        Be16::from_raw(self.0 as u16)
    }

    #[inline(always)]
    pub const fn key(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The word of [`Settings::tag_ids`] for one key or two, whose ids differ in their last bit.
    pub fn accepted(ids: &[u8]) -> u32 {
        ids.iter().fold(0, |word, id| {
            word | (1 << 8 | u32::from(*id)) << (u32::from(id & 1) * 16)
        })
    }

    /// Whether tags made with the key of this id are taken.
    #[inline(always)]
    pub const fn accepts(ids: u32, id: u8) -> bool {
        (ids >> ((id & 1) as u32 * 16)) as u16 == 1 << 8 | id as u16
    }
}

impl Settings {
    /// Whether everything passes. `now` gives the jiffies, all 64 bits; it is not asked where there is no term.
    #[inline(always)]
    pub fn passes_all(&self, now: impl FnOnce() -> u64) -> bool {
        self.flags & setting_flag::BYPASS != 0 || self.expires != 0 && now() >= self.expires
    }
}

/// Bits of [`Settings::flags`].
pub mod setting_flag {
    /// Everything passes.
    pub const BYPASS: u32 = 1;
    /// `expires` is the end of a trial that nobody has confirmed.
    pub const TRIAL: u32 = 2;
}

/// Element of the per-CPU array `BUCKETS`: a token bucket.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Bucket {
    pub tokens: u32,
    /// Jiffies of the last refill.
    pub filled: u32,
}

impl Bucket {
    /// Index of the budget that all replies of our own share.
    pub const REJECT: u32 = 0;
    /// Index of the budget of new established flows.
    pub const FLOW: u32 = 1;
    /// Index of the budget of first fragments.
    pub const FRAGMENT: u32 = 2;
    /// Index of the budget of first fragments on their way out.
    pub const REPLY_FRAGMENT: u32 = 3;
    pub const COUNT: u32 = 4;

    /// Takes one token: the whole bucket is refilled for the time gone by, `burst` at most.
    #[inline(always)]
    pub fn take(&mut self, now: u32, hz: u32, rate: u32, burst: u32) -> bool {
        let gone = now.wrapping_sub(self.filled);
        if gone != 0 {
            let hz = if hz == 0 { 1 } else { hz };
            // Time that earns less than a token stays on the clock.
            let earned = if gone > hz {
                u64::from(burst)
            } else {
                u64::from(gone) * u64::from(rate) / u64::from(hz)
            };
            if earned != 0 {
                let sum = u64::from(self.tokens) + earned;
                self.tokens = if sum > u64::from(burst) {
                    burst
                } else {
                    sum as u32
                };
                self.filled = now;
            }
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

/// Words of `ADDRESSES`: a one-probe Bloom filter over VIPs, `nat` sources and, by [`leaving_bit`], backends of this
/// node, 2^18 bits. A clear bit means "not ours"
/// after one array look-up; a set one costs a foreign packet one more hash look-up.
pub const FILTER_WORDS: u32 = 4096;

/// Word and bit (as mask) of `address` in `ADDRESSES`.
#[inline(always)]
pub fn filter_bit<A: Address>(address: &A) -> (u32, u64) {
    mixed(address, 0)
}

/// The same for a backend of this node, whose packets are looked at as they leave: by its address with port 0, and by
/// address and port. Other bits than [`filter_bit`]'s, so that packets to the backend are nobody's on their way in.
#[inline(always)]
pub fn leaving_bit<A: Address>(address: &A, port: Be16) -> (u32, u64) {
    mixed(address, 0x51ed_270b ^ port.raw() as u32)
}

#[inline(always)]
fn mixed<A: Address>(address: &A, seed: u32) -> (u32, u64) {
    let mut mix = seed;
    let mut index = 0;
    while index < A::WORDS {
        mix = (mix ^ address.word(index)).wrapping_mul(0x9e37_79b1);
        mix ^= mix >> 15;
        index += 1;
    }
    (mix >> 20, 1 << ((mix >> 14) & 63))
}

const _: () = assert!(size_of::<Settings>() == 112);
const _: () = assert!(size_of::<Bucket>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_passes_everything_from_its_end_on() {
        let mut settings = Settings::default();
        assert!(!settings.passes_all(|| unreachable!("no term, no look at the clock")));
        settings.expires = 1 << 32;
        assert!(!settings.passes_all(|| (1 << 32) - 1));
        assert!(settings.passes_all(|| 1 << 32));
        // Where 32 bits would have begun anew.
        assert!(settings.passes_all(|| 3 << 32));
        settings.expires = 0;
        settings.flags = setting_flag::BYPASS;
        assert!(settings.passes_all(|| 0));
    }
}
