//! Frames that are no plain packets of clients or backends: tagged, broken, of neighbours, probes, noise.

use etherparse::{ArpOperation, IpNumber};
use lb_common::pipeline::probe;

use super::{Frames, ip};
use crate::{
    datagrams::{self, headers},
    neighbours::{BROADCAST, NONCE, SOURCE_MAC, Solicitation, arp},
    world::{OWN, PEER, TUNNEL_PORT},
};

impl Frames {
    /// A client's or a backend's, with one VLAN tag, two, or one too many.
    pub(super) fn tagged(&mut self) -> Vec<u8> {
        let reply = if self.below(2) == 0 {
            self.reply()
        } else {
            None
        };
        let frame = reply.unwrap_or_else(|| self.by_client());
        let mut tagged = frame[..12].to_vec();
        for _ in 0..=self.below(3) {
            let kind = [[0x81, 0], [0x88, 0xa8]][self.below(2) as usize];
            tagged.extend(kind);
            // Priority and all.
            tagged.extend((self.below(1 << 16) as u16).to_be_bytes());
        }
        tagged.extend(&frame[12..]);
        tagged
    }

    /// Cut, fragmented, with options or extension headers, of other protocols, or with a flipped bit in its headers.
    pub(super) fn broken(&mut self) -> Vec<u8> {
        let mut frame = self.by_client();
        match self.below(6) {
            0 => frame.truncate(14 + self.below(60) as usize),
            1 if frame[12] == 8 => frame[20] |= 0x20,
            1 | 2 => self.other_protocol(&mut frame),
            3 => frame = datagrams::with_options(&frame),
            _ => {
                let at = 12 + self.below(frame.len().min(80) as u64 - 12) as usize;
                frame[at] ^= 1 << self.below(8);
            }
        }
        frame
    }

    fn other_protocol(&mut self, frame: &mut [u8]) {
        let protocols = [
            IpNumber::ICMP,
            IpNumber::IPV6_ICMP,
            IpNumber::SCTP,
            IpNumber::IPV4,
        ];
        let protocol = protocols[self.below(4) as usize].0;
        // The protocol field of IPv4, the next header of IPv6.
        let at = if frame[12] == 8 { 23 } else { 20 };
        frame[at] = protocol;
    }

    /// A neighbour's question for a VIP or an address of no one's; half of them odd in some way.
    pub(super) fn neighbour(&mut self) -> Vec<u8> {
        const TARGETS: [&str; 3] = ["2001:db8::10", "2001:db8::12", "2001:db8:5::10"];
        let to = [BROADCAST, self.mac, [2, 0, 0, 0, 0, 99]][self.below(3) as usize];
        let mut frame = if self.below(2) == 0 {
            let target = [192, 0, 2, [10, 11, 12, 99][self.below(4) as usize]].into();
            let sender = [[192, 0, 2, 77].into(), [0; 4].into(), target][self.below(3) as usize];
            let operation = ArpOperation(1 + self.below(2) as u16);
            arp(to, operation, sender, target)
        } else {
            let target = TARGETS[self.below(3) as usize].parse().expect("an address");
            let mut asked = match self.below(3) {
                0 => Solicitation::probe(target, &NONCE),
                1 => Solicitation::probe(target, &[]),
                _ => Solicitation::new("2001:db8::77".parse().expect("an address"), target),
            };
            match self.below(8) {
                0 => asked.destination = target,
                1 => asked.hop_limit = 64,
                2 => asked.to = to,
                3 => asked.options.extend(SOURCE_MAC),
                4 => asked.options.extend(vec![1; self.below(130) as usize]),
                _ => {}
            }
            asked.frame()
        };
        match self.below(8) {
            0 => frame.truncate(14 + self.below(frame.len() as u64 - 14) as usize),
            1 => {
                let at = self.below(frame.len() as u64) as usize;
                frame[at] ^= 1 << self.below(8);
            }
            2 => drop(frame.splice(12..12, [0x81, 0, 0, 5])),
            _ => {}
        }
        frame
    }

    /// The other node's question whether packets come through, of any size; half of them odd in some way.
    pub(super) fn probe(&mut self) -> Vec<u8> {
        let family = self.below(2) as usize;
        let length = [probe::LENGTH, 30, 100, 1452][self.below(4) as usize];
        let own = [self.below(256) as u8; probe::OWN];
        let mut from = (ip(PEER[family]), 0xc000 + self.below(8) as u16);
        let mut to = (ip(OWN[family]), TUNNEL_PORT);
        match self.below(16) {
            0 => from = self.client(family == 0),
            // As an answer comes: to who asked.
            1 => (from.1, to.1) = (to.1, from.1),
            _ => {}
        }
        let mut frame = self.packet_of(from, to, 17, length);
        let payload = headers(&frame) + 8;
        frame[payload - 2..payload].fill(0);
        frame[payload..][..probe::LENGTH].copy_from_slice(&probe::question(own));
        match self.below(16) {
            0 => frame.truncate(payload + self.below(probe::LENGTH as u64) as usize),
            1 => frame[payload + 11] = 1,
            2 => {
                let at = payload + self.below(12) as usize;
                frame[at] ^= 1 << self.below(8);
            }
            3 => frame = datagrams::with_options(&frame),
            4 | 5 => drop(frame.splice(12..12, [0x81, 0, 0, 5])),
            _ => {}
        }
        frame
    }

    pub(super) fn noise(&mut self) -> Vec<u8> {
        let length = 14 + self.below(100) as usize;
        let mut frame: Vec<u8> = (0..length).map(|_| self.below(256) as u8).collect();
        let types = [[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0]];
        frame[12..14].copy_from_slice(&types[self.below(4) as usize]);
        frame
    }
}
