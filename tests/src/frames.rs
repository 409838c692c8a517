//! Frames of all kinds, from a seed: clients of few addresses, so that many packets belong to flows that are there;
//! replies of the backends that were chosen; fragments in any order; ICMP about all of them; and what is odd, broken or
//! not ours.

mod odd;

use std::net::IpAddr;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};

use lb_common::pipeline::Verdict;

use crate::{
    datagrams::{self, Message},
    director::{Director, Receiver},
    world::{FRONTENDS, OWN},
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Where a frame goes.
fn sent_to(frame: &[u8]) -> Option<IpAddr> {
    match SlicedPacket::from_ethernet(frame).ok()?.net? {
        NetSlice::Ipv4(ip) => Some(ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => Some(ip.header().destination_addr().into()),
        NetSlice::Arp(_) => None,
    }
}

/// Xorshift (Marsaglia 2003): the same frames in each run.
#[derive(Debug)]
pub struct Frames {
    state: u64,
    mac: [u8; 6],
    /// Frames that left towards a backend under `nat`.
    forwarded: Vec<Vec<u8>>,
    /// Frames that went on to a backend of this node.
    delivered: Vec<Vec<u8>>,
    /// Fragments that have not come yet.
    pieces: Vec<Vec<u8>>,
    /// The same of datagrams that leave.
    leaving: Vec<Vec<u8>>,
    /// The other node, over IPv4 and over IPv6.
    directors: [Director; 2],
    /// The same node, where frames from here go.
    receiver: Receiver,
}

impl Frames {
    /// `mac`: of the interface they arrive on.
    pub fn new(seed: u64, mac: [u8; 6]) -> Self {
        Self {
            state: seed,
            mac,
            forwarded: Vec::new(),
            delivered: Vec::new(),
            pieces: Vec::new(),
            leaving: Vec::new(),
            directors: [true, false].map(|over_v4| Director::new(over_v4, mac)),
            receiver: Receiver::new(mac),
        }
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % end
    }

    /// Tells of a frame that left: its backend may answer it.
    pub fn left(&mut self, frame: &[u8]) {
        if self.forwarded.len() < 4096 {
            self.forwarded.push(frame.to_vec());
        } else {
            let at = self.below(4096) as usize;
            self.forwarded[at] = frame.to_vec();
        }
    }

    /// Tells of a frame that went on to a backend of this node: that answers, or somebody tells of an error.
    pub fn delivered(&mut self, frame: &[u8]) {
        if self.delivered.len() < 4096 {
            self.delivered.push(frame.to_vec());
        } else {
            let at = self.below(4096) as usize;
            self.delivered[at] = frame.to_vec();
        }
    }

    /// The next frame that leaves this node behind its stack; as long as Ethernet's are, `BPF_PROG_TEST_RUN` of newer
    /// kernels takes no skb without its network header.
    pub fn make_leaving(&mut self) -> Vec<u8> {
        let mut frame = self.any_leaving();
        frame.resize(frame.len().max(60), 0);
        frame
    }

    fn any_leaving(&mut self) -> Vec<u8> {
        if !self.leaving.is_empty() && self.below(2) == 0 {
            let at = self.below(self.leaving.len() as u64) as usize;
            return self.leaving.swap_remove(at);
        }
        let at = self.below(self.delivered.len().max(1) as u64) as usize;
        let Some(asked) = self.delivered.get(at).cloned() else {
            return self.by_client();
        };
        if self.below(6) == 0 {
            return self.error_about(&asked);
        }
        let length = [0, 1, 100, 1460, 1472, 3000][self.below(6) as usize];
        let Some(mut answer) = self.answer_of(&asked, length) else {
            return self.noise();
        };
        self.vary(&mut answer);
        if length == 3000 {
            let id = self.below(4) as u32;
            let mut pieces = datagrams::fragments(&answer, id, 1480);
            answer = pieces.remove(0);
            self.leaving.append(&mut pieces);
        }
        match self.below(12) {
            0 => answer.truncate(40 + self.below(60) as usize),
            1 => {
                let at = 12 + self.below(answer.len().min(80) as u64 - 12) as usize;
                answer[at] ^= 1 << self.below(8);
            }
            2 => drop(answer.splice(12..12, [0x81, 0, 0, 5])),
            3 => return self.make(),
            _ => {}
        }
        answer
    }

    /// The next frame.
    pub fn make(&mut self) -> Vec<u8> {
        match self.below(100) {
            0..36 => self.by_client(),
            36..42 => self.tunnelled(),
            42..62 => self.reply().unwrap_or_else(|| self.by_client()),
            62..71 => self.piece(),
            71..79 => self.error(),
            79..81 => self.ping(),
            81..84 => self.unknown_port(),
            84..87 => self.foreign(),
            87..90 => self.tagged(),
            90..95 => self.broken(),
            95..97 => self.neighbour(),
            _ => self.noise(),
        }
    }

    /// One of 32 clients; half of them are in no restricted service's ranges, one is on link without a neighbour.
    fn client(&mut self, v4: bool) -> (IpAddr, u16) {
        let number = self.below(32) as u8;
        let ip = match (v4, number) {
            (true, 31) => [10, 0, 0, 77].into(),
            (true, _) => [198, 51, 100, number * 8].into(),
            (false, 31) => ip("2001:db8:1::77"),
            (false, _) => ip(&format!("2001:db8:9::{}:{number}", number % 2)),
        };
        (ip, 1024 + self.below(8) as u16)
    }

    fn by_client(&mut self) -> Vec<u8> {
        let (vip, port, protocol) = FRONTENDS[self.below(FRONTENDS.len() as u64) as usize];
        let vip = ip(vip);
        let from = self.client(vip.is_ipv4());
        let mut frame = self.packet(from, (vip, port), protocol);
        self.vary(&mut frame);
        frame
    }

    /// By way of another node, if that sends something here; one of eight is broken underway.
    fn tunnelled(&mut self) -> Vec<u8> {
        if self.below(6) == 0 {
            return self.probe();
        }
        if let Some(given_back) = self.given_back() {
            return given_back;
        }
        let over = self.below(2) as usize;
        let sent = (0..8).find_map(|_| {
            let frame = match self.below(8) {
                0 => self.piece(),
                1 => self.error(),
                _ => self.by_client(),
            };
            self.directors[over].send(&frame)
        });
        let Some(mut sent) = sent else {
            return self.by_client();
        };
        if self.below(8) == 0 {
            let at = 12 + self.below(sent.len().min(140) as u64 - 12) as usize;
            sent[at] ^= 1 << self.below(8);
        }
        sent
    }

    /// What the other node does not know either, of what has left here.
    fn given_back(&mut self) -> Option<Vec<u8>> {
        let at = self.below(2 * self.forwarded.len() as u64 + 1) as usize;
        let (verdict, back) = self.receiver.take(self.forwarded.get(at)?);
        (verdict == Verdict::Transmit).then_some(back)
    }

    /// Flags, TTL and payload of all kinds.
    fn packet(&mut self, from: (IpAddr, u16), to: (IpAddr, u16), protocol: u8) -> Vec<u8> {
        let length = [0, 0, 1, 100, 1440, 1460, 1472][self.below(7) as usize];
        self.packet_of(from, to, protocol, length)
    }

    fn packet_of(
        &mut self,
        from: (IpAddr, u16),
        to: (IpAddr, u16),
        protocol: u8,
        length: usize,
    ) -> Vec<u8> {
        let ttl = [64, 64, 64, 255, 2, 1][self.below(6) as usize];
        let payload = vec![0xa5; length];
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], self.mac);
        let builder = match (from.0, to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), ttl),
            (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), ttl),
            _ => unreachable!("ends of one family"),
        };
        let mut frame = Vec::new();
        if protocol == 17 {
            let builder = builder.udp(from.1, to.1);
            builder
                .write(&mut frame, &payload)
                .expect("a vector takes it");
        } else {
            let sequence = self.below(1 << 32) as u32;
            let mut tcp = TcpHeader::new(from.1, to.1, sequence, 1000);
            match self.below(10) {
                0..4 => tcp.syn = true,
                4 => tcp.rst = true,
                5 => (tcp.fin, tcp.ack) = (true, true),
                _ => tcp.ack = true,
            }
            tcp.acknowledgment_number = 7001;
            if tcp.syn {
                tcp.set_options_raw(&self.options())
                    .expect("at most 40 bytes");
            }
            let builder = builder.tcp_header(tcp);
            builder
                .write(&mut frame, &payload)
                .expect("a vector takes it");
        }
        frame
    }

    /// TCP options with an MSS among them, or what looks like some.
    fn options(&mut self) -> Vec<u8> {
        let mut options = Vec::new();
        while self.below(3) > 0 && options.len() < 36 {
            match self.below(6) {
                0 => options.push(1),
                1 => options.extend([3, 3, 7]),
                2 => options.extend([4, 2]),
                3 => options.push(self.below(256) as u8),
                _ => options.extend([2, 4, self.below(8) as u8, self.below(256) as u8]),
            }
        }
        options
    }

    /// What a network may do to a good frame, or a client of its own: DSCP and ECN, no UDP checksum, wrong checksums.
    fn vary(&mut self, frame: &mut [u8]) {
        match self.below(12) {
            0 => frame[15] = self.below(256) as u8,
            1 if frame[12..14] == [8, 0] && frame[23] == 17 => frame[40..42].fill(0),
            2 => {
                let last = frame.len() - 1;
                frame[last] ^= 1;
            }
            _ => {}
        }
    }

    /// A backend's answer to one of the frames that left.
    fn reply(&mut self) -> Option<Vec<u8>> {
        let length = [0, 0, 1, 100, 1440, 1460, 1472][self.below(7) as usize];
        self.reply_of(length)
    }

    fn reply_of(&mut self, length: usize) -> Option<Vec<u8>> {
        if self.forwarded.is_empty() {
            return None;
        }
        let at = self.below(self.forwarded.len() as u64) as usize;
        let asked = self.forwarded[at].clone();
        let own = |to: IpAddr| OWN.iter().any(|own| own.parse() == Ok(to));
        self.answer_of(&asked, length)
            .filter(|answer| sent_to(answer).is_some_and(own))
    }

    /// What the addressee of a frame answers.
    fn answer_of(&mut self, asked: &[u8], length: usize) -> Option<Vec<u8>> {
        let asked = SlicedPacket::from_ethernet(asked).ok()?;
        let (from, to): (IpAddr, IpAddr) = match asked.net? {
            NetSlice::Ipv4(ip) => (
                ip.header().destination_addr().into(),
                ip.header().source_addr().into(),
            ),
            NetSlice::Ipv6(ip) => (
                ip.header().destination_addr().into(),
                ip.header().source_addr().into(),
            ),
            NetSlice::Arp(_) => return None,
        };
        let (source, destination, protocol) = match asked.transport? {
            TransportSlice::Tcp(tcp) => (tcp.destination_port(), tcp.source_port(), 6),
            TransportSlice::Udp(udp) => (udp.destination_port(), udp.source_port(), 17),
            _ => return None,
        };
        let mut frame = self.packet_of((from, source), (to, destination), protocol, length);
        if protocol == 6 && self.below(2) == 0 {
            // A SYN-ACK whose number the client's later ACKs acknowledge.
            let tcp = frame.len().min(if from.is_ipv4() { 34 } else { 54 });
            frame[tcp + 4..tcp + 8].copy_from_slice(&7000u32.to_be_bytes());
            frame[tcp + 13] = 0x12;
        }
        Some(frame)
    }

    /// A fragment of a client's or a backend's datagram: in order or not, twice or never, overlapping or tiny. Ids come
    /// again, and are few, so that no table is full.
    fn piece(&mut self) -> Vec<u8> {
        if self.pieces.len() > 64 || !self.pieces.is_empty() && self.below(3) > 0 {
            let at = self.below(self.pieces.len() as u64) as usize;
            return if self.below(8) == 0 {
                self.pieces[at].clone()
            } else {
                self.pieces.swap_remove(at)
            };
        }
        let length = [200, 1600, 3000][self.below(3) as usize];
        let whole = if self.below(3) == 0 {
            self.reply_of(length)
        } else {
            None
        };
        let whole = whole.unwrap_or_else(|| {
            let (vip, port, protocol) = FRONTENDS[self.below(FRONTENDS.len() as u64) as usize];
            let port = if self.below(12) == 0 { 81 } else { port };
            let from = self.client(ip(vip).is_ipv4());
            self.packet_of(from, (ip(vip), port), protocol, length)
        });
        let id = self.below(4) as u32;
        let payload = whole.len() - datagrams::headers(&whole);
        if self.below(6) == 0 {
            // Any part, even none, and whatever it says of more.
            let from = (self.below(payload as u64 / 8) * 8) as usize;
            let to = from + self.below((payload - from) as u64) as usize;
            let more = self.below(2) == 0;
            return datagrams::fragment(&whole, id, from..to, more);
        }
        if payload > 1528 && self.below(3) == 0 {
            // The second fits no tunnel, the first does.
            let second = datagrams::fragment(&whole, id, 48..1528, true);
            self.pieces.push(second);
            return datagrams::fragment(&whole, id, 0..48, true);
        }
        let size = [8, 16, 24, 400, 1400, 1480, 1480, 1480][self.below(8) as usize];
        let mut pieces = datagrams::fragments(&whole, id, size.max(payload.div_ceil(256) * 8));
        if payload > 48 && self.below(4) == 0 {
            let overlap = datagrams::fragment(&whole, id, 8..48, true);
            self.pieces.push(overlap);
        }
        if self.below(4) > 0 {
            let first = pieces.remove(0);
            self.pieces.append(&mut pieces);
            return first;
        }
        let last = pieces.pop();
        self.pieces.append(&mut pieces);
        last.expect("one at least")
    }

    /// An ICMP error about a packet that left, or that a backend sent by itself; one in three with a flipped bit.
    fn error(&mut self) -> Vec<u8> {
        let known = self.below(self.forwarded.len().max(1) as u64) as usize;
        let known = self.forwarded.get(known).filter(|frame| {
            frame.len() > 62 && (frame[12..14] == [8, 0] || frame[12..14] == [0x86, 0xdd])
        });
        let about = match known {
            Some(frame) if self.state & 3 != 0 => frame.clone(),
            _ => {
                let (vip, port, protocol) = FRONTENDS[self.below(FRONTENDS.len() as u64) as usize];
                let to = self.client(ip(vip).is_ipv4());
                self.packet((ip(vip), port), to, protocol)
            }
        };
        self.error_about(&about)
    }

    fn error_about(&mut self, about: &[u8]) -> Vec<u8> {
        let v4 = datagrams::is_v4(about);
        let types: [(u8, u8); 6] = if v4 {
            [(3, 1), (3, 4), (11, 0), (12, 0), (5, 0), (0, 0)]
        } else {
            [(1, 4), (2, 0), (3, 0), (4, 1), (137, 0), (129, 0)]
        };
        let (kind, code) = types[self.below(6) as usize];
        let word = [1400, 1400, 1280, 1279, 68, 67][self.below(6) as usize];
        let message = Message { kind, code, word };
        let teller = self.client(v4).0;
        let quoted = match self.below(3) {
            0 => self.below(70) as usize,
            1 => 128,
            _ => 400,
        };
        let macs = [[2, 0, 0, 0, 0, 1], self.mac];
        let mut frame = datagrams::about(about, macs, teller, message, quoted);
        match self.below(6) {
            0 => {
                let at = 14 + self.below(frame.len() as u64 - 14) as usize;
                frame[at] ^= 1 << self.below(8);
            }
            1 => {
                let header = datagrams::headers(&frame) + 8;
                if header < frame.len() {
                    let at = header + self.below((frame.len() - header).min(48) as u64) as usize;
                    frame[at] = self.below(256) as u8;
                }
            }
            _ => {}
        }
        frame
    }

    /// An echo request to a VIP, or to an own address.
    fn ping(&mut self) -> Vec<u8> {
        let to = if self.below(4) == 0 {
            ip(OWN[self.below(2) as usize])
        } else {
            ip(FRONTENDS[self.below(FRONTENDS.len() as u64) as usize].0)
        };
        let from = self.client(to.is_ipv4()).0;
        let message = Message {
            kind: if to.is_ipv4() { 8 } else { 128 },
            code: 0,
            word: self.below(1 << 32) as u32,
        };
        let payload = vec![0x5a; self.below(100) as usize];
        datagrams::icmp(
            [[2, 0, 0, 0, 0, 1], self.mac],
            [from, to],
            message,
            &payload,
        )
    }

    fn unknown_port(&mut self) -> Vec<u8> {
        let (vip, _, protocol) = FRONTENDS[self.below(FRONTENDS.len() as u64) as usize];
        let vip = ip(vip);
        let from = self.client(vip.is_ipv4());
        let port = [81, 8080, 61_500][self.below(3) as usize];
        self.packet(from, (vip, port), protocol)
    }

    /// To an address of no one's here, and to an own address without a flow.
    fn foreign(&mut self) -> Vec<u8> {
        let to = ["203.0.113.1", "2001:db8:5::1", OWN[0], OWN[1]][self.below(4) as usize];
        let to = ip(to);
        let from = self.client(to.is_ipv4());
        let port = [80, 61_005, 65_535][self.below(3) as usize];
        let protocol = [6, 17][self.below(2) as usize];
        self.packet(from, (to, port), protocol)
    }
}
