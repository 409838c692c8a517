//! Counters: per-CPU arrays, read by the agent when asked.

/// Element of the per-CPU array `FRONTEND_STATS`, by frontend id.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct FrontendCount {
    /// Packets forwarded from clients to backends.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Flows begun: TCP SYNs forwarded, first packets of UDP flows in `nat` and `local`.
    pub new_flows: u64,
    /// Packets forwarded from backends to clients (`nat`, `local`).
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
    /// Neighbour discovery, which is part of `ICMPv6`.
    Icmp = 1,
    Protocol = 2,
    /// Its backend is of mode `pass`: kube-proxy serves it.
    Pass = 3,
    /// To where flows of ours could be, and of none of them.
    NoFlow = 4,
    /// Handed up to the tc program: neighbour unknown, or a device that XDP cannot send on.
    HandedUp = 5,
    /// Options or extension headers beyond what the path reads.
    TooDeep = 6,
    /// On its way out: from a backend of this node, and of no flow; or a later fragment of such a packet.
    ReplyMissed = 7,
    // Answered to the client.
    UnknownPort = 8,
    NoBackend = 9,
    /// An ARP request or neighbour solicitation for an announced VIP.
    Neighbour = 14,
    /// An echo request.
    Echo = 10,
    /// Does not fit the way to its backend; the client was told what does.
    TooBig = 11,
    /// Another node's question whether packets come through to here.
    TunnelProbe = 12,
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
    /// A later fragment before its first, or after that was forgotten.
    FragmentUnknown = 26,
    /// A later fragment that claims bytes of its first.
    FragmentOverlap = 27,
    /// A first fragment without the whole transport header.
    FragmentTiny = 28,
    /// More first fragments than the budget allows.
    FragmentLimited = 29,
    /// Does not fit the way to its backend, and the client cannot be made to send less.
    DoesNotFit = 30,
    /// An ICMP error that embeds no packet of ours.
    IcmpMalformed = 31,
    /// An ICMP error about a packet of no frontend, flow or backend.
    IcmpUnmatched = 32,
    /// A packet-too-big below the minimum MTU.
    IcmpMtu = 33,
    /// ICMP that is neither an echo request nor an error, or in fragments.
    IcmpType = 34,
    /// At its backend the client's port belongs to a connection by another frontend, and so do those tried instead.
    TupleTaken = 35,
    /// The service has backends, but by its traffic policy none here; another node answers a retry.
    NoLocalBackend = 36,
    /// To this node's end of the tunnels, and no packet of a tunnel of ours: no Geneve, other options, another inner packet
    /// than TCP or UDP, or cut off.
    TunnelMalformed = 37,
    /// Its tag is wrong, or was made with a key that counts no more.
    TunnelTag = 38,
    /// For no VIP of ours, or for a backend that this node does not have there.
    TunnelTarget = 39,
}

impl Reason {
    /// Elements per frontend.
    pub const COUNT: u32 = 48;

    pub const ALL: [Self; 37] = [
        Self::Icmp,
        Self::Protocol,
        Self::Pass,
        Self::NoFlow,
        Self::HandedUp,
        Self::TooDeep,
        Self::ReplyMissed,
        Self::UnknownPort,
        Self::NoBackend,
        Self::Neighbour,
        Self::Echo,
        Self::TooBig,
        Self::TunnelProbe,
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
        Self::FragmentUnknown,
        Self::FragmentOverlap,
        Self::FragmentTiny,
        Self::FragmentLimited,
        Self::DoesNotFit,
        Self::IcmpMalformed,
        Self::IcmpUnmatched,
        Self::IcmpMtu,
        Self::IcmpType,
        Self::TupleTaken,
        Self::NoLocalBackend,
        Self::TunnelMalformed,
        Self::TunnelTag,
        Self::TunnelTarget,
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
            Self::Icmp => "icmp",
            Self::Protocol => "protocol",
            Self::Pass => "pass",
            Self::NoFlow => "no_flow",
            Self::HandedUp => "handed_up",
            Self::TooDeep => "too_deep",
            Self::ReplyMissed => "reply_missed",
            Self::UnknownPort => "unknown_port",
            Self::NoBackend => "no_backend",
            Self::Neighbour => "neighbour",
            Self::Echo => "echo",
            Self::TooBig => "too_big",
            Self::TunnelProbe => "tunnel_probe",
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
            Self::FragmentUnknown => "fragment_unknown",
            Self::FragmentOverlap => "fragment_overlap",
            Self::FragmentTiny => "fragment_tiny",
            Self::FragmentLimited => "fragment_limited",
            Self::DoesNotFit => "does_not_fit",
            Self::IcmpMalformed => "icmp_malformed",
            Self::IcmpUnmatched => "icmp_unmatched",
            Self::IcmpMtu => "icmp_mtu",
            Self::IcmpType => "icmp_type",
            Self::TupleTaken => "tuple_taken",
            Self::NoLocalBackend => "no_local_backend",
            Self::TunnelMalformed => "tunnel_malformed",
            Self::TunnelTag => "tunnel_tag",
            Self::TunnelTarget => "tunnel_target",
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
