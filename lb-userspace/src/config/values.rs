//! Values that are written as text.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use super::error::Invalid;

/// A transport protocol that frontends have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// IP protocol number (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What clients connect to: written `192.0.2.10:443/tcp`, `[2001:db8::10]:443/udp`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Frontend {
    pub address: IpAddr,
    /// Never 0.
    pub port: u16,
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = SocketAddr::new(self.address, self.port);
        write!(f, "{socket}/{}", self.protocol)
    }
}

impl FromStr for Frontend {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const FIX: &str = "write 192.0.2.10:443/tcp or [2001:db8::10]:443/udp";
        let wrong = |what: &str| Invalid::new(format!("\"{text}\" {what}"), FIX);
        let (socket, protocol) = text
            .rsplit_once('/')
            .ok_or_else(|| wrong("names no protocol"))?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => return Err(wrong("is SCTP, which is not supported yet")),
            _ => return Err(wrong("ends in no known protocol")),
        };
        let Target { address, port } = socket
            .parse()
            .map_err(|_| wrong("is not an address with a port"))?;
        let port = port.ok_or_else(|| wrong("names no port"))?;
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(Invalid::new(
                format!("{address} cannot be a VIP"),
                "use a unicast address that clients reach by a network",
            ));
        }
        Ok(Self {
            address,
            port,
            protocol,
        })
    }
}

/// An address with or without a port: `10.0.0.11:8443`, `10.0.0.11`, `[2001:db8::11]:8443`, `2001:db8::11`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target {
    pub address: IpAddr,
    /// Never `Some(0)`.
    pub port: Option<u16>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

impl FromStr for Target {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |what: &str| {
            Invalid::new(
                format!("\"{text}\" {what}"),
                "write 10.0.0.11:8443 or [2001:db8::11]:8443",
            )
        };
        let target = if let Ok(socket) = text.parse::<SocketAddr>() {
            if socket.port() == 0 {
                return Err(wrong("has port 0"));
            }
            if matches!(socket, SocketAddr::V6(v6) if v6.scope_id() != 0) {
                return Err(wrong("has a zone"));
            }
            Self {
                address: socket.ip(),
                port: Some(socket.port()),
            }
        } else {
            let bare = text
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
                .unwrap_or(text);
            Self {
                address: bare.parse().map_err(|_| wrong("is not an address"))?,
                port: None,
            }
        };
        if matches!(target.address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err(wrong("is an IPv4 address in IPv6 form"));
        }
        Ok(target)
    }
}

/// An own address that `nat` may use as source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Source(pub IpAddr);

impl FromStr for Source {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse::<Target>()? {
            Target {
                address,
                port: None,
            } if !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() => {
                Ok(Self(address))
            }
            _ => Err(Invalid::new(
                format!("\"{text}\" cannot be a source address"),
                "write an own unicast address without port",
            )),
        }
    }
}

/// A prefix without host bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Range(pub IpNet);

impl FromStr for Range {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let net: IpNet = text.parse().map_err(|_| {
            Invalid::new(
                format!("\"{text}\" is not a prefix"),
                "write 198.51.100.0/24 or 2001:db8::/32",
            )
        })?;
        if net != net.trunc() {
            return Err(Invalid::new(
                format!("{text} has bits behind its prefix"),
                format!("write {}", net.trunc()),
            ));
        }
        Ok(Self(net))
    }
}

/// Source ports of `nat`: `61000-65535`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ports(pub RangeInclusive<u16>);

impl FromStr for Ports {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let read = || {
            let (first, last) = text.split_once('-')?;
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        };
        match read() {
            Some((first, last)) if first >= 1024 && first <= last => Ok(Self(first..=last)),
            _ => Err(Invalid::new(
                format!("\"{text}\" is not a range of ports"),
                "write FIRST-LAST with FIRST at least 1024, as 61000-65535",
            )),
        }
    }
}

/// 128 bits as 32 hexadecimal digits. The first 16 digits are `.0[0]`, most significant digit first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClusterKey(pub [u64; 2]);

/// The key is a secret: whoever has it can craft flows that meet in one slot.
impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

impl FromStr for ClusterKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let number = (text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .then(|| u128::from_str_radix(text, 16).ok())
            .flatten()
            .ok_or_else(|| {
                Invalid::new(
                    "the key is not 32 hexadecimal digits",
                    "make one by `openssl rand -hex 16` and quote it",
                )
            })?;
        Ok(Self([(number >> 64) as u64, number as u64]))
    }
}

/// A service's name: unique, and what CLI and metrics call it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceName(Arc<str>);

impl ServiceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        let first = text.bytes().next();
        if text.len() > 253
            || !text.bytes().all(good)
            || !first.is_some_and(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(Invalid::new(
                format!("\"{text}\" is not a name"),
                "use 1 to 253 letters, digits and -_./, a letter or digit first",
            ));
        }
        Ok(Self(text.into()))
    }
}

/// `500ms`, `2s`, `1m30s`, `3h`, `1d`.
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    let wrong = || {
        Invalid::new(
            format!("\"{text}\" is not a duration"),
            "write a number and ms, s, m, h or d, as 500ms, 2s or 3h",
        )
    };
    let mut sum: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let milliseconds = match &rest[..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(milliseconds);
        sum = part
            .and_then(|part| sum.checked_add(part))
            .ok_or_else(wrong)?;
        rest = &rest[unit..];
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Ok(Duration::from_millis(sum))
}
