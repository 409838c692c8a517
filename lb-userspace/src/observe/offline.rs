//! A node's status from its pins alone, when no agent runs.

use std::{collections::HashSet, fs, io, path::Path, thread, time::Duration};

use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    abi::{Frontend, FrontendKey, setting_flag},
    bytes::{V4, V6},
};

use super::{
    rates::{LinkCount, link_counts},
    read, view,
};
use crate::{
    attach::{Mode, Seen},
    dataplane::usage,
    net,
    state::Attached,
};

/// Between the two readings that rates come from.
const BETWEEN: Duration = Duration::from_millis(500);

/// Takes half a second.
pub fn status(seen: &Seen) -> io::Result<view::Status> {
    let settings = read::settings(&seen.maps).map_err(io::Error::other)?;
    let vips = vips(&seen.maps)?;
    let read = || fs::read_to_string("/proc/thread-self/net/dev").map(|text| link_counts(&text));
    let before = read()?;
    thread::sleep(BETWEEN);
    let after = read()?;
    let interfaces = seen.interfaces.iter().map(|interface| {
        let rate = |count: fn(&LinkCount) -> u64| {
            let of = |counts: &std::collections::HashMap<String, LinkCount>| {
                counts.get(&interface.name).map_or(0, count)
            };
            of(&after).saturating_sub(of(&before)) as f64 / BETWEEN.as_secs_f64()
        };
        view::Interface {
            name: interface.name.clone(),
            driver: net::driver(&interface.name),
            mtu: interface.mtu,
            attached: match interface.mode {
                Some(Mode::Native) => Attached::Native,
                Some(Mode::Generic) => Attached::Generic,
                None => Attached::Missing,
            },
            vips,
            rx_per_second: rate(|count| count.received),
            tx_per_second: rate(|count| count.sent),
            dropped_per_second: rate(|count| count.dropped),
        }
    });
    Ok(view::Status {
        node: kernel_says("hostname")?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi: seen.abi,
        kernel: kernel_says("osrelease")?,
        up_seconds: None,
        bypass: settings.flags & setting_flag::BYPASS != 0,
        interfaces: interfaces.collect(),
        sources: Vec::new(),
        maps: usage(&seen.maps)?
            .into_iter()
            .map(|map| view::Map {
                name: map.map.to_ascii_lowercase(),
                used: map.used.into(),
                max: map.max.into(),
            })
            .collect(),
    })
}

fn kernel_says(what: &str) -> io::Result<String> {
    let text = fs::read_to_string(Path::new("/proc/sys/kernel").join(what))?;
    Ok(text.trim().to_owned())
}

/// Addresses that have a frontend.
fn vips(maps: &Path) -> io::Result<usize> {
    let open = |name: &str| {
        MapData::from_pin(maps.join(name))
            .and_then(Map::from_map_data)
            .map_err(io::Error::other)
    };
    let v4: HashMap<_, FrontendKey<V4>, Frontend> =
        open("FRONTENDS4")?.try_into().map_err(io::Error::other)?;
    let v6: HashMap<_, FrontendKey<V6>, Frontend> =
        open("FRONTENDS6")?.try_into().map_err(io::Error::other)?;
    let v4: HashSet<_> = v4.keys().flatten().map(|key| key.address).collect();
    let v6: HashSet<_> = v6.keys().flatten().map(|key| key.address).collect();
    Ok(v4.len() + v6.len())
}
