//! The maps of announced VIPs. The kernel gives each CPU a value of its own: the MAC is the same in all of them, the
//! counters are summed.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use aya::{
    Pod,
    maps::{MapData, MapError, PerCpuHashMap, PerCpuValues},
};
use lb_common::{
    abi::{Announced, AnnouncedKey},
    bytes::{Address, Mac, V4, V6},
};

use super::{
    Cause, DumpError, OpenError,
    bpf::{NEW_ONLY, gone_is_fine, refused},
    open::{self, io_error},
};

/// How often a VIP was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Asked {
    pub requests: u64,
    pub responses: u64,
}

/// By interface index and VIP: the MAC that it is announced with, and how often it was asked for.
pub type AnnouncedVips = BTreeMap<(u32, IpAddr), (Mac, Asked)>;

/// Both maps, for writing and reading.
#[derive(Debug)]
pub struct AnnouncedMaps {
    v4: One<V4>,
    v6: One<V6>,
}

/// The map of one family.
struct One<A>
where
    AnnouncedKey<A>: Pod,
{
    name: &'static str,
    max: u32,
    cpus: usize,
    map: PerCpuHashMap<MapData, AnnouncedKey<A>, Announced>,
}

impl AnnouncedMaps {
    /// `folder` is that of the pinned maps.
    pub(super) fn open(folder: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            v4: One::open(folder, "ANNOUNCED4")?,
            v6: One::open(folder, "ANNOUNCED6")?,
        })
    }

    pub(super) fn insert(&mut self, ifindex: u32, address: IpAddr, mac: Mac) -> Result<(), Cause> {
        match address {
            IpAddr::V4(ip) => self.v4.insert(ifindex, ip.into(), mac),
            IpAddr::V6(ip) => self.v6.insert(ifindex, ip.into(), mac),
        }
    }

    pub(super) fn remove(&mut self, ifindex: u32, address: IpAddr) -> Result<(), Cause> {
        match address {
            IpAddr::V4(ip) => self.v4.remove(ifindex, ip.into()),
            IpAddr::V6(ip) => self.v6.remove(ifindex, ip.into()),
        }
    }

    pub(super) fn read(&self) -> Result<AnnouncedVips, DumpError> {
        let mut all = BTreeMap::new();
        self.v4.read(&mut all)?;
        self.v6.read(&mut all)?;
        Ok(all)
    }
}

impl<A: Address + 'static> One<A>
where
    AnnouncedKey<A>: Pod,
{
    fn open(folder: &Path, name: &'static str) -> Result<Self, OpenError> {
        let (_, info) = open::map(folder, name)?;
        Ok(Self {
            name,
            max: info.max_entries(),
            cpus: aya::util::nr_cpus().map_err(|(_, error)| OpenError::Cpus(error))?,
            map: open::per_cpu_hash(folder, name)?,
        })
    }

    fn insert(&mut self, ifindex: u32, address: A, mac: Mac) -> Result<(), Cause> {
        let key = AnnouncedKey { ifindex, address };
        let value = Announced::new(mac);
        let values =
            PerCpuValues::try_from(vec![value; self.cpus]).map_err(|source| self.failed(source))?;
        let Err(error) = self.map.insert(key, values, NEW_ONLY) else {
            return Ok(());
        };
        let error = io_error(error);
        if error.raw_os_error() != Some(libc::EEXIST) {
            return Err(refused(self.name, self.max, error));
        }
        let found = self.map.get(&key, 0);
        match found {
            Ok(found) if found.iter().all(|found| found.mac == value.mac) => Ok(()),
            _ => Err(Cause::Exists { map: self.name }),
        }
    }

    fn remove(&mut self, ifindex: u32, address: A) -> Result<(), Cause> {
        let key = AnnouncedKey { ifindex, address };
        gone_is_fine(self.name, self.map.remove(&key))
    }

    fn read(&self, all: &mut AnnouncedVips) -> Result<(), DumpError> {
        let failed = |error: MapError| DumpError {
            map: self.name,
            source: io_error(error),
        };
        for entry in &self.map {
            let (key, values) = entry.map_err(failed)?;
            let mut asked = Asked::default();
            for value in values.iter() {
                asked.requests += value.requests;
                asked.responses += value.responses;
            }
            let mac = values.first().map(Announced::mac).unwrap_or_default();
            all.insert((key.ifindex, key.address.to_addr().to_ip()), (mac, asked));
        }
        Ok(())
    }

    const fn failed(&self, source: io::Error) -> Cause {
        Cause::Kernel {
            map: self.name,
            source,
        }
    }
}

impl<A> std::fmt::Debug for One<A>
where
    AnnouncedKey<A>: Pod,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("One")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
