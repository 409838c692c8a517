//! The address filter and the VIPs' own entries, by how many need them.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use lb_common::{
    abi::{FILTER_WORDS, Frontend, FrontendKey, filter_bit},
    bytes::{Be16, V4, V6},
};

use super::Op;

/// Words of `ADDRESSES`.
#[derive(Default, Debug)]
pub(super) struct Filter {
    /// As they are in the map; zeroes are absent.
    words: BTreeMap<u32, u64>,
    /// Addresses behind each bit.
    users: HashMap<(u32, u64), u32>,
}

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
        *self.users.entry(bit(address)).or_default() += 1;
    }

    pub(super) fn add(&mut self, address: IpAddr, ops: &mut Vec<Op>) {
        self.count(address);
        let (index, bit) = bit(address);
        let word = self.words.get(&index).copied().unwrap_or_default();
        self.store(index, word | bit, ops);
    }

    pub(super) fn remove(&mut self, address: IpAddr, ops: &mut Vec<Op>) {
        let (index, bit) = bit(address);
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

fn bit(address: IpAddr) -> (u32, u64) {
    match address {
        IpAddr::V4(ip) => filter_bit(&V4::from(ip)),
        IpAddr::V6(ip) => filter_bit(&V6::from(ip)),
    }
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
