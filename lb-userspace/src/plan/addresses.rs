//! The address filter and the VIPs' own entries, by how many need them.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use lb_common::{
    abi::{Backend, FILTER_WORDS, Frontend, FrontendKey, Mode, filter_bit, leaving_bit},
    bytes::{Addr, Address as _, Be16, V4, V6},
};

use super::Op;

/// Words of `ADDRESSES`.
#[derive(Default, Debug)]
pub(super) struct Filter {
    /// As they are in the map; zeroes are absent.
    words: BTreeMap<u32, u64>,
    /// Addresses behind each bit.
    users: HashMap<Bit, u32>,
}

/// A word's index, and a bit of it.
type Bit = (u32, u64);

impl Filter {
    /// Takes over a map's words; users are added by [`Self::count`].
    pub(super) fn restored(words: BTreeMap<u32, u64>) -> Self {
        Self {
            words: words
                .into_iter()
                .filter(|(index, _)| *index < FILTER_WORDS)
                .collect(),
            users: HashMap::new(),
        }
    }

    /// Adds a user of an address whose bit is set already.
    pub(super) fn count(&mut self, address: IpAddr) {
        self.count_bit(bit(address));
    }

    pub(super) fn add(&mut self, address: IpAddr, ops: &mut Vec<Op>) {
        self.add_bit(bit(address), ops);
    }

    pub(super) fn remove(&mut self, address: IpAddr, ops: &mut Vec<Op>) {
        self.remove_bit(bit(address), ops);
    }

    /// Adds a backend whose bits are set already.
    pub(super) fn count_backend(&mut self, backend: &Backend) {
        answering(backend).for_each(|bit| self.count_bit(bit));
    }

    /// Has packets looked at that a backend may answer with.
    pub(super) fn add_backend(&mut self, backend: &Backend, ops: &mut Vec<Op>) {
        answering(backend).for_each(|bit| self.add_bit(bit, ops));
    }

    pub(super) fn remove_backend(&mut self, backend: &Backend, ops: &mut Vec<Op>) {
        answering(backend).for_each(|bit| self.remove_bit(bit, ops));
    }

    fn count_bit(&mut self, bit: Bit) {
        *self.users.entry(bit).or_default() += 1;
    }

    fn add_bit(&mut self, (index, bit): Bit, ops: &mut Vec<Op>) {
        self.count_bit((index, bit));
        let word = self.words.get(&index).copied().unwrap_or_default();
        self.store(index, word | bit, ops);
    }

    fn remove_bit(&mut self, (index, bit): Bit, ops: &mut Vec<Op>) {
        let Some(users) = self.users.get_mut(&(index, bit)) else {
            return;
        };
        *users -= 1;
        if *users == 0 {
            self.users.remove(&(index, bit));
            let word = self.words.get(&index).copied().unwrap_or_default();
            self.store(index, word & !bit, ops);
        }
    }

    /// Makes the words what the users need.
    pub(super) fn correct(&mut self, ops: &mut Vec<Op>) {
        let mut needed: BTreeMap<u32, u64> = self.words.keys().map(|index| (*index, 0)).collect();
        for (index, bit) in self.users.keys() {
            *needed.entry(*index).or_default() |= bit;
        }
        for (index, word) in needed {
            self.store(index, word, ops);
        }
    }

    fn store(&mut self, index: u32, word: u64, ops: &mut Vec<Op>) {
        let before = if word == 0 {
            self.words.remove(&index)
        } else {
            self.words.insert(index, word)
        };
        if before.unwrap_or_default() != word {
            ops.push(Op::Address { index, word });
        }
    }
}

fn bit(address: IpAddr) -> Bit {
    match address {
        IpAddr::V4(ip) => filter_bit(&V4::from(ip)),
        IpAddr::V6(ip) => filter_bit(&V6::from(ip)),
    }
}

/// Bits by which a backend's answers are known: at `nat` by where they come to, at `local` by where they come from.
fn answering(backend: &Backend) -> impl Iterator<Item = Bit> {
    let leaving = |address: &Addr, port| {
        if address.is_v4() {
            leaving_bit(&V4::from_addr(address), port)
        } else {
            leaving_bit(&V6::from_addr(address), port)
        }
    };
    let local = backend.mode == Mode::Local as u8;
    let nat = (backend.mode == Mode::Nat as u8).then(|| bit(backend.source.to_ip()));
    let any = local.then(|| leaving(&backend.address, Be16::new(0)));
    let port = local.then(|| leaving(&backend.address, backend.port));
    [nat, any, port].into_iter().flatten()
}

/// Key of an entry of `FRONTENDS4` or `FRONTENDS6`: address, port in host order, protocol; 0 and 0 in a VIP's own.
pub(super) type EntryKey = (IpAddr, u16, u8);

pub(super) fn insert_entry((address, port, protocol): EntryKey, value: Frontend) -> Op {
    let port = Be16::new(port);
    match address {
        IpAddr::V4(ip) => Op::InsertFrontend4 {
            key: FrontendKey::new(ip.into(), port, protocol),
            value,
        },
        IpAddr::V6(ip) => Op::InsertFrontend6 {
            key: FrontendKey::new(ip.into(), port, protocol),
            value,
        },
    }
}

pub(super) fn remove_entry((address, port, protocol): EntryKey) -> Op {
    let port = Be16::new(port);
    match address {
        IpAddr::V4(ip) => Op::RemoveFrontend4 {
            key: FrontendKey::new(ip.into(), port, protocol),
        },
        IpAddr::V6(ip) => Op::RemoveFrontend6 {
            key: FrontendKey::new(ip.into(), port, protocol),
        },
    }
}
