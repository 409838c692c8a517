//! Whether a frame is whole and its checksums are right, by etherparse's arithmetic.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use crate::world::TUNNEL_PORT;

/// IP in IP (RFC 2003, RFC 2473).
const IN_IP: [u8; 2] = [4, 41];

/// True for a frame that a receiver would take: IP with TCP, UDP or ICMP, or with another such packet in it, all of it there
/// and every checksum right.
pub(super) fn is_sound(frame: &[u8]) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return false;
    };
    let Some(net) = packet.net else {
        return false;
    };
    let (header, payload) = match &net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            if header.header_checksum() != header.to_header().calc_header_checksum() {
                return false;
            }
            (Header::V4(header.to_header()), ip.payload())
        }
        NetSlice::Ipv6(ip) => (Header::V6(ip.header().to_header()), ip.payload()),
        NetSlice::Arp(_) => return false,
    };
    if payload.fragmented {
        return false;
    }
    if IN_IP.contains(&payload.ip_number.0) {
        let kind: &[u8] = if payload.ip_number.0 == 4 {
            &[8, 0]
        } else {
            &[0x86, 0xdd]
        };
        return is_sound(&[&[0; 12], kind, payload.payload].concat());
    }
    let sums = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let (found, tcp, rest) = (tcp.checksum(), tcp.to_header(), tcp.payload());
            let right = match &header {
                Header::V4(ip) => tcp.calc_checksum_ipv4(ip, rest),
                Header::V6(ip) => tcp.calc_checksum_ipv6(ip, rest),
            };
            right.map(|right| (found, right))
        }
        Some(TransportSlice::Udp(udp)) => {
            let is_tunnel = [udp.source_port(), udp.destination_port()].contains(&TUNNEL_PORT);
            let (found, udp, rest) = (udp.checksum(), udp.to_header(), udp.payload());
            let right = match &header {
                // None at all (RFC 768).
                Header::V4(_) if found == 0 => return true,
                Header::V4(ip) => udp.calc_checksum_ipv4(ip, rest),
                // The same of tunnels (RFC 6935).
                Header::V6(_) if found == 0 && is_tunnel => return true,
                Header::V6(ip) => udp.calc_checksum_ipv6(ip, rest),
            };
            right.map(|right| (found, right))
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let right = icmp.icmp_type().calc_checksum(icmp.payload());
            return icmp.checksum() == right;
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let Header::V6(ip) = &header else {
                return false;
            };
            return icmp.is_checksum_valid(ip.source, ip.destination);
        }
        Some(TransportSlice::Igmp(_)) | None => return false,
    };
    sums.is_ok_and(|(found, right)| found == right)
}

enum Header {
    V4(etherparse::Ipv4Header),
    V6(etherparse::Ipv6Header),
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn one_wrong_bit_is_seen() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([198, 51, 100, 7], [192, 0, 2, 10], 64)
            .tcp(1024, 443, 1, 1000)
            .write(&mut frame, b"payload")
            .unwrap();
        assert!(is_sound(&frame));
        for at in [22, 26, 34, 45, frame.len() - 1] {
            let mut broken = frame.clone();
            broken[at] ^= 1;
            assert!(!is_sound(&broken), "byte {at}");
        }
        frame.pop();
        assert!(!is_sound(&frame));
    }
}
