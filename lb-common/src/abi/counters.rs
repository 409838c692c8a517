//! Counters: per-CPU arrays, read by the agent when asked.

/// Element of the per-CPU array `FRONTEND_STATS`, by frontend id.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct FrontendCount {
    /// Packets forwarded from clients to backends.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Flows begun: TCP SYNs forwarded, first packets of UDP flows in `nat`.
    pub new_flows: u64,
    /// Packets forwarded from backends to clients (`nat` only).
    pub replies: u64,
}

/// Element of the per-CPU array `BACKEND_STATS`, by backend id.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct BackendCount {
    pub packets: u64,
    pub new_flows: u64,
}

/// Why a packet was not simply forwarded: every exit but "not ours" has one. Counted in the per-CPU array `REASONS`
/// at `frontend id * COUNT + reason`; frontend 0 where none is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub enum Reason {
    // Passed to the kernel's stack.
    Fragment = 0,
    Icmp = 1,
    Protocol = 2,
    TooBig = 3,
    NoFlow = 4,
    /// Handed up to the tc program: neighbour unknown, or a device that XDP cannot send on.
    HandedUp = 5,
    /// Options or extension headers beyond what the path reads.
    TooDeep = 6,
    // Answered to the client.
    UnknownPort = 8,
    NoBackend = 9,
    /// An ARP request or neighbour solicitation for an announced VIP.
    Neighbour = 14,
    // Dropped.
    Malformed = 16,
    SourceDenied = 17,
    TtlExpired = 18,
    PortsExhausted = 19,
    FlowTableFull = 20,
    NoRoute = 21,
    RejectLimited = 22,
    /// No room in front of the packet for another header, or the kernel refused the write.
    NoHeadroom = 23,
    /// Map contents that contradict each other (should stay 0).
    Inconsistent = 24,
    /// Would be answered, but nobody is owed one: a RST, a source that is no single host, IP options.
    NotAnswered = 25,
}

impl Reason {
    /// Elements per frontend.
    pub const COUNT: u32 = 32;

    pub const ALL: [Self; 20] = [
        Self::Fragment,
        Self::Icmp,
        Self::Protocol,
        Self::TooBig,
        Self::NoFlow,
        Self::HandedUp,
        Self::TooDeep,
        Self::UnknownPort,
        Self::NoBackend,
        Self::Neighbour,
        Self::Malformed,
        Self::SourceDenied,
        Self::TtlExpired,
        Self::PortsExhausted,
        Self::FlowTableFull,
        Self::NoRoute,
        Self::RejectLimited,
        Self::NoHeadroom,
        Self::Inconsistent,
        Self::NotAnswered,
    ];

    /// The reason with this number; [`Self::Inconsistent`] for a number that is none.
    pub fn from_number(number: u32) -> Self {
        let mut index = 0;
        while index < Self::ALL.len() {
            if Self::ALL[index] as u32 == number {
                return Self::ALL[index];
            }
            index += 1;
        }
        Self::Inconsistent
    }

    /// The name in metrics, CLI and docs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fragment => "fragment",
            Self::Icmp => "icmp",
            Self::Protocol => "protocol",
            Self::TooBig => "too_big",
            Self::NoFlow => "no_flow",
            Self::HandedUp => "handed_up",
            Self::TooDeep => "too_deep",
            Self::UnknownPort => "unknown_port",
            Self::NoBackend => "no_backend",
            Self::Neighbour => "neighbour",
            Self::Malformed => "malformed",
            Self::SourceDenied => "source_denied",
            Self::TtlExpired => "ttl_expired",
            Self::PortsExhausted => "ports_exhausted",
            Self::FlowTableFull => "flow_table_full",
            Self::NoRoute => "no_route",
            Self::RejectLimited => "reject_limited",
            Self::NoHeadroom => "no_headroom",
            Self::Inconsistent => "inconsistent",
            Self::NotAnswered => "not_answered",
        }
    }

    /// The packet goes on to the kernel's stack, unchanged.
    #[inline(always)]
    pub const fn passes(self) -> bool {
        (self as u32) < 8
    }

    /// Whether the packet went on to the kernel's stack, was answered, or was dropped.
    pub const fn kind(self) -> &'static str {
        match self as u32 {
            0..8 => "passed",
            8..16 => "answered",
            _ => "dropped",
        }
    }
}
