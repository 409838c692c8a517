//! Map contents, read back for a planner that goes on from there.

use std::io;

use aya::{Pod, maps::lpm_trie::Key};
use lb_common::abi::{Backend, NextHop, Region, Service};

use super::{
    Bpf, DumpError,
    bpf::{Entries, SERVICE_BITS, Sources},
    open::io_error,
    window::{Fault, Words},
};
use crate::plan::{Dump, DumpedService};

impl Bpf {
    pub(super) fn read_all(&mut self) -> Result<Dump, DumpError> {
        let mut dump = Dump {
            settings: element(&mut self.settings, 0)?,
            frontends4: entries(&self.frontends4)?,
            frontends6: entries(&self.frontends6)?,
            sources4: sources(&self.sources4)?,
            sources6: sources(&self.sources6)?,
            targets4: entries(&self.targets4)?,
            targets6: entries(&self.targets6)?,
            ..Dump::default()
        };
        for index in 0..self.addresses.elements() {
            let word = load(&mut self.addresses, index, 0)?;
            if word != 0 {
                dump.addresses.insert(index, word);
            }
        }
        for index in 0..self.services.elements() {
            let value: Service = element(&mut self.services, index)?;
            if value != Service::default() {
                let service = DumpedService {
                    value,
                    slots: region(&mut self.slots, Region(value.table))?,
                    members: region(&mut self.members, Region(value.members))?,
                };
                dump.services.insert(index, service);
            }
        }
        for id in 0..self.backends.elements() {
            let value: Backend = element(&mut self.backends, id)?;
            if value.generation != 0 {
                dump.backends.insert(id, value);
            }
        }
        for id in 0..self.next_hops.elements() {
            let value: NextHop = element(&mut self.next_hops, id)?;
            if value.segment.ifindex != 0 {
                dump.next_hops.insert(id, value);
            }
        }
        for ifindex in self.devices.keys() {
            dump.devices
                .insert(ifindex.map_err(|error| failed("DEVICES", io_error(error)))?);
        }
        dump.segments.interfaces = entries(&self.interfaces)?.into_iter().collect();
        dump.segments.below = entries(&self.segments)?.into_iter().collect();
        let announced = self.announced.read()?.into_iter();
        dump.announced = announced.map(|(at, (mac, _))| (at, mac)).collect();
        Ok(dump)
    }
}

pub(super) fn element<T: Pod>(map: &mut Words, index: u32) -> Result<T, DumpError> {
    let name = map.name();
    map.load_element(index).map_err(|fault| fell(name, fault))
}

fn load(map: &mut Words, index: u32, offset: usize) -> Result<u64, DumpError> {
    let name = map.name();
    map.load(index, offset).map_err(|fault| fell(name, fault))
}

/// A region that is not within the map is nothing that we wrote.
fn region(map: &mut Words, region: Region) -> Result<Vec<u64>, DumpError> {
    let end = u64::from(region.base()) + u64::from(region.size());
    if end > u64::from(map.elements()) {
        return Ok(Vec::new());
    }
    (region.base()..end as u32)
        .map(|index| load(map, index, 0))
        .collect()
}

pub(super) fn entries<K: Pod, V: Pod>(map: &Entries<K, V>) -> Result<Vec<(K, V)>, DumpError> {
    map.map
        .iter()
        .map(|entry| entry.map_err(|error| failed(map.name, io_error(error))))
        .collect()
}

pub(super) fn sources<K: Pod>(map: &Sources<K>) -> Result<Vec<(K, u32)>, DumpError> {
    map.map
        .keys()
        .map(|key: Result<Key<K>, _>| {
            let key = key.map_err(|error| failed(map.name, io_error(error)))?;
            Ok((key.data(), key.prefix_len().saturating_sub(SERVICE_BITS)))
        })
        .collect()
}

fn fell(map: &'static str, fault: Fault) -> DumpError {
    let source = match fault {
        Fault::Mapping(source) => source,
        Fault::Outside { index, .. } => io::Error::other(format!("index {index} is outside")),
    };
    failed(map, source)
}

const fn failed(map: &'static str, source: io::Error) -> DumpError {
    DumpError { map, source }
}
