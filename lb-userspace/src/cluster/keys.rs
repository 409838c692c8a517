//! Keys that all nodes have in common: that of the flow hash, and those of tags. An object of the cluster keeps them.

use std::{collections::BTreeMap, fmt};

use lb_common::abi::{Settings, Tunnel};

/// The Secret, in the agents' namespace.
pub const NAME: &str = "millrace-keys";

/// Names within it. Behind the last stands a key's id.
const HASH: &str = "hash";
const CURRENT: &str = "current";
const TAG: &str = "tag-";

/// Id of the first key that a cluster has.
const FIRST: u8 = 0;

/// What the Secret says. Whoever has it can send to any backend behind a VIP, by any client's address.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Of the flow hash.
    pub hash: [u64; 2],
    /// Key `id` at `id & 1`, with the id.
    tags: [Option<(u8, [u64; 2])>; 2],
    /// Id of the key that packets are tagged with.
    pub current: u8,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.tags.iter().flatten().map(|(id, _)| id).collect();
        write!(f, "Keys(tags {ids:?}, current {})", self.current)
    }
}

impl Keys {
    /// Of random keys.
    pub fn new(hash: [u64; 2], tag: [u64; 2]) -> Self {
        let mut tags = [None; 2];
        tags[usize::from(FIRST & 1)] = Some((FIRST, tag));
        Self {
            hash,
            tags,
            current: FIRST,
        }
    }

    /// From a Secret's `data`.
    ///
    /// # Errors
    /// What is wrong with it, where, and the fix; never a key.
    pub fn read<'a>(data: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Self, String> {
        let mut tags: [Option<(u8, [u64; 2])>; 2] = [None; 2];
        let (mut hash, mut current) = (None, None);
        for (name, value) in data {
            if name == HASH {
                hash = Some(key(name, value)?);
            } else if name == CURRENT {
                let id = std::str::from_utf8(value).ok().map(str::trim);
                current = Some(id.and_then(|id| id.parse().ok()).ok_or_else(|| {
                    format!("{CURRENT}: no id of a key; write a number from 0 to 255")
                })?);
            } else if let Some(id) = name.strip_prefix(TAG) {
                let id: u8 = id.parse().map_err(|_| {
                    format!("{name}: no id of a key behind {TAG}; name it {TAG}0 to {TAG}255")
                })?;
                let place = &mut tags[usize::from(id & 1)];
                if let Some((other, _)) = place {
                    return Err(format!(
                        "{name}: beside {TAG}{other}; two keys at most, one with an even id and one with an odd one"
                    ));
                }
                *place = Some((id, key(name, value)?));
            }
        }
        let hash = hash.ok_or_else(|| format!("{HASH}: missing; write 16 random bytes"))?;
        let current: u8 =
            current.ok_or_else(|| format!("{CURRENT}: missing; write the id of a key"))?;
        let known = tags.iter().flatten().any(|(id, _)| *id == current);
        known
            .then_some(Self {
                hash,
                tags,
                current,
            })
            .ok_or_else(|| {
                format!("{CURRENT}: there is no {TAG}{current}; add it, or name another key")
            })
    }

    /// As [`Self::read`] takes them.
    pub fn data(&self) -> BTreeMap<String, Vec<u8>> {
        let tags = self.tags.iter().flatten();
        let tags = tags.map(|(id, key)| (format!("{TAG}{id}"), bytes(*key)));
        tags.chain([
            (HASH.to_owned(), bytes(self.hash)),
            (CURRENT.to_owned(), self.current.to_string().into_bytes()),
        ])
        .collect()
    }

    /// Those that maps have, if any.
    pub fn of(settings: &Settings) -> Option<Self> {
        if settings.tunnel == 0 {
            return None;
        }
        let current = Tunnel(settings.tunnel).key();
        let mut tags = [None; 2];
        for (at, tag) in tags.iter_mut().enumerate() {
            let id = (settings.tag_ids >> (16 * at)) as u8;
            let accepted = Tunnel::accepts(settings.tag_ids, id) && usize::from(id & 1) == at;
            *tag = accepted.then_some((id, settings.tag_keys[at]));
        }
        let known = tags.iter().flatten().any(|(id, _)| *id == current);
        known.then_some(Self {
            hash: settings.hash_key,
            tags,
            current,
        })
    }

    /// Writes the tags' keys.
    pub fn write(&self, settings: &mut Settings) {
        let ids: Vec<u8> = self.tags.iter().flatten().map(|(id, _)| *id).collect();
        settings.tag_ids = Tunnel::accepted(&ids);
        settings.tag_keys = self.tags.map(|tag| tag.map_or([0; 2], |(_, key)| key));
    }
}

/// Big-endian, as `clusterKey` is written.
fn key(name: &str, value: &[u8]) -> Result<[u64; 2], String> {
    let bytes: [u8; 16] = value.try_into().map_err(|_| {
        format!(
            "{name}: {} bytes, and a key has 16; write `head -c 16 /dev/urandom | base64`",
            value.len()
        )
    })?;
    let number = u128::from_be_bytes(bytes);
    if number == 0 {
        return Err(format!(
            "{name}: all zero; write `head -c 16 /dev/urandom | base64`"
        ));
    }
    Ok([(number >> 64) as u64, number as u64])
}

fn bytes([high, low]: [u64; 2]) -> Vec<u8> {
    let number = u128::from(high) << 64 | u128::from(low);
    number.to_be_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &[(&str, &[u8])]) -> Result<Keys, String> {
        Keys::read(data.iter().copied())
    }

    #[test]
    fn keys_come_back_from_a_secret_and_from_maps() {
        let (one, other): (&[u8], &[u8]) = (&[1; 16], &[2; 16]);
        let keys = read(&[
            ("hash", one),
            ("tag-6", one),
            ("tag-7", other),
            ("current", b"7\n"),
            ("else", b"of no concern"),
        ])
        .unwrap();
        assert_eq!(keys.current, 7);
        let data = keys.data();
        let again = Keys::read(
            data.iter()
                .map(|(name, value)| (name.as_str(), value.as_slice())),
        );
        assert_eq!(again.as_ref(), Ok(&keys));

        let mut settings = Settings {
            hash_key: keys.hash,
            tunnel: Tunnel::new(lb_common::bytes::Be16::new(16_081), 7).0,
            ..Settings::default()
        };
        keys.write(&mut settings);
        assert!(Tunnel::accepts(settings.tag_ids, 6) && Tunnel::accepts(settings.tag_ids, 7));
        assert_eq!(settings.tag_keys[1], [0x0202_0202_0202_0202; 2]);
        assert_eq!(Keys::of(&settings), Some(keys));
        assert_eq!(Keys::of(&Settings::default()), None);

        let made = Keys::new([1, 2], [3, 4]);
        let data = made.data();
        let read = Keys::read(
            data.iter()
                .map(|(name, value)| (name.as_str(), value.as_slice())),
        );
        assert_eq!(read, Ok(made));
    }

    #[test]
    fn a_faulty_secret_is_refused_with_the_fix_and_without_its_keys() {
        let key: &[u8] = &[b'k'; 16];
        let good = [("hash", key), ("tag-4", key), ("current", b"4" as &[u8])];
        read(&good).unwrap();
        for (name, value, told) in [
            ("hash", &key[1..], "hash: 15 bytes"),
            ("hash", &[0; 16], "hash: all zero"),
            ("tag-4", b"", "tag-4: 0 bytes"),
            ("current", b"5", "current: there is no tag-5"),
            ("current", b"256", "current: no id"),
            ("tag-x", key, "tag-x: no id"),
            ("tag-6", key, "tag-6: beside tag-4"),
        ] {
            let mut data: BTreeMap<&str, &[u8]> = good.into();
            data.insert(name, value);
            let error = Keys::read(data).unwrap_err();
            assert!(error.contains(told) && error.contains(';'), "{error}");
            assert!(!error.contains("kkk"), "{error}");
        }
        for name in ["hash", "current"] {
            let data = good.into_iter().filter(|(other, _)| *other != name);
            let error = Keys::read(data).unwrap_err();
            assert!(error.starts_with(&format!("{name}: missing")), "{error}");
        }
        assert!(!format!("{:?}", Keys::new([7; 2], [7; 2])).contains("7, 7"));
    }
}
