//! The frame of a question.

use std::net::{IpAddr, SocketAddr};

use lb_common::checksum::Delta;

use crate::{observe::view, state::Protocol};

/// Longest frame, in bytes.
const LIMIT: usize = 9216;

/// What is wrong with a question.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadQuestion(String);

/// The frame that a question means. `to` is the MAC of the interface it arrives on.
pub(crate) fn of(packet: &view::Packet, to: [u8; 6]) -> Result<Vec<u8>, BadQuestion> {
    match packet {
        view::Packet::Frame(hex) => from_hex(hex),
        view::Packet::Ends(ends) => build(ends, to),
    }
}

fn from_hex(hex: &str) -> Result<Vec<u8>, BadQuestion> {
    let digits: Vec<u8> = hex
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()
        .ok_or_else(|| BadQuestion("--frame has characters that are no hex digits".into()))?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(BadQuestion("--frame has half a byte at its end".into()));
    }
    if pairs.len() < 14 || pairs.len() > LIMIT {
        return Err(BadQuestion(format!(
            "--frame has {} bytes: give 14 to {LIMIT}, Ethernet header first",
            pairs.len()
        )));
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// A packet without payload, TTL 64, from a MAC of no one's.
fn build(ends: &view::Ends, to: [u8; 6]) -> Result<Vec<u8>, BadQuestion> {
    let view::Ends {
        from,
        to: vip,
        protocol,
        ref flags,
    } = *ends;
    let l4 = match (protocol, flags.as_deref()) {
        (Protocol::Udp, None) => udp(from, vip),
        (Protocol::Udp, Some(_)) => {
            return Err(BadQuestion("--flags is for tcp".into()));
        }
        (Protocol::Tcp, None | Some("syn")) => tcp(from, vip, SYN),
        (Protocol::Tcp, Some("ack")) => tcp(from, vip, ACK),
        (Protocol::Tcp, Some(flags)) => {
            return Err(BadQuestion(format!("--flags {flags}: give syn or ack")));
        }
    };
    let mut frame = [to, [2, 0, 0, 0, 0, 1]].concat();
    match (from.ip(), vip.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([8, 0]);
            let mut header = [0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(20 + l4.len() as u16).to_be_bytes());
            header[6] = 0x40;
            header[8] = 64;
            header[9] = number(protocol);
            header[12..16].copy_from_slice(&source.octets());
            header[16..].copy_from_slice(&destination.octets());
            let check = checksum(&header);
            header[10..12].copy_from_slice(&check);
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((l4.len() as u16).to_be_bytes());
            frame.extend([number(protocol), 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => {
            return Err(BadQuestion(
                "--from and --to are of different address families".into(),
            ));
        }
    }
    frame.extend(l4);
    Ok(frame)
}

fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let mut header = [0; 20];
    header[..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[12] = 5 << 4;
    header[13] = flags;
    header[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    let check = transport_checksum(from, to, Protocol::Tcp, &header);
    header[16..18].copy_from_slice(&check);
    header.to_vec()
}

fn udp(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut header = [0; 8];
    header[..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[5] = 8;
    let check = transport_checksum(from, to, Protocol::Udp, &header);
    // Zero means "none" (RFC 768).
    let check = if check == [0, 0] { [0xff; 2] } else { check };
    header[6..].copy_from_slice(&check);
    header.to_vec()
}

/// Over the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1) and `l4`.
fn transport_checksum(from: SocketAddr, to: SocketAddr, protocol: Protocol, l4: &[u8]) -> [u8; 2] {
    let mut bytes = Vec::new();
    for ip in [from.ip(), to.ip()] {
        match ip {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    bytes.extend([0, number(protocol)]);
    bytes.extend((l4.len() as u16).to_be_bytes());
    bytes.extend(l4);
    checksum(&bytes)
}

/// RFC 1071, as it lies in the packet. `bytes` is of even length.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let (words, _) = bytes.as_chunks::<2>();
    words
        .iter()
        .fold(Delta::default(), |sum, word| {
            sum.add(u16::from_ne_bytes(*word).into())
        })
        .checksum()
        .to_ne_bytes()
}

const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(from: &str, to: &str, protocol: Protocol, flags: Option<&str>) -> view::Packet {
        view::Packet::Ends(view::Ends {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol,
            flags: flags.map(str::to_owned),
        })
    }

    fn hex(packet: &view::Packet) -> Result<String, String> {
        use std::fmt::Write as _;
        let frame = of(packet, [2, 0, 0, 0, 0, 9]).map_err(|error| error.to_string())?;
        Ok(frame.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        }))
    }

    #[test]
    fn frames_are_built_whole() {
        // Checksums by hand: a receiver's sum over all words, checksum included, is ffff.
        let packets = [
            ends("198.51.100.7:50312", "192.0.2.10:443", Protocol::Tcp, None),
            ends("198.51.100.7:50312", "192.0.2.10:53", Protocol::Udp, None),
        ];
        for packet in packets {
            let frame = of(&packet, [0; 6]).unwrap();
            assert_eq!(checksum(&frame[14..34]), [0, 0]);
            let (from, to) = match packet {
                view::Packet::Ends(ends) => (ends.from, ends.to),
                view::Packet::Frame(_) => unreachable!(),
            };
            let protocol = if frame[23] == 6 {
                Protocol::Tcp
            } else {
                Protocol::Udp
            };
            assert_eq!(transport_checksum(from, to, protocol, &frame[34..]), [0, 0]);
        }
        let v6 = ends(
            "[2001:db8:9::7]:50312",
            "[2001:db8::10]:443",
            Protocol::Tcp,
            Some("ack"),
        );
        assert_eq!(of(&v6, [0; 6]).unwrap().len(), 14 + 40 + 20);
    }

    #[test]
    fn hex_may_have_gaps() {
        let packet = view::Packet::Frame("00:01 02".to_owned() + &"ff".repeat(12));
        assert_eq!(
            hex(&packet).unwrap(),
            "000102".to_owned() + &"ff".repeat(12)
        );
    }

    #[test]
    fn bad_questions_say_why() {
        let cases = [
            (view::Packet::Frame("0g".into()), "no hex digits"),
            (view::Packet::Frame("000".into()), "half a byte"),
            (view::Packet::Frame("00".into()), "1 bytes"),
            (
                ends("1.2.3.4:1", "[::1]:1", Protocol::Tcp, None),
                "different address families",
            ),
            (
                ends("1.2.3.4:1", "1.2.3.4:1", Protocol::Udp, Some("syn")),
                "is for tcp",
            ),
            (
                ends("1.2.3.4:1", "1.2.3.4:1", Protocol::Tcp, Some("fin")),
                "syn or ack",
            ),
        ];
        for (packet, why) in cases {
            let said = hex(&packet).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
