//! Every map: who writes it, who reads it, and why it is of its type. Sizes are those of the default limits; the
//! agent sets them at load.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup},
    macros::map,
    maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray,
        xdp::DevMapHash,
    },
};
use lb_common::{
    abi::{
        Announced, AnnouncedKey, Backend, BackendCount, Bucket, FILTER_WORDS, Flow, Fragment,
        FragmentKey, Frontend, FrontendCount, FrontendKey, MOVED_WORDS, Moved, NextHop, Reason,
        Segment, Service, Settings, SourceKey, TargetKey, Tuple,
    },
    bytes::{V4, V6},
    pipeline::Scratch,
};

/// One element. The agent writes it.
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Bloom filter over VIPs and `nat` sources. The agent writes words through mmap.
#[map]
pub static ADDRESSES: Array<u64> = Array::with_max_entries(FILTER_WORDS, BPF_F_MMAPABLE);

/// Immutable entries: inserted and deleted by the agent. Not preallocated, so that a deleted element is not handed
/// to another key while a reader holds it.
#[map]
pub static FRONTENDS4: HashMap<FrontendKey<V4>, Frontend> =
    HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
pub static FRONTENDS6: HashMap<FrontendKey<V6>, Frontend> =
    HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Source ranges of restricted services: value unused. The agent writes them.
#[map]
pub static SOURCES4: LpmTrie<SourceKey<V4>, u32> =
    LpmTrie::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static SOURCES6: LpmTrie<SourceKey<V6>, u32> =
    LpmTrie::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// The five arrays of selection, written by the agent through mmap, a word at a time.
#[map]
pub static SERVICES: Array<Service> = Array::with_max_entries(4096, BPF_F_MMAPABLE);
#[map]
pub static SLOTS: Array<u64> = Array::with_max_entries(8_388_608, BPF_F_MMAPABLE);
/// Ordinal to backend id (low 32 bits).
#[map]
pub static MEMBERS: Array<u64> = Array::with_max_entries(131_072, BPF_F_MMAPABLE);
#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(65_536, BPF_F_MMAPABLE);
#[map]
pub static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(65_536, BPF_F_MMAPABLE);

/// Established flows, two entries each. The program writes them; the agent reads and removes.
#[map]
pub static FLOWS4: LruHashMap<Tuple<V4>, Flow<V4>> = LruHashMap::with_max_entries(524_288, 0);
#[map]
pub static FLOWS6: LruHashMap<Tuple<V6>, Flow<V6>> = LruHashMap::with_max_entries(524_288, 0);

/// Flows whose client has not yet shown that it sees our replies: a flood of spoofed packets stays in here.
#[map]
pub static HALF_OPEN4: LruHashMap<Tuple<V4>, Flow<V4>> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub static HALF_OPEN6: LruHashMap<Tuple<V6>, Flow<V6>> = LruHashMap::with_max_entries(65_536, 0);

/// Filter of connections that are not where the table leads. The program writes it.
#[map]
pub static MOVED: Array<Moved> = Array::with_max_entries(MOVED_WORDS, 0);

/// First fragments, for those that follow. The program writes them, as often as their budget allows; nothing else is
/// evicted by a flood of them.
#[map]
pub static FRAGMENTS4: LruHashMap<FragmentKey<V4>, Fragment<V4>> =
    LruHashMap::with_max_entries(8192, 0);
#[map]
pub static FRAGMENTS6: LruHashMap<FragmentKey<V6>, Fragment<V6>> =
    LruHashMap::with_max_entries(8192, 0);

/// Backends of this node by the names that other nodes' packets give them. Immutable entries, as the frontends.
#[map]
pub static TARGETS4: HashMap<TargetKey<V4>, u32> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static TARGETS6: HashMap<TargetKey<V6>, u32> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// `millrace_tunnel`, for `millrace_xdp` to call. Pinned: an array that nobody holds is emptied.
#[map]
pub static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Devices that XDP may send on: interface index to itself. The agent writes them.
#[map]
pub static DEVICES: DevMapHash = DevMapHash::with_max_entries(1024, 0);

/// The stack's interfaces whose frames XDP meets on another device: VLAN devices by device and tags, and bonds by their
/// ports. And the other way about: where frames leave that are to leave by such an interface, for route look-ups. The agent
/// inserts and deletes entries; not preallocated, as the frontends.
#[map]
pub static INTERFACES: HashMap<Segment, u32> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
#[map]
pub static SEGMENTS: HashMap<u32, Segment> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// VIPs announced on the LAN, by interface. The agent inserts and deletes entries; the program counts in its CPU's value.
/// Not preallocated, as the frontends.
#[map]
pub static ANNOUNCED4: PerCpuHashMap<AnnouncedKey<V4>, Announced> =
    PerCpuHashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
#[map]
pub static ANNOUNCED6: PerCpuHashMap<AnnouncedKey<V6>, Announced> =
    PerCpuHashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// Room for what the stack has no place for. The program writes it; nothing survives a packet.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// A route look-up's question and answer, likewise.
#[map]
pub static ROUTE: PerCpuArray<bpf_fib_lookup> = PerCpuArray::with_max_entries(1, 0);

/// Token buckets, per CPU. The program writes them.
#[map]
pub static BUCKETS: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(Bucket::COUNT, 0);

/// Counters, per CPU. The program adds, the agent reads and zeroes an id's before its first use.
#[map]
pub static FRONTEND_STATS: PerCpuArray<FrontendCount> = PerCpuArray::with_max_entries(4096, 0);
#[map]
pub static BACKEND_STATS: PerCpuArray<BackendCount> = PerCpuArray::with_max_entries(65_536, 0);
#[map]
pub static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(4096 * Reason::COUNT, 0);
