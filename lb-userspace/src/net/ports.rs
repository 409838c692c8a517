//! The ports that the host's own sockets and masquerading take.

use std::{fs, ops::RangeInclusive, path::Path};

/// `net.ipv4.ip_local_port_range` without `net.ipv4.ip_local_reserved_ports` (both hold for IPv6, too).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalPorts {
    pub range: RangeInclusive<u16>,
    pub reserved: Vec<RangeInclusive<u16>>,
}

impl Default for LocalPorts {
    /// The kernel's defaults.
    fn default() -> Self {
        Self {
            range: 32_768..=60_999,
            reserved: Vec::new(),
        }
    }
}

impl LocalPorts {
    /// As the kernel says now; the kernel's defaults where it does not say.
    pub fn read() -> Self {
        Self::read_below(Path::new("/proc/sys/net/ipv4"))
    }

    fn read_below(folder: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        Self::parse(
            &text("ip_local_port_range"),
            &text("ip_local_reserved_ports"),
        )
        .unwrap_or_default()
    }

    /// `range` is "first last", `reserved` a comma-separated list of ports and ranges.
    fn parse(range: &str, reserved: &str) -> Option<Self> {
        let mut bounds = range.split_ascii_whitespace().map(str::parse::<u16>);
        let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
        let reserved = reserved
            .trim()
            .split(',')
            .filter(|item| !item.is_empty())
            .map(|item| {
                let (first, last) = item.split_once('-').unwrap_or((item, item));
                Some(first.parse().ok()?..=last.parse().ok()?)
            })
            .collect::<Option<_>>()?;
        Some(Self {
            range: first..=last,
            reserved,
        })
    }

    /// Whether the host itself may take `port` for a new socket.
    pub fn takes(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|range| range.contains(&port))
    }

    /// The lowest port of `ports` that the host itself may take.
    pub fn overlap(&self, ports: RangeInclusive<u16>) -> Option<u16> {
        ports.into_iter().find(|port| self.takes(*port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_not_taken() {
        let ports = LocalPorts::parse("32768\t61010\n", "61000-61005,61008\n").unwrap();
        assert_eq!(ports.overlap(61_000..=65_535), Some(61_006));
        assert_eq!(ports.overlap(61_008..=61_008), None);
        assert!(ports.takes(61_010));
        assert!(!ports.takes(61_011));
    }

    #[test]
    fn nothing_reserved_is_an_empty_list() {
        let ports = LocalPorts::parse("32768 60999", "\n").unwrap();
        assert_eq!(ports, LocalPorts::default());
        assert_eq!(ports.overlap(61_000..=65_535), None);
        assert_eq!(LocalPorts::parse("", ""), None);
    }
}
