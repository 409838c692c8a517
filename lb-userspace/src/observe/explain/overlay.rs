//! The tables as the pipeline sees them while it is only asked: reads come from the live maps, writes stay in memory.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    ops::Deref,
};

use lb_common::{
    abi::{
        Announced, AnnouncedKey, Backend, Bucket, Flow, Fragment, FragmentKey, Frontend,
        FrontendKey, Moved, NextHop, Reason, Segment, Service, Settings, TargetKey, Tuple,
    },
    bytes::{Addr, Address as _, V4, V6},
    pipeline::Step,
    tables::{Budget, FamilyTables, FlowTable, Home, Route, Tables},
};

use super::{
    live::{self, Live},
    route::Routing,
};

/// Flows written; `None`: removed.
type Written<A> = RefCell<HashMap<(FlowTable, Tuple<A>), Option<Flow<A>>>>;

/// First fragments written.
type Remembered<A> = RefCell<HashMap<FragmentKey<A>, Fragment<A>>>;

/// One packet's view. What it writes is gone with it.
pub(super) struct Overlay<'a> {
    live: &'a Live,
    routing: &'a Routing,
    settings: Settings,
    home: Cell<Home>,
    ingress: u32,
    /// Jiffies.
    now: u64,
    cpu: usize,
    flows4: Written<V4>,
    flows6: Written<V6>,
    fragments4: Remembered<V4>,
    fragments6: Remembered<V6>,
    moved: RefCell<HashMap<u32, Moved>>,
    buckets: [Cell<Option<Bucket>>; Bucket::COUNT as usize],
    gateway: Cell<Option<Addr>>,
    steps: RefCell<Vec<Step>>,
    /// The first look-up that failed: what was decided after it means nothing.
    fault: RefCell<Option<io::Error>>,
}

impl<'a> Overlay<'a> {
    pub(super) fn new(
        live: &'a Live,
        routing: &'a Routing,
        settings: Settings,
        ingress: u32,
        now: u64,
        cpu: usize,
    ) -> Self {
        Self {
            live,
            routing,
            settings,
            home: Cell::new(Home::Xdp),
            ingress,
            now,
            cpu,
            flows4: Written::default(),
            flows6: Written::default(),
            fragments4: Remembered::default(),
            fragments6: Remembered::default(),
            moved: RefCell::default(),
            buckets: Default::default(),
            gateway: Cell::new(None),
            steps: RefCell::default(),
            fault: RefCell::default(),
        }
    }

    /// From here on as the tc program.
    pub(super) fn go_up(&self) {
        self.home.set(Home::Tc);
    }

    /// The steps, unless a map could not be read.
    pub(super) fn finish(self) -> io::Result<Vec<Step>> {
        match self.fault.into_inner() {
            Some(fault) => Err(fault),
            None => Ok(self.steps.into_inner()),
        }
    }

    fn read<T>(&self, value: io::Result<Option<T>>) -> Option<T> {
        value.unwrap_or_else(|error| {
            self.fault.borrow_mut().get_or_insert(error);
            None
        })
    }
}

macro_rules! family_tables {
    ($address:ty, $live:ident, $written:ident, $fragments:ident) => {
        impl FamilyTables<$address> for Overlay<'_> {
            fn frontend(&self, key: &FrontendKey<$address>) -> Option<Frontend> {
                self.read(live::found(self.live.$live.frontends.get(key, 0)))
            }

            fn source_allowed(&self, service: u32, client: $address) -> bool {
                self.read(self.live.$live.source(service, client)).is_some()
            }

            fn with_flow<R>(
                &self,
                table: FlowTable,
                key: &Tuple<$address>,
                change: impl FnOnce(&mut Flow<$address>) -> R,
            ) -> Option<R> {
                let mut written = self.$written.borrow_mut();
                let flow = written
                    .entry((table, *key))
                    .or_insert_with(|| self.read(self.live.$live.flow(table, key)));
                flow.as_mut().map(change)
            }

            fn insert_flow(
                &self,
                table: FlowTable,
                key: &Tuple<$address>,
                flow: &Flow<$address>,
                fresh: bool,
            ) -> bool {
                if fresh && self.with_flow(table, key, |_| ()).is_some() {
                    return false;
                }
                let mut written = self.$written.borrow_mut();
                written.insert((table, *key), Some(*flow));
                true
            }

            fn remove_flow(&self, table: FlowTable, key: &Tuple<$address>) {
                self.$written.borrow_mut().insert((table, *key), None);
            }

            fn with_announced<R>(
                &self,
                key: &AnnouncedKey<$address>,
                ask: impl FnOnce(&mut Announced) -> R,
            ) -> Option<R> {
                let mut entry = self.read(self.live.$live.announced(key))?;
                Some(ask(&mut entry))
            }

            fn with_fragment<R>(
                &self,
                key: &FragmentKey<$address>,
                read: impl FnOnce(&Fragment<$address>) -> R,
            ) -> Option<R> {
                let written = self.$fragments.borrow().get(key).copied();
                written
                    .or_else(|| self.read(self.live.$live.fragment(key)))
                    .as_ref()
                    .map(read)
            }

            fn remember_fragment(
                &self,
                key: &FragmentKey<$address>,
                fragment: &Fragment<$address>,
            ) {
                self.$fragments.borrow_mut().insert(*key, *fragment);
            }

            fn target(&self, key: &TargetKey<$address>) -> Option<u32> {
                self.read(live::found(self.live.$live.targets.get(key, 0)))
            }

            fn route(&self, from: u32, _source: $address, destination: $address) -> Route {
                let destination = destination.to_addr().to_ip();
                self.routing.to(destination, self.ingress, from)
            }
        }
    };
}

family_tables!(V4, v4, flows4, fragments4);
family_tables!(V6, v6, flows6, fragments6);

impl Tables for Overlay<'_> {
    fn home(&self) -> Home {
        self.home.get()
    }

    fn filter(&self, index: u32) -> u64 {
        self.read(live::element(&self.live.addresses, index))
            .unwrap_or(0)
    }

    fn service(&self, index: u32) -> Option<Service> {
        self.read(live::element(&self.live.services, index))
    }

    fn slot(&self, index: u32) -> Option<u64> {
        self.read(live::element(&self.live.slots, index))
    }

    fn member(&self, index: u32) -> Option<u64> {
        self.read(live::element(&self.live.members, index))
    }

    fn moved(&self, index: u32) -> Moved {
        let written = self.moved.borrow().get(&index).copied();
        written
            .or_else(|| self.read(live::element(&self.live.moved, index)).map(Moved))
            .unwrap_or_default()
    }

    fn set_moved(&self, index: u32, word: Moved) {
        self.moved.borrow_mut().insert(index, word);
    }

    fn backend(&self, id: u32) -> Option<impl Deref<Target = Backend>> {
        self.read(live::element(&self.live.backends, id))
            .map(Box::new)
    }

    fn next_hop(&self, id: u32) -> Option<impl Deref<Target = NextHop>> {
        self.read(live::element(&self.live.next_hops, id))
            .map(Box::new)
    }

    fn interface(&self, segment: &Segment) -> u32 {
        self.read(live::found(self.live.interfaces.get(segment, 0)))
            .unwrap_or(segment.ifindex)
    }

    fn jiffies(&self) -> u64 {
        self.now
    }

    fn resolve(&self, gateway: &Addr) {
        self.gateway.set(Some(*gateway));
    }

    fn take(&self, budget: Budget, rate: u32, burst: u32) -> bool {
        let index = match budget {
            Budget::Reject => Bucket::REJECT,
            Budget::Flow => Bucket::FLOW,
            Budget::Fragment => Bucket::FRAGMENT,
            Budget::ReplyFragment => Bucket::REPLY_FRAGMENT,
        };
        let cell = &self.buckets[index as usize];
        let mut bucket = cell.get().unwrap_or_else(|| {
            let live = self.live.bucket(index, self.cpu).map(Some);
            self.read(live).unwrap_or_default()
        });
        let taken = bucket.take(self.now(), self.settings.hz, rate, burst);
        cell.set(Some(bucket));
        taken
    }

    fn count_forwarded(&self, _frontend: u32, _backend: u32, _bytes: u32, _new_flow: bool) {}

    fn count_reply(&self, _frontend: u32) {}

    fn count_reason(&self, _frontend: u32, reason: Reason) {
        self.trace(Step::End(reason));
    }

    fn trace(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }
}
