//! Probes: a node asks another whether packets of some size come through to it, and is answered where tunnels end, by the
//! program that takes what comes out of them. `millrace doctor` asks, by a socket of its own; no pod sees any of it.
//!
//! ```text
//! outer IP, UDP     as a tunnel's, but for the length; from a port of the asking socket
//! Geneve            version 0, no options, the O bit (a control packet: RFC 8926, section 3.5), protocol 0x88b5 (for local
//!                   experiments: IEEE 802), network identifier 0
//!   4               kind: question or answer
//!   12              the asking side's own: comes back as it went
//! padding           of a question, up to the size that is asked about
//! ```

use super::{
    FamilyScratch, Path, Verdict,
    parse::{Layout, Parsed, UDP, UDP_LEN},
    reject,
};
use crate::{
    abi::Reason,
    bytes::Be16,
    packet::{Packet, Shell},
    tables::Tables,
};

/// Both words of Geneve's header, as loaded.
const GENEVE: [u32; 2] = [0x0080_88b5_u32.to_be(), 0];

/// Kinds, as loaded.
const QUESTION: u32 = 0;
const ANSWER: u32 = 1_u32.to_be();

/// Bytes behind the UDP header: of an answer, and of the shortest question.
pub const LENGTH: usize = 24;

/// Bytes that come back as they went.
pub const OWN: usize = 12;

/// UDP header and all that an answer has behind it. What is read of a question is the [`Shell`] of a tunnel, as long as this.
const DATAGRAM: u32 = UDP_LEN + LENGTH as u32;
const _: () = assert!(size_of::<Shell>() == DATAGRAM as usize);

/// What a question has behind the UDP header, but for its padding.
pub fn question(own: [u8; OWN]) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    for (at, word) in (0..).zip([GENEVE[0], GENEVE[1], QUESTION]) {
        bytes[at * 4..][..4].copy_from_slice(&word.to_ne_bytes());
    }
    bytes[LENGTH - OWN..].copy_from_slice(&own);
    bytes
}

/// What came back, if `payload` is that of an answer.
pub fn answered(payload: &[u8]) -> Option<[u8; OWN]> {
    let (head, own) = payload.split_at_checked(LENGTH - OWN)?;
    let mut words = head.as_chunks().0.iter().copied().map(u32::from_ne_bytes);
    let is_answer = [GENEVE[0], GENEVE[1], ANSWER]
        .into_iter()
        .all(|word| words.next() == Some(word));
    own.try_into().ok().filter(|_| is_answer)
}

/// What a packet to the end of the tunnels is that is none of a tunnel's: a question, or nothing that is known here. Answers
/// to this port are the latter, so that nothing is ever said twice.
#[inline(always)]
pub(crate) fn or_malformed(shell: &Shell) -> Reason {
    let [first, second] = shell.geneve;
    if first == GENEVE[0] && second == GENEVE[1] && shell.option == QUESTION {
        Reason::TunnelProbe
    } else {
        Reason::TunnelMalformed
    }
}

/// Answers a question of another node's, out of the budget that all answers share, and with no more bytes than it has.
#[inline(never)]
pub(crate) fn answer<A: Layout, P: Packet, T: Tables>(
    packet: &mut P,
    path: &Path<'_, T>,
    scratch: &FamilyScratch<A>,
) -> u64 {
    let (parsed, frontend) = (&scratch.parsed, scratch.frontend.id);
    if let Err(reason) = reject::owed(path, parsed, true) {
        return path.end(frontend, reason).pack();
    }
    if turn(packet, parsed).is_none() {
        return path.end(frontend, Reason::NoHeadroom).pack();
    }
    path.tables.count_reason(frontend, Reason::TunnelProbe);
    Verdict::Transmit.pack()
}

#[inline(always)]
fn turn<A: Layout, P: Packet>(packet: &mut P, parsed: &Parsed<A>) -> Option<()> {
    let udp = parsed.l4;
    let ports = [parsed.tuple.destination_port, parsed.tuple.source_port];
    let [from, to] = ports.map(Be16::raw);
    reject::headers(packet, parsed, UDP, DATAGRAM as u16)?;
    // Without a checksum, as a tunnel's (RFC 6935).
    let header = [from, to, (DATAGRAM as u16).to_be(), 0];
    let kind = udp + DATAGRAM - (OWN as u32 + 4);
    (packet.write(udp, &header) && packet.write(kind, &ANSWER) && packet.cut(udp + DATAGRAM))
        .then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_is_read_as_one() {
        let own = core::array::from_fn(|at| at as u8 + 1);
        let mut bytes = question(own);
        assert_eq!(bytes[..12], [0, 0x80, 0x88, 0xb5, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answered(&bytes), None, "the question itself");
        bytes[11] = 1;
        assert_eq!(answered(&bytes), Some(own));
        assert_eq!(answered(&bytes[..LENGTH - 1]), None);
        assert_eq!(answered(&[&bytes[..], &[0]].concat()), None);
        for at in 0..LENGTH - OWN {
            let mut other = bytes;
            other[at] ^= 0x10;
            assert_eq!(answered(&other), None, "byte {at}");
        }
    }
}
