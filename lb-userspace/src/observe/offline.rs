//! A node's status from its pins alone, when no agent runs.

use std::{collections::HashSet, fs, io, path::Path, thread, time::Duration};

use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    abi::{Frontend, FrontendKey, Settings, setting_flag},
    bytes::{V4, V6},
};

use super::{
    rates::{LinkCount, link_counts},
    view,
};
use crate::{
    attach::{Clock, Mode, Seen},
    dataplane::{self, Counters, usage},
    lease::Lease,
    net,
    state::{Announced, Announcement, Attached, Bypass},
};

/// Between the two readings that rates come from.
const BETWEEN: Duration = Duration::from_millis(500);

/// Takes half a second.
pub fn status(seen: &Seen) -> io::Result<view::Status> {
    let settings = dataplane::settings(&seen.maps).map_err(io::Error::other)?;
    let term = Term::read(&settings);
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
        bypass: term.bypass.is_some(),
        bypass_reason: term.bypass,
        trial_seconds: term.trial_left.map(|left| left.as_secs()),
        silent_seconds: term.silence.map(|silence| silence.as_secs()),
        interfaces: interfaces.collect(),
        sources: Vec::new(),
        skipped: Vec::new(),
        maps: usage(&seen.maps)?
            .into_iter()
            .map(|map| view::Map {
                name: map.map.to_ascii_lowercase(),
                used: map.used.into(),
                max: map.max.into(),
            })
            .collect(),
        announcements: announcements(seen)?,
    })
}

/// What the settings mean now.
struct Term {
    bypass: Option<Bypass>,
    trial_left: Option<Duration>,
    silence: Option<Duration>,
}

impl Term {
    fn read(settings: &Settings) -> Self {
        let lease = Lease::adopt(settings, settings.hz);
        // Without the right to run a program nobody knows the time; what holds in any case is told.
        let now = Clock::load().and_then(|clock| clock.now()).ok();
        let command = settings.flags & setting_flag::BYPASS != 0;
        Self {
            bypass: if command {
                Some(Bypass::Command)
            } else {
                now.and_then(|now| lease.passes(now))
            },
            trial_left: now.and_then(|now| lease.trial_left(now)),
            silence: now.and_then(|now| lease.silence(now)),
        }
    }
}

/// What the program answers neighbours for.
fn announcements(seen: &Seen) -> io::Result<Vec<Announcement>> {
    let counters = Counters::open(&seen.maps).map_err(io::Error::other)?;
    let held = counters.announced().map_err(io::Error::other)?;
    let name = |ifindex: u32| {
        let mut interfaces = seen.interfaces.iter();
        interfaces.find(|interface| interface.index == Some(ifindex))
    };
    let announcements = held.keys().map(|(ifindex, address)| Announcement {
        interface: name(*ifindex)
            .map(|interface| interface.name.clone())
            .unwrap_or_default(),
        address: *address,
        state: Announced::Announced { claimed_by: None },
        announcements: 0,
    });
    Ok(announcements.collect())
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
