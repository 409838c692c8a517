use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Announcer, Claim, Seat, Send, Stage, Wanted, What,
    frames::{self, claim},
};

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 7];
const ETH0: u32 = 2;

fn seat() -> Seat {
    Seat {
        mac: OWN,
        carrier: true,
        link_local: Some("fe80::1".parse().unwrap()),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn wanted(vips: &[&str]) -> Wanted {
    vips.iter().map(|vip| ((ETH0, ip(vip)), seat())).collect()
}

/// A clock, and what was said when, in milliseconds.
struct Lan {
    announcer: Announcer,
    start: Instant,
    now: Instant,
    said: Vec<(u128, IpAddr, What)>,
}

impl Lan {
    fn new(announcer: Announcer) -> Self {
        let now = Instant::now();
        Self {
            announcer,
            start: now,
            now,
            said: Vec::new(),
        }
    }

    fn want(&mut self, wanted: &Wanted) {
        self.announcer.want(wanted, self.now);
    }

    /// Lets time go by, as the agent sleeps and wakes.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.announcer.next().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            for send in self.announcer.due(self.now) {
                let at = (self.now - self.start).as_millis();
                self.said.push((at, send.address, send.what));
            }
        }
        self.now = end;
    }

    fn hear(&mut self, vip: &str) -> bool {
        let claim = Claim {
            ifindex: ETH0,
            address: ip(vip),
            mac: OTHER,
        };
        self.announcer.heard(&claim, self.now)
    }

    fn stage(&self, vip: &str) -> Stage {
        let mut stages = self.announcer.stages();
        let found = stages.find(|((_, address), ..)| *address == ip(vip));
        found.unwrap().1
    }

    fn times(&self, what: What) -> Vec<u128> {
        let said = self.said.iter().filter(|(_, _, said)| *said == what);
        said.map(|(at, ..)| *at).collect()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_free_address_is_announced_a_few_times() {
    let mut lan = Lan::new(Announcer::default());
    lan.want(&wanted(&["192.0.2.10"]));
    lan.pass(SECOND / 2);
    assert_eq!(lan.stage("192.0.2.10"), Stage::Probing);
    assert!(lan.announcer.announced().is_empty());
    lan.pass(60 * SECOND);
    assert_eq!(lan.times(What::Probe), [0, 330, 660]);
    assert_eq!(lan.times(What::Announce), [990, 1990, 3990, 7990, 15_990]);
    assert_eq!(lan.times(What::Report), [0; 0]);
    let expected = [((ETH0, ip("192.0.2.10")), OWN)].into();
    assert_eq!(lan.announcer.announced(), expected);
}

#[test]
fn switches_are_told_again_where_questions_are_to_go() {
    let mut lan = Lan::new(Announcer::default());
    lan.want(&wanted(&["2001:db8::10"]));
    lan.pass(200 * SECOND);
    let reports = lan.times(What::Report);
    let gaps = reports.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(gaps.max().unwrap() <= 60_000, "{reports:?}");
    assert!(reports.len() >= 7 && lan.times(What::Announce).len() == 5);
}

#[test]
fn an_address_of_another_host_is_not_announced_until_it_is_free() {
    let mut lan = Lan::new(Announcer::default());
    lan.want(&wanted(&["192.0.2.10", "192.0.2.11"]));
    lan.pass(SECOND / 10);
    assert!(lan.hear("192.0.2.10"));
    lan.pass(5 * SECOND);
    let only = [((ETH0, ip("192.0.2.11")), OWN)].into();
    assert_eq!(lan.announcer.announced(), only);
    assert_eq!(lan.stage("192.0.2.10"), Stage::Conflict { with: OTHER });
    // It is asked for again, and answers again: no news.
    lan.pass(5 * SECOND);
    assert!(!lan.hear("192.0.2.10"));
    assert_eq!(lan.stage("192.0.2.10"), Stage::Conflict { with: OTHER });
    // It is gone.
    lan.pass(12 * SECOND);
    let claimed_by = None;
    assert_eq!(lan.stage("192.0.2.10"), Stage::Announced { claimed_by });
}

#[test]
fn a_claim_takes_nothing_away_and_is_answered_but_not_each_time() {
    let mut lan = Lan::new(Announcer::default());
    lan.want(&wanted(&["192.0.2.10"]));
    lan.pass(30 * SECOND);
    let before = lan.times(What::Announce).len();
    assert!(lan.hear("192.0.2.10"));
    for _ in 0..9 {
        lan.pass(SECOND);
        assert!(!lan.hear("192.0.2.10"));
    }
    let claimed_by = Some(OTHER);
    assert_eq!(lan.stage("192.0.2.10"), Stage::Announced { claimed_by });
    assert_eq!(lan.announcer.announced().len(), 1);
    assert_eq!(lan.times(What::Announce).len(), before + 1);
    lan.pass(2 * SECOND);
    lan.hear("192.0.2.10");
    lan.pass(SECOND);
    assert_eq!(lan.times(What::Announce).len(), before + 2);
    // Nobody says it any more.
    lan.pass(150 * SECOND);
    let claimed_by = None;
    assert_eq!(lan.stage("192.0.2.10"), Stage::Announced { claimed_by });
}

#[test]
fn what_was_announced_before_the_agent_came_is_announced_at_once() {
    let held = [
        ((ETH0, ip("192.0.2.10")), OWN),
        ((ETH0, ip("192.0.2.99")), OWN),
    ]
    .into();
    let mut lan = Lan::new(Announcer::adopt(&held, Instant::now()));
    assert_eq!(
        lan.announcer.announced(),
        held,
        "until it is known what is wanted"
    );
    lan.want(&wanted(&["192.0.2.10", "192.0.2.11"]));
    lan.pass(Duration::ZERO);
    let only = [((ETH0, ip("192.0.2.10")), OWN)].into();
    assert_eq!(lan.announcer.announced(), only);
    assert_eq!(
        lan.said,
        [
            (0, ip("192.0.2.10"), What::Announce),
            (0, ip("192.0.2.11"), What::Probe)
        ]
    );
}

#[test]
fn an_interface_that_comes_up_or_changes_its_mac_tells_again() {
    let mut lan = Lan::new(Announcer::default());
    lan.want(&wanted(&["192.0.2.10"]));
    lan.pass(60 * SECOND);
    let mut other = wanted(&["192.0.2.10"]);
    let key = (ETH0, ip("192.0.2.10"));
    other.get_mut(&key).unwrap().carrier = false;
    lan.want(&other);
    lan.said.clear();
    lan.pass(60 * SECOND);
    assert!(lan.said.is_empty(), "nobody hears: {:?}", lan.said);
    assert_eq!(lan.announcer.announced().len(), 1, "answers cost nothing");
    lan.want(&wanted(&["192.0.2.10"]));
    lan.pass(Duration::ZERO);
    assert_eq!(lan.times(What::Announce).len(), 1);
    other.get_mut(&key).unwrap().carrier = true;
    other.get_mut(&key).unwrap().mac = OTHER;
    lan.want(&other);
    lan.pass(Duration::ZERO);
    assert_eq!(lan.times(What::Announce).len(), 2);
    assert_eq!(lan.announcer.announced(), [(key, OTHER)].into());
}

#[test]
fn without_a_wire_no_address_is_free() {
    let mut lan = Lan::new(Announcer::default());
    let mut down = wanted(&["192.0.2.10"]);
    down.get_mut(&(ETH0, ip("192.0.2.10"))).unwrap().carrier = false;
    lan.want(&down);
    lan.pass(120 * SECOND);
    assert!(lan.said.is_empty() && lan.announcer.announced().is_empty());
    lan.want(&wanted(&["192.0.2.10"]));
    lan.pass(SECOND);
    assert_eq!(lan.times(What::Probe).len(), 3);
}

#[test]
fn many_are_announced_in_rows() {
    let vips: Vec<String> = (0..250).map(|at| format!("192.0.2.{at}")).collect();
    let vips: Vec<&str> = vips.iter().map(String::as_str).collect();
    let mut lan = Lan::new(Announcer::default());
    lan.want(&wanted(&vips));
    lan.pass(Duration::from_millis(100));
    let rows = lan.times(What::Probe);
    assert_eq!(rows.len(), 250);
    for at in [0, 20, 40] {
        assert!(rows.iter().filter(|when| **when == at).count() <= 100);
    }
}

fn said(vip: &str, what: What) -> Vec<Vec<u8>> {
    frames::frames(&Send {
        ifindex: ETH0,
        address: ip(vip),
        seat: seat(),
        what,
    })
}

/// The sum over pseudo-header and message of a good `ICMPv6` packet is zero.
fn sums_up(frame: &[u8], at: usize) -> bool {
    let length = (frame.len() - at) as u32;
    let pseudo = [&frame[22..54], &length.to_be_bytes(), &[0, 0, 0, 58]].concat();
    let bytes = [&pseudo, &frame[at..]].concat();
    let (words, _) = bytes.as_chunks::<2>();
    let sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

#[test]
fn arp_is_said_in_the_forms_of_the_field() {
    let vip = [192, 0, 2, 10];
    let arp = |operation: u8, sender: [u8; 4], target_mac: [u8; 6]| {
        [
            &[0xff; 6][..],
            &OWN,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation],
            &OWN,
            &sender,
            &target_mac,
            &vip,
        ]
        .concat()
    };
    assert_eq!(said("192.0.2.10", What::Probe), [arp(1, [0; 4], [0; 6])]);
    assert_eq!(
        said("192.0.2.10", What::Announce),
        [arp(1, vip, [0; 6]), arp(2, vip, OWN)]
    );
}

#[test]
fn neighbour_discovery_is_whole() {
    let probe = &said("2001:db8::1:10", What::Probe)[0];
    assert_eq!(probe[..6], [0x33, 0x33, 0xff, 1, 0, 0x10]);
    assert_eq!(probe[22..38], [0; 16], "from no address");
    assert_eq!((probe[21], probe[54], probe.len()), (255, 135, 78));
    assert!(sums_up(probe, 54));

    let told = &said("2001:db8::1:10", What::Announce)[0];
    assert_eq!(told[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!((told[21], told[54], told[58]), (255, 136, 0x20));
    assert_eq!(told[78..86], [2, 1, 2, 0, 0, 0, 0, 1]);
    assert!(sums_up(told, 54));

    let report = &said("2001:db8::1:10", What::Report)[0];
    assert_eq!(report[..6], [0x33, 0x33, 0, 0, 0, 0x16]);
    assert_eq!((report[20], report[21], report[62]), (0, 1, 143));
    assert_eq!(report[54..62], [58, 0, 5, 2, 0, 0, 1, 0], "router alert");
    let group: Ipv6Addr = "ff02::1:ff01:10".parse().unwrap();
    assert_eq!(report[70..74], [4, 0, 0, 0], "to exclude nobody");
    assert_eq!(report[74..], group.octets());
    assert!(sums_up(report, 62));
}

#[test]
fn claims_are_told_from_other_words() {
    let mut reply = said("192.0.2.10", What::Announce).remove(1);
    let own = Some((ip("192.0.2.10"), OWN));
    assert_eq!(claim(&reply), own);
    assert_eq!(claim(&said("192.0.2.10", What::Announce)[0]), own);
    assert_eq!(claim(&said("192.0.2.10", What::Probe)[0]), None);
    assert_eq!(
        claim(&said("2001:db8::10", What::Announce)[0]),
        Some((ip("2001:db8::10"), OWN))
    );
    assert_eq!(claim(&said("2001:db8::10", What::Probe)[0]), None);
    for end in 0..42 {
        assert_eq!(claim(&reply[..end]), None);
    }
    reply[15] = 6;
    assert_eq!(claim(&reply), None, "not of Ethernet");
    // Without the option the frame's own sender is meant (RFC 4861, section 4.4).
    let told = said("2001:db8::10", What::Announce).remove(0);
    assert_eq!(claim(&told[..78]), Some((ip("2001:db8::10"), OWN)));
    assert_eq!(claim(&told[..77]), None);
}
