//! The maps as `lb_common::tables`.

use core::{arch::asm, cell::Cell, mem::MaybeUninit, ops::Deref};

use aya_ebpf::{
    bindings::{BPF_NOEXIST, bpf_fib_lookup},
    cty::c_void,
    helpers::{bpf_fib_lookup as fib_lookup, bpf_jiffies64},
    maps::{LruHashMap, lpm_trie::Key},
};
use lb_common::{
    abi::{
        Announced, AnnouncedKey, Backend, Bucket, Flow, Fragment, FragmentKey, Frontend,
        FrontendKey, Hop, Moved, NextHop, Reason, Segment, Service, SourceKey, TargetKey, Tuple,
    },
    bytes::{Addr, Address, Macs, V4, V6},
    tables::{Budget, FamilyTables, FlowTable, Home, Route, Tables},
};

use crate::maps::{
    ADDRESSES, ANNOUNCED4, ANNOUNCED6, BACKEND_STATS, BACKENDS, BUCKETS, DEVICES, FLOWS4, FLOWS6,
    FRAGMENTS4, FRAGMENTS6, FRONTEND_STATS, FRONTENDS4, FRONTENDS6, HALF_OPEN4, HALF_OPEN6,
    INTERFACES, MEMBERS, MOVED, NEXT_HOPS, REASONS, ROUTE, SEGMENTS, SERVICES, SETTINGS, SLOTS,
    SOURCES4, SOURCES6, TARGETS4, TARGETS6,
};

/// All tables; the context is what route look-ups need.
pub(crate) struct KernelTables<const TC: bool> {
    pub(crate) context: *mut c_void,
    pub(crate) ingress: u32,
    /// Set by the pipeline in the tc home.
    pub(crate) gateway: Cell<Addr>,
}

/// Address families of `bpf_fib_lookup`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Answers of `bpf_fib_lookup` (linux/bpf.h, `BPF_FIB_LKUP_RET_*`).
const FOUND: i64 = 0;
const BLACKHOLE: i64 = 1;
const UNREACHABLE: i64 = 2;
const PROHIBIT: i64 = 3;
const NO_NEIGHBOUR: i64 = 7;

impl<const TC: bool> KernelTables<TC> {
    /// Where XDP sends what leaves by an interface; the stack needs no other.
    #[inline(always)]
    fn segment(&self, ifindex: u32) -> Segment {
        let itself = Segment { ifindex, tags: 0 };
        if TC || ifindex == self.ingress {
            return itself;
        }
        // SAFETY: entries are immutable, and freed after a grace period; the value is copied out.
        unsafe { SEGMENTS.get(ifindex) }.copied().unwrap_or(itself)
    }

    #[inline(always)]
    fn fib(&self, from: u32, query: &mut bpf_fib_lookup) -> Route {
        query.ifindex = from;
        // One byte fits any MTU; asking at all makes the kernel say it (5.12; older ones leave the 1).
        query.__bindgen_anon_1.tot_len = 1;
        // SAFETY: the kernel reads and writes the struct it is given, and the context is this program's own.
        let answer =
            unsafe { fib_lookup(self.context, query, size_of::<bpf_fib_lookup>() as i32, 0) };
        // SAFETY: all members of the unions are integers.
        let (mtu, gateway) = unsafe {
            let gateway = if query.family == AF_INET {
                V4(query.__bindgen_anon_4.ipv4_dst).to_addr()
            } else {
                Addr(query.__bindgen_anon_4.ipv6_dst)
            };
            (query.__bindgen_anon_1.mtu_result, gateway)
        };
        match answer {
            FOUND => {
                let segment = self.segment(query.ifindex);
                let sends = TC
                    || segment.ifindex == self.ingress
                    || DEVICES.get_ifindex(segment.ifindex).is_some();
                if sends {
                    Route::Hop {
                        hop: Hop {
                            segment,
                            macs: Macs::new(query.dmac, query.smac),
                        },
                        mtu: if mtu > 1 { mtu } else { u16::MAX },
                        gateway,
                    }
                } else {
                    // A bridge: the stack sends there.
                    Route::Neighbour {
                        ifindex: query.ifindex,
                        gateway,
                    }
                }
            }
            NO_NEIGHBOUR => Route::Neighbour {
                ifindex: query.ifindex,
                gateway,
            },
            BLACKHOLE | UNREACHABLE | PROHIBIT => Route::None,
            _ => Route::Unknown,
        }
    }
}

/// Aligned for the double words that LLVM copies by: on its stack the kernel insists.
#[repr(C, align(8))]
struct Place<T>(MaybeUninit<T>);

impl<T> Place<T> {
    const fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Stores two words at once, at an even word.
    ///
    /// # Safety
    /// The value has a word behind `at`.
    #[inline(always)]
    unsafe fn put(&mut self, at: usize, low: u32, high: u32) {
        let words: *mut u32 = self.0.as_mut_ptr().cast();
        let mut high = u64::from(high);
        // SAFETY: arithmetic on a register; from a shift of its own, LLVM would see that both words may be loaded at once,
        // and that load would wait where they were stored apart. The rest as the caller says, and the place is aligned.
        unsafe {
            asm!("{high} <<= 32", high = inout(reg) high, options(pure, nomem, nostack));
            words.add(at).cast::<u64>().write(u64::from(low) | high)
        };
    }
}

/// A copy of the key, stored by the double words that the kernel compares by: it would wait for one stored in parts.
#[inline(always)]
fn frontend_key<'a, A: Address>(
    key: &FrontendKey<A>,
    place: &'a mut Place<FrontendKey<A>>,
) -> &'a FrontendKey<A> {
    let last = u32::from(key.port.raw()) | u32::from(key.protocol) << 16;
    // SAFETY: the key is the address's words, and one of port, protocol and padding: all that is written, nothing else.
    unsafe {
        if A::WORDS == 1 {
            place.put(0, key.address.word(0), last);
        } else {
            place.put(0, key.address.word(0), key.address.word(1));
            place.put(2, key.address.word(2), key.address.word(3));
            let words: *mut u32 = place.0.as_mut_ptr().cast();
            words.add(A::WORDS).write(last);
        }
        place.0.assume_init_ref()
    }
}

/// The same of an IPv4 flow's key. The stack has no room for one of IPv6.
#[inline(always)]
fn flow_key<'a, A: Address>(key: &'a Tuple<A>, place: &'a mut Place<[u32; 4]>) -> *const Tuple<A> {
    if A::WORDS != 1 {
        return key;
    }
    let ports = u32::from(key.source_port.raw()) | u32::from(key.destination_port.raw()) << 16;
    // SAFETY: four words.
    unsafe {
        place.put(0, key.source.word(0), key.destination.word(0));
        place.put(2, ports, u32::from(key.protocol));
    }
    place.0.as_ptr().cast()
}

/// The flow tables of one family.
trait FlowMaps: Address {
    fn map(table: FlowTable) -> &'static LruHashMap<Tuple<Self>, Flow<Self>>;
}

impl FlowMaps for V4 {
    #[inline(always)]
    fn map(table: FlowTable) -> &'static LruHashMap<Tuple<Self>, Flow<Self>> {
        match table {
            FlowTable::Established => &FLOWS4,
            FlowTable::HalfOpen => &HALF_OPEN4,
        }
    }
}

impl FlowMaps for V6 {
    #[inline(always)]
    fn map(table: FlowTable) -> &'static LruHashMap<Tuple<Self>, Flow<Self>> {
        match table {
            FlowTable::Established => &FLOWS6,
            FlowTable::HalfOpen => &HALF_OPEN6,
        }
    }
}

macro_rules! family_tables {
    ($address:ty, $frontends:ident, $sources:ident, $announced:ident, $fragments:ident, $targets:ident, $bits:expr, |$query:ident, $source:ident, $destination:ident| $fill:block) => {
        impl<const TC: bool> FamilyTables<$address> for KernelTables<TC> {
            #[inline(always)]
            fn frontend(&self, key: &FrontendKey<$address>) -> Option<Frontend> {
                let mut place = Place::new();
                // SAFETY: entries are immutable, and freed after a grace period; the value is copied out.
                unsafe { $frontends.get(frontend_key(key, &mut place)) }.copied()
            }

            #[inline(always)]
            fn source_allowed(&self, service: u32, client: $address) -> bool {
                let key = Key::new($bits, SourceKey { service_be: service.to_be(), client });
                $sources.get(&key).is_some()
            }

            #[inline(always)]
            fn with_flow<R>(
                &self,
                table: FlowTable,
                key: &Tuple<$address>,
                change: impl FnOnce(&mut Flow<$address>) -> R,
            ) -> Option<R> {
                let mut place = Place::new();
                // SAFETY: the key itself, or as many words that say the same.
                let key = unsafe { &*flow_key(key, &mut place) };
                let flow = <$address>::map(table).get_ptr_mut(key)?;
                // SAFETY: the kernel checked the pointer. Other CPUs may write the entry at the same time, and an
                // evicted one may be given to another key: every field is one word, and a flow's tuple is compared
                // by whoever depends on it.
                Some(change(unsafe { &mut *flow }))
            }

            #[inline(always)]
            fn insert_flow(
                &self,
                table: FlowTable,
                key: &Tuple<$address>,
                flow: &Flow<$address>,
                fresh: bool,
            ) -> bool {
                let flags = if fresh { BPF_NOEXIST as u64 } else { 0 };
                <$address>::map(table).insert(key, flow, flags).is_ok()
            }

            #[inline(always)]
            fn remove_flow(&self, table: FlowTable, key: &Tuple<$address>) {
                // Another CPU or the LRU may have been first.
                _ = <$address>::map(table).remove(key);
            }

            #[inline(always)]
            fn with_announced<R>(
                &self,
                key: &AnnouncedKey<$address>,
                ask: impl FnOnce(&mut Announced) -> R,
            ) -> Option<R> {
                let entry = $announced.get_ptr_mut(key)?;
                // SAFETY: this CPU's own value, freed after a grace period; the program is not preempted by itself.
                Some(ask(unsafe { &mut *entry }))
            }

            #[inline(always)]
            fn with_fragment<R>(
                &self,
                key: &FragmentKey<$address>,
                read: impl FnOnce(&Fragment<$address>) -> R,
            ) -> Option<R> {
                let fragment = $fragments.get_ptr(key)?;
                // SAFETY: the kernel checked the pointer. An evicted entry may be given to another key: what is read
                // then is another datagram's, whose fragments are as short-lived.
                Some(read(unsafe { &*fragment }))
            }

            #[inline(always)]
            fn remember_fragment(&self, key: &FragmentKey<$address>, fragment: &Fragment<$address>) {
                // What the map has no room for is not remembered, and its later fragments are dropped and counted.
                _ = $fragments.insert(key, fragment, 0);
            }

            #[inline(always)]
            fn target(&self, key: &TargetKey<$address>) -> Option<u32> {
                // SAFETY: entries are immutable, and freed after a grace period; the value is copied out.
                unsafe { $targets.get(key) }.copied()
            }

            #[inline(always)]
            fn route(&self, from: u32, $source: $address, $destination: $address) -> Route {
                let Some(query) = ROUTE.get_ptr_mut(0) else {
                    return Route::Unknown;
                };
                // SAFETY: this CPU's own element, of integers and unions of them; the program is not preempted by
                // itself.
                let $query = unsafe {
                    *query = core::mem::zeroed();
                    &mut *query
                };
                $fill
                self.fib(from, $query)
            }
        }
    };
}

family_tables!(
    V4,
    FRONTENDS4,
    SOURCES4,
    ANNOUNCED4,
    FRAGMENTS4,
    TARGETS4,
    64,
    |query, source, destination| {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = source.0;
        query.__bindgen_anon_4.ipv4_dst = destination.0;
    }
);
family_tables!(
    V6,
    FRONTENDS6,
    SOURCES6,
    ANNOUNCED6,
    FRAGMENTS6,
    TARGETS6,
    160,
    |query, source, destination| {
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = source.0;
        query.__bindgen_anon_4.ipv6_dst = destination.0;
    }
);

impl<const TC: bool> Tables for KernelTables<TC> {
    #[inline(always)]
    fn home(&self) -> Home {
        if TC { Home::Tc } else { Home::Xdp }
    }

    #[inline(always)]
    fn filter(&self, index: u32) -> u64 {
        ADDRESSES.get(index).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<Service> {
        SERVICES.get(index).copied()
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u64> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn member(&self, index: u32) -> Option<u64> {
        MEMBERS.get(index).copied()
    }

    #[inline(always)]
    fn moved(&self, index: u32) -> Moved {
        MOVED.get(index).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_moved(&self, index: u32, word: Moved) {
        if let Some(place) = MOVED.get_ptr_mut(index) {
            // SAFETY: the kernel checked the pointer, and one word is written whole.
            unsafe { place.write(word) };
        }
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<impl Deref<Target = Backend>> {
        BACKENDS.get(id)
    }

    #[inline(always)]
    fn next_hop(&self, id: u32) -> Option<impl Deref<Target = NextHop>> {
        NEXT_HOPS.get(id)
    }

    #[inline(always)]
    fn interface(&self, segment: &Segment) -> u32 {
        // SAFETY: as for `segment`.
        let known = unsafe { INTERFACES.get(segment) };
        known.copied().unwrap_or(segment.ifindex)
    }

    #[inline(always)]
    fn jiffies(&self) -> u64 {
        // SAFETY: takes nothing and gives a number.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn resolve(&self, gateway: &Addr) {
        if TC {
            self.gateway.set(*gateway);
        }
    }

    #[inline(always)]
    fn take(&self, budget: Budget, rate: u32, burst: u32) -> bool {
        let index = match budget {
            Budget::Reject => Bucket::REJECT,
            Budget::Flow => Bucket::FLOW,
            Budget::Fragment => Bucket::FRAGMENT,
            Budget::ReplyFragment => Bucket::REPLY_FRAGMENT,
        };
        let (Some(bucket), Some(settings)) = (BUCKETS.get_ptr_mut(index), SETTINGS.get(0)) else {
            return false;
        };
        // SAFETY: this CPU's own element; the program is not preempted by itself.
        unsafe { &mut *bucket }.take(self.now(), settings.hz, rate, burst)
    }

    #[inline(always)]
    fn count_forwarded(&self, frontend: u32, backend: u32, bytes: u32, new_flow: bool) {
        if let Some(count) = FRONTEND_STATS.get_ptr_mut(frontend) {
            // SAFETY: this CPU's own element.
            unsafe {
                (*count).packets += 1;
                (*count).bytes += u64::from(bytes);
                (*count).new_flows += u64::from(new_flow);
            }
        }
        if let Some(count) = BACKEND_STATS.get_ptr_mut(backend) {
            // SAFETY: this CPU's own element.
            unsafe {
                (*count).packets += 1;
                (*count).new_flows += u64::from(new_flow);
            }
        }
    }

    #[inline(always)]
    fn count_reply(&self, frontend: u32) {
        if let Some(count) = FRONTEND_STATS.get_ptr_mut(frontend) {
            // SAFETY: this CPU's own element.
            unsafe { (*count).replies += 1 };
        }
    }

    #[inline(always)]
    fn count_reason(&self, frontend: u32, reason: Reason) {
        let index = frontend
            .wrapping_mul(Reason::COUNT)
            .wrapping_add(reason as u32);
        if let Some(count) = REASONS.get_ptr_mut(index) {
            // SAFETY: this CPU's own element.
            unsafe { *count += 1 };
        }
    }
}
