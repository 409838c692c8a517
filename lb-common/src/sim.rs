//! Frames and tables in memory: the host's home of the pipeline.
#![expect(unsafe_code, reason = "headers are copied from and to bytes")]

use core::ops::Deref;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    vec::Vec,
};

use crate::{
    abi::{
        Announced, AnnouncedKey, Backend, BackendCount, Flow, Fragment, FragmentKey, Frontend,
        FrontendCount, FrontendKey, Moved, NextHop, Reason, Segment, Service, TargetKey, Tuple,
        filter_bit,
    },
    bytes::{Addr, Address, V4, V6},
    checksum::{self, Delta},
    packet::{Header, Packet},
    pipeline::Step,
    tables::{Budget, FamilyTables, FlowTable, Home, Route, Tables},
};

/// A frame in a vector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub ingress: u32,
}

impl Packet for Frame {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn read<H: Header>(&self, offset: u32) -> Option<H> {
        let offset = offset as usize;
        let bytes = self
            .bytes
            .get(offset..offset.checked_add(size_of::<H>())?)?;
        // SAFETY: `bytes` has the size of H, and a `Header` is valid for any bytes.
        Some(unsafe { bytes.as_ptr().cast::<H>().read_unaligned() })
    }

    fn write<H: Header>(&mut self, offset: u32, header: &H) -> bool {
        let offset = offset as usize;
        let Some(bytes) = self.bytes.get_mut(offset..offset + size_of::<H>()) else {
            return false;
        };
        // SAFETY: `bytes` has the size of H.
        unsafe { bytes.as_mut_ptr().cast::<H>().write_unaligned(*header) };
        true
    }

    fn stripped(&self) -> u32 {
        0
    }

    fn resize_link(&mut self, from: u32, to: u32) -> bool {
        let to = core::iter::repeat_n(0, to as usize);
        self.bytes.splice(..from as usize, to);
        true
    }

    fn open(&mut self, link: u32, room: u32, _outer_v6: bool) -> bool {
        let at = link as usize;
        self.bytes
            .splice(at..at, core::iter::repeat_n(0, room as usize));
        true
    }

    fn close(&mut self, link: u32, room: u32) -> bool {
        if link + room > self.length() {
            return false;
        }
        self.bytes.drain(link as usize..(link + room) as usize);
        true
    }

    fn cut(&mut self, length: u32) -> bool {
        if length > self.length() {
            return false;
        }
        self.bytes.truncate(length as usize);
        true
    }

    fn patch_l4(&mut self, offset: u32, udp: bool, addresses: Delta, ports: Delta) -> bool {
        let Some(check) = self.read::<u16>(offset) else {
            return false;
        };
        self.write(offset, &checksum::patch_l4(check, udp, addresses, ports))
    }
}

/// Tables of one family.
#[derive(Clone, Debug)]
pub struct Family<A: Address + core::hash::Hash> {
    pub frontends: HashMap<FrontendKey<A>, Frontend>,
    /// (service, network, prefix length in bits).
    pub sources: Vec<(u32, A, u32)>,
    pub established: RefCell<HashMap<Tuple<A>, Flow<A>>>,
    pub half_open: RefCell<HashMap<Tuple<A>, Flow<A>>>,
    pub announced: RefCell<HashMap<AnnouncedKey<A>, Announced>>,
    pub fragments: RefCell<HashMap<FragmentKey<A>, Fragment<A>>>,
    pub targets: HashMap<TargetKey<A>, u32>,
    /// Network, prefix length in bits and answer of the routing table; the first that matches counts, and an address
    /// that none does is [`Route::Unknown`].
    pub routes: Vec<(A, u32, Route)>,
}

impl<A: Address + core::hash::Hash> Default for Family<A> {
    fn default() -> Self {
        Self {
            frontends: HashMap::new(),
            sources: Vec::new(),
            established: RefCell::default(),
            half_open: RefCell::default(),
            announced: RefCell::default(),
            fragments: RefCell::default(),
            targets: HashMap::new(),
            routes: Vec::new(),
        }
    }
}

impl<A: Address + core::hash::Hash> Family<A> {
    fn flows(&self, table: FlowTable) -> &RefCell<HashMap<Tuple<A>, Flow<A>>> {
        match table {
            FlowTable::Established => &self.established,
            FlowTable::HalfOpen => &self.half_open,
        }
    }
}

/// All tables, with everything the pipeline did to them. Flow tables do not evict.
#[derive(Clone, Default, Debug)]
pub struct World {
    pub v4: Family<V4>,
    pub v6: Family<V6>,
    pub filter: HashMap<u32, u64>,
    pub services: HashMap<u32, Service>,
    pub slots: HashMap<u32, u64>,
    pub members: HashMap<u32, u64>,
    pub moved: RefCell<HashMap<u32, Moved>>,
    pub backends: HashMap<u32, Backend>,
    pub next_hops: HashMap<u32, NextHop>,
    /// The stack's interfaces, where they are others than the devices.
    pub interfaces: HashMap<Segment, u32>,
    /// Jiffies.
    pub now: u64,
    /// Runs as the tc program does, not as the XDP program.
    pub at_tc: bool,
    /// Tokens left, by budget; a rate refills nothing while `now` stands still.
    pub reject_tokens: Cell<u32>,
    pub flow_tokens: Cell<u32>,
    pub fragment_tokens: Cell<u32>,
    pub forwarded: RefCell<BTreeMap<u32, FrontendCount>>,
    pub backend_counts: RefCell<BTreeMap<u32, BackendCount>>,
    pub reasons: RefCell<BTreeMap<(u32, Reason), u64>>,
    /// The gateway that the tc home's last packet is to be sent to.
    pub gateway: Cell<Addr>,
    pub steps: RefCell<Vec<Step>>,
}

impl World {
    /// Sets the filter's bit for an address whose packets are to be looked at.
    pub fn admit(&mut self, address: &Addr) {
        let (word, bit) = if address.is_v4() {
            filter_bit(&V4::from_addr(address))
        } else {
            filter_bit(&V6::from_addr(address))
        };
        *self.filter.entry(word).or_default() |= bit;
    }
}

/// Whether the first `bits` bits of both addresses are equal.
fn in_prefix<A: Address>(client: A, network: A, bits: u32) -> bool {
    (0..A::WORDS).all(|word| {
        let bits = bits.saturating_sub(word as u32 * 32).min(32);
        let mask = if bits == 0 {
            0
        } else {
            u32::MAX << (32 - bits)
        };
        (u32::from_be(client.word(word)) ^ u32::from_be(network.word(word))) & mask == 0
    })
}

macro_rules! family_tables {
    ($address:ty, $field:ident) => {
        impl FamilyTables<$address> for World {
            fn frontend(&self, key: &FrontendKey<$address>) -> Option<Frontend> {
                self.$field.frontends.get(key).copied()
            }

            fn source_allowed(&self, service: u32, client: $address) -> bool {
                self.$field
                    .sources
                    .iter()
                    .any(|(of, network, bits)| *of == service && in_prefix(client, *network, *bits))
            }

            fn with_flow<R>(
                &self,
                table: FlowTable,
                key: &Tuple<$address>,
                change: impl FnOnce(&mut Flow<$address>) -> R,
            ) -> Option<R> {
                self.$field
                    .flows(table)
                    .borrow_mut()
                    .get_mut(key)
                    .map(change)
            }

            fn insert_flow(
                &self,
                table: FlowTable,
                key: &Tuple<$address>,
                flow: &Flow<$address>,
                fresh: bool,
            ) -> bool {
                let mut flows = self.$field.flows(table).borrow_mut();
                if fresh && flows.contains_key(key) {
                    return false;
                }
                flows.insert(*key, *flow);
                true
            }

            fn remove_flow(&self, table: FlowTable, key: &Tuple<$address>) {
                self.$field.flows(table).borrow_mut().remove(key);
            }

            fn with_announced<R>(
                &self,
                key: &AnnouncedKey<$address>,
                ask: impl FnOnce(&mut Announced) -> R,
            ) -> Option<R> {
                self.$field.announced.borrow_mut().get_mut(key).map(ask)
            }

            fn with_fragment<R>(
                &self,
                key: &FragmentKey<$address>,
                read: impl FnOnce(&Fragment<$address>) -> R,
            ) -> Option<R> {
                self.$field.fragments.borrow().get(key).map(read)
            }

            fn remember_fragment(
                &self,
                key: &FragmentKey<$address>,
                fragment: &Fragment<$address>,
            ) {
                self.$field.fragments.borrow_mut().insert(*key, *fragment);
            }

            fn target(&self, key: &TargetKey<$address>) -> Option<u32> {
                self.$field.targets.get(key).copied()
            }

            fn route(&self, _from: u32, _source: $address, destination: $address) -> Route {
                self.$field
                    .routes
                    .iter()
                    .find(|(network, bits, _)| in_prefix(destination, *network, *bits))
                    .map_or(Route::Unknown, |(_, _, route)| *route)
            }
        }
    };
}

family_tables!(V4, v4);
family_tables!(V6, v6);

impl Tables for World {
    fn home(&self) -> Home {
        if self.at_tc { Home::Tc } else { Home::Xdp }
    }

    fn filter(&self, index: u32) -> u64 {
        self.filter.get(&index).copied().unwrap_or(0)
    }

    fn service(&self, index: u32) -> Option<Service> {
        self.services.get(&index).copied()
    }

    fn slot(&self, index: u32) -> Option<u64> {
        self.slots.get(&index).copied()
    }

    fn member(&self, index: u32) -> Option<u64> {
        self.members.get(&index).copied()
    }

    fn moved(&self, index: u32) -> Moved {
        let moved = self.moved.borrow();
        moved.get(&index).copied().unwrap_or_default()
    }

    fn set_moved(&self, index: u32, word: Moved) {
        self.moved.borrow_mut().insert(index, word);
    }

    fn backend(&self, id: u32) -> Option<impl Deref<Target = Backend>> {
        self.backends.get(&id)
    }

    fn next_hop(&self, id: u32) -> Option<impl Deref<Target = NextHop>> {
        self.next_hops.get(&id)
    }

    fn interface(&self, segment: &Segment) -> u32 {
        let known = self.interfaces.get(segment);
        known.copied().unwrap_or(segment.ifindex)
    }

    fn jiffies(&self) -> u64 {
        self.now
    }

    fn resolve(&self, gateway: &Addr) {
        self.gateway.set(*gateway);
    }

    fn take(&self, budget: Budget, _rate: u32, _burst: u32) -> bool {
        let tokens = match budget {
            Budget::Reject => &self.reject_tokens,
            Budget::Flow => &self.flow_tokens,
            Budget::Fragment | Budget::ReplyFragment => &self.fragment_tokens,
        };
        let left = tokens.get();
        tokens.set(left.saturating_sub(1));
        left != 0
    }

    fn count_forwarded(&self, frontend: u32, backend: u32, bytes: u32, new_flow: bool) {
        let mut counts = self.forwarded.borrow_mut();
        let count = counts.entry(frontend).or_default();
        count.packets += 1;
        count.bytes += u64::from(bytes);
        count.new_flows += u64::from(new_flow);
        let mut counts = self.backend_counts.borrow_mut();
        let count = counts.entry(backend).or_default();
        count.packets += 1;
        count.new_flows += u64::from(new_flow);
    }

    fn count_reply(&self, frontend: u32) {
        self.forwarded
            .borrow_mut()
            .entry(frontend)
            .or_default()
            .replies += 1;
    }

    fn count_reason(&self, frontend: u32, reason: Reason) {
        *self
            .reasons
            .borrow_mut()
            .entry((frontend, reason))
            .or_default() += 1;
        self.trace(Step::End(reason));
    }

    fn trace(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }
}
