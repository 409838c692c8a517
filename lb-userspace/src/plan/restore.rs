//! From what the maps hold to a planner that goes on from there.
//!
//! Groups are known again by their frontends, backends by address, port and mode; ids, ordinals, regions and slots stay
//! as they are. What nothing wants any more is kept apart and goes with the first ops.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::{
    abi::{Backend, FrontendKey, Mode, NO_OWNER, NextHop, Region, SourceKey, backend_state, owner},
    bytes::{Address, V4, V6},
};

use super::{
    Dump, DumpedService, Limits, Op, Planner,
    addresses::{EntryKey, Filter, remove_entry},
    ids::Ids,
    limits::NEXT_HOPS,
    listing::{Listed, entry_key},
    placed::{Member, MemberKey, Placed, Table},
    sources::source,
    targets::{self, TargetName, targets},
};
use crate::{
    config::{Frontend, Protocol, ServiceName},
    desired::Desired,
};

/// What a dump held and nothing wants.
#[derive(Default, Debug)]
pub(super) struct Orphans {
    /// There may be some.
    pending: bool,
    placed: Vec<Placed>,
    entries: Vec<EntryKey>,
    sources: Vec<(u32, IpNet)>,
    targets: Vec<TargetName>,
    /// Ids that no service names and that are not down: an agent that ended between the two left them so, and UDP flows
    /// would stay with them (contract A7.3).
    backends: Vec<u32>,
    /// Regions that no agent of ours gave out, taken from the services that name them.
    regions: Vec<Op>,
}

impl Planner {
    /// A planner for maps with these contents, of which `desired` is wanted next: what both have stays as it is.
    pub fn restore(limits: Limits, cluster_key: [u64; 2], dump: Dump, desired: &Desired) -> Self {
        let mut planner = Self::new(limits, cluster_key);
        let Dump {
            settings,
            addresses,
            frontends4,
            frontends6,
            mut services,
            backends,
            next_hops,
            sources4,
            sources6,
            targets4,
            targets6,
            devices,
            segments,
            announced,
        } = dump;
        let entries = entries(&frontends4, &frontends6);
        if !(services.is_empty() && backends.is_empty() && entries.is_empty()) {
            planner.pools.unsettle();
        }
        planner.orphans.pending = true;
        planner.settings = Some(settings);
        planner.devices = devices;
        planner.segments = segments;
        planner.filter = Filter::restored(addresses);
        planner.restore_announced(announced);
        planner.restore_elements(&backends);

        let mut adoption = Adoption {
            backends: &backends,
            next_hops: &next_hops,
            ids: BTreeSet::new(),
            hops: BTreeSet::new(),
            frontends: BTreeMap::new(),
            sources: sources(&sources4, &sources6),
            targets: targets(&targets4, &targets6),
        };
        let (mut vips, mut ids) = (BTreeSet::new(), BTreeSet::from([0]));
        for (key, value) in &entries {
            let good = |id| id < limits.frontend_ids();
            if let Some(frontend) = frontend(*key)
                && good(value.id)
                && ids.insert(value.id)
            {
                let of_index = adoption.frontends.entry(value.service).or_default();
                of_index.insert(frontend);
            } else if *key == (key.0, 0, 0) {
                vips.insert(key.0);
            } else {
                planner.orphans.entries.push(*key);
            }
        }
        let indexes: BTreeSet<u32> = services.keys().copied().collect();
        for (name, index) in homes(&entries, &indexes, desired) {
            if let Some(dumped) = services.remove(&index) {
                let placed = planner.adopt(index, dumped, &mut adoption);
                planner.services.entry(name).or_default().push(placed);
            }
        }
        for (index, dumped) in services {
            let placed = planner.adopt(index, dumped, &mut adoption);
            planner.orphans.placed.push(placed);
        }
        // Entries and ranges that name an index without a service.
        let strays = adoption.frontends.values().flatten().map(entry_key);
        planner.orphans.entries.extend(strays);
        for (index, nets) in &adoption.sources {
            let strays = nets.iter().map(|net| (*index, *net));
            planner.orphans.sources.extend(strays);
        }
        planner.orphans.targets = adoption.targets.keys().copied().collect();
        let left = |(id, value): &(&u32, &Backend)| {
            value.state != backend_state::DOWN && !adoption.ids.contains(id)
        };
        let left = backends.range(..limits.backend_ids()).filter(left);
        planner.orphans.backends = left.map(|(id, _)| *id).collect();
        planner.restore_frontends(&entries, &vips);
        planner.restore_ids(&adoption, &indexes);
        planner
    }

    /// Ops that rid the maps of what a dump held and nothing wants; once.
    pub fn sweep(&mut self, ops: &mut Vec<Op>) {
        if !std::mem::take(&mut self.orphans.pending) {
            return;
        }
        let orphans = std::mem::take(&mut self.orphans);
        ops.extend(orphans.regions);
        for placed in orphans.placed {
            self.remove(placed, ops);
        }
        for id in orphans.backends {
            let element = &mut self.elements[id as usize];
            (element.next_hop, element.state) = (0, backend_state::DOWN);
            ops.push(Op::BackendLink {
                id,
                next_hop: 0,
                state: backend_state::DOWN,
            });
        }
        for key in orphans.entries {
            ops.push(remove_entry(key));
            self.pools.frontend_removed(key);
        }
        for (index, net) in orphans.sources {
            ops.push(source(index, net, false));
            self.pools.source_removed();
        }
        for name in orphans.targets {
            ops.push(targets::remove(name));
        }
        self.filter.correct(ops);
    }

    fn restore_elements(&mut self, backends: &BTreeMap<u32, Backend>) {
        let end = self.limits.backend_ids();
        let last = backends.keys().copied().filter(|id| *id < end).max();
        self.elements = vec![Backend::default(); last.map_or(0, |last| last as usize + 1)];
        for (id, value) in backends.range(..end) {
            self.elements[*id as usize] = *value;
            self.filter.count_backend(value);
        }
    }

    fn adopt(&mut self, index: u32, dumped: DumpedService, adoption: &mut Adoption<'_>) -> Placed {
        let mut value = dumped.value;
        let (table, members) = (Region(value.table), Region(value.members));
        // Regions that overlap others are not ours to read or free.
        let whole = |region: Region, words: &[u64]| words.len() == region.size() as usize;
        let slots_hold = !table.is_empty()
            && whole(table, &dumped.slots)
            && self.pools.slots.reserve(table.base(), table.log2());
        if !slots_hold {
            value.table = Region::EMPTY.0;
            if !table.is_empty() {
                self.orphans.regions.push(Op::Table {
                    service: index,
                    table: value.table,
                });
            }
        }
        let members_hold = !members.is_empty()
            && whole(members, &dumped.members)
            && self.pools.members.reserve(members.base(), members.log2());
        if !members_hold {
            value.members = Region::EMPTY.0;
            if !members.is_empty() {
                self.orphans.regions.push(Op::MemberRegion {
                    service: index,
                    members: value.members,
                });
            }
        }
        let slots = if slots_hold { dumped.slots } else { Vec::new() };
        let words: &[u64] = if members_hold { &dumped.members } else { &[] };
        let owning: BTreeSet<u16> = slots.iter().map(|slot| owner(*slot, 0)).collect();

        let mut found = Vec::new();
        for (ordinal, word) in (0..NO_OWNER).zip(words).filter(|(_, word)| **word != 0) {
            let id = *word as u32;
            // Who was never written is as nobody; the word goes with the first grace period.
            let value = adoption.backends.get(&id).copied().unwrap_or_default();
            found.push((ordinal, id, value));
        }
        // A backend may be named twice, by the place that it left last: the one with slots is meant.
        found.sort_by_key(|(ordinal, _, value)| {
            (
                !owning.contains(ordinal),
                value.state == backend_state::DOWN,
                *ordinal,
            )
        });
        let mut keys = BTreeSet::new();
        let mut placed_members = BTreeMap::new();
        for (ordinal, id, value) in found {
            let key = member_key(&value);
            let unknown = value.generation == 0 || id >= self.limits.backend_ids();
            if unknown || adoption.ids.contains(&id) || !keys.insert(key) {
                self.pools
                    .stale
                    .insert(members.base() + u32::from(ordinal), id);
                continue;
            }
            adoption.ids.insert(id);
            let hop = adoption.next_hops.get(&value.next_hop);
            let hop = hop.and_then(|hop| self.next_hops.restore(value.next_hop, hop));
            let target = (index, key.0, key.1);
            let named = adoption.targets.get(&target) == Some(&id);
            if named {
                adoption.targets.remove(&target);
            }
            if (1..NEXT_HOPS).contains(&value.next_hop) {
                adoption.hops.insert(value.next_hop);
            }
            placed_members.insert(
                ordinal,
                Member {
                    key,
                    id,
                    value,
                    hop,
                    named,
                },
            );
        }
        let nets = adoption.sources.remove(&index).unwrap_or_default();
        for net in &nets {
            self.sources[usize::from(net.addr().is_ipv4())] += 1;
        }
        Placed {
            index,
            value,
            frontends: adoption.frontends.remove(&index).unwrap_or_default(),
            members: placed_members,
            table: Table {
                built: None,
                slots: Some(slots.into_boxed_slice()),
            },
            sources: nets,
        }
    }

    fn restore_frontends(&mut self, entries: &BTreeMap<EntryKey, Entry>, vips: &BTreeSet<IpAddr>) {
        let adopted = self.services.values().flatten().chain(&self.orphans.placed);
        let adopted: Vec<Frontend> = adopted
            .flat_map(|placed| placed.frontends.iter().copied())
            .collect();
        for frontend in adopted {
            let Some(entry) = entries.get(&entry_key(&frontend)) else {
                continue;
            };
            let owns_address = vips.contains(&frontend.address);
            let listed = Listed {
                index: entry.service,
                id: entry.id,
                owns_address,
            };
            self.frontends.insert(frontend, listed);
            let vip = self.vips.entry(frontend.address).or_default();
            if vip.frontends == 0 {
                self.filter.count(frontend.address);
            }
            vip.frontends += 1;
            vip.owners += u32::from(owns_address);
        }
        let unused = vips
            .iter()
            .filter(|address| !self.vips.contains_key(*address));
        let unused: Vec<_> = unused.map(|address| (*address, 0, 0)).collect();
        self.orphans.entries.extend(unused);
    }

    fn restore_ids(&mut self, adoption: &Adoption<'_>, indexes: &BTreeSet<u32>) {
        fn seen<T>(map: &BTreeMap<u32, T>, end: u32) -> u32 {
            let last = map.keys().next_back().copied();
            last.unwrap_or_default().min(end - 1)
        }
        let (limits, pools) = (self.limits, &mut self.pools);
        let end = limits.backend_ids();
        pools.backends = Ids::restored(end, &adoption.ids, seen(adoption.backends, end));
        let last = seen(adoption.next_hops, NEXT_HOPS);
        pools.next_hops = Ids::restored(NEXT_HOPS, &adoption.hops, last);
        let ids: BTreeSet<u32> = self.frontends.values().map(|listed| listed.id).collect();
        pools.frontends = Ids::restored(limits.frontend_ids(), &ids, 0);
        pools.services = Ids::restored(limits.services(), indexes, 0);
    }
}

/// What the maps held, and what services have taken of it.
struct Adoption<'a> {
    backends: &'a BTreeMap<u32, Backend>,
    next_hops: &'a BTreeMap<u32, NextHop>,
    /// Backends and next hops that members name.
    ids: BTreeSet<u32>,
    hops: BTreeSet<u32>,
    /// By index, those of adopted services taken out.
    frontends: BTreeMap<u32, BTreeSet<Frontend>>,
    sources: BTreeMap<u32, BTreeSet<IpNet>>,
    targets: HashMap<TargetName, u32>,
}

type Entry = lb_common::abi::Frontend;

fn entries(
    v4: &[(FrontendKey<V4>, Entry)],
    v6: &[(FrontendKey<V6>, Entry)],
) -> BTreeMap<EntryKey, Entry> {
    fn entry<A: Address>((key, value): &(FrontendKey<A>, Entry)) -> (EntryKey, Entry) {
        let address = key.address.to_addr().to_ip();
        ((address, key.port.to_host(), key.protocol), *value)
    }
    v4.iter().map(entry).chain(v6.iter().map(entry)).collect()
}

/// In `dsr` the element's address is that of the backend's node.
fn member_key(value: &Backend) -> MemberKey {
    let dsr = value.mode == Mode::Dsr as u8;
    let address = if dsr { value.target } else { value.address };
    (address.to_ip(), value.port.to_host())
}

fn frontend((address, port, protocol): EntryKey) -> Option<Frontend> {
    let protocol = Protocol::from_number(protocol)?;
    (port != 0).then_some(Frontend {
        address,
        port,
        protocol,
    })
}

fn sources(
    v4: &[(SourceKey<V4>, u32)],
    v6: &[(SourceKey<V6>, u32)],
) -> BTreeMap<u32, BTreeSet<IpNet>> {
    fn net<A: Address>((key, bits): &(SourceKey<A>, u32)) -> Option<(u32, IpNet)> {
        let net = IpNet::new(key.client.to_addr().to_ip(), *bits as u8).ok()?;
        Some((u32::from_be(key.service_be), net))
    }
    let mut sources: BTreeMap<u32, BTreeSet<IpNet>> = BTreeMap::new();
    for (index, net) in v4.iter().filter_map(net).chain(v6.iter().filter_map(net)) {
        sources.entry(index).or_default().insert(net);
    }
    sources
}

/// For each group that the maps have the index that most of its frontends name; an index has one group.
fn homes(
    entries: &BTreeMap<EntryKey, Entry>,
    indexes: &BTreeSet<u32>,
    desired: &Desired,
) -> Vec<(ServiceName, u32)> {
    let mut homes = Vec::new();
    let mut free = indexes.clone();
    for (name, service) in &desired.services {
        for group in &service.groups {
            let mut votes: BTreeMap<u32, usize> = BTreeMap::new();
            for one in &group.frontends {
                let entry = entries.get(&entry_key(&one.frontend));
                if let Some(entry) = entry.filter(|entry| free.contains(&entry.service)) {
                    *votes.entry(entry.service).or_default() += 1;
                }
            }
            let most = |(index, votes): &(u32, usize)| (*votes, Reverse(*index));
            if let Some((index, _)) = votes.into_iter().max_by_key(most) {
                free.remove(&index);
                homes.push((name.clone(), index));
            }
        }
    }
    homes
}
