//! The interfaces that the programs are on. An interface that is refused or away costs nothing but itself; it is tried
//! again, at once when it comes back. One that a glob or a default route names is an uplink from when it appears until it
//! is gone; a default route that moves on leaves the programs where they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::mode;
use crate::{
    attach::{AttachError, How, Installation, Mode},
    config::Config,
    net::{self, Facts, Link},
    state,
};

const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// By interface name.
#[derive(Default, Debug)]
pub struct Uplinks {
    wanted: BTreeMap<String, Uplink>,
    mode: Option<Mode>,
}

#[derive(Debug)]
struct Uplink {
    /// Of the interface that the programs are on.
    ifindex: Option<u32>,
    shown: state::Interface,
    retry: Instant,
    pause: Duration,
}

impl Uplink {
    fn new(name: &str, now: Instant) -> Self {
        Self {
            ifindex: None,
            shown: state::Interface {
                name: name.to_owned(),
                index: None,
                driver: String::new(),
                mtu: 0,
                attached: state::Attached::Missing,
            },
            retry: now,
            pause: FIRST_PAUSE,
        }
    }
}

impl Uplinks {
    /// Attaches to every interface that is asked for, or to none that had not our program before. One that is unfit as
    /// it is set up stands aside, and is tried again. A node of a cluster may get its network after its pods: where none is
    /// asked for there, the first is waited for.
    ///
    /// # Errors
    /// The first interface that is missing or taken; outside of a cluster, none is asked for.
    pub fn start(
        installation: &mut Installation,
        facts: &Facts,
        config: &Config,
    ) -> Result<Self, AttachError> {
        let (patterns, mode) = (&config.interfaces[..], mode(config));
        let now = Instant::now();
        let before = installation.attached()?;
        let mut names = net::interfaces(facts, patterns);
        if patterns.is_empty() {
            // A default route that is away for a moment is no reason to stop.
            let there = before.iter().filter(|name| link(facts, name).is_some());
            names.extend(there.cloned());
        }
        if names.is_empty() {
            let asked = match patterns {
                [] => "with a default route (`interfaces` names none)".to_owned(),
                _ => patterns.join(", "),
            };
            let none = AttachError::NoInterface(asked);
            if config.kubernetes.is_none() {
                return Err(none);
            }
            tracing::warn!("{none}; waiting for one, not ready until then");
        }
        let mut uplinks = Self {
            wanted: BTreeMap::new(),
            mode: Some(mode),
        };
        let mut attached = Vec::new();
        for name in &names {
            let mut uplink = Uplink::new(name, now);
            match uplink.attach(installation, facts, mode) {
                Ok(()) if !before.contains(name) => attached.push(name),
                Ok(()) => {}
                // Ending would be a crash loop: only a person can mend it, and the others go on.
                Err(error @ AttachError::Unfit { .. }) => {
                    tracing::error!(interface = name, %error, "stands aside; trying again");
                    uplink.retry = now + uplink.pause;
                }
                Err(error) => {
                    for name in attached {
                        installation.release(name)?;
                    }
                    return Err(error);
                }
            }
            uplinks.wanted.insert(name.clone(), uplink);
        }
        for name in before.difference(&names) {
            tracing::info!(interface = name, "no longer ours to serve");
            installation.release(name)?;
        }
        Ok(uplinks)
    }

    /// Takes the programs off every interface.
    pub fn leave(&self, installation: &Installation) -> Result<(), AttachError> {
        let mut names = self.wanted.keys();
        names.try_for_each(|name| installation.release(name))
    }

    /// The config was read again.
    pub fn ask(
        &mut self,
        installation: &mut Installation,
        facts: &Facts,
        patterns: &[String],
        mode: Mode,
    ) {
        if self.mode.replace(mode) != Some(mode) {
            // What was refused in the other mode has no time to wait for.
            let now = Instant::now();
            self.wanted
                .values_mut()
                .for_each(|uplink| uplink.retry = now);
        }
        let names = net::interfaces(facts, patterns);
        if !names.is_empty() || !patterns.is_empty() {
            self.forget(installation, |name| !names.contains(name));
        }
        self.follow(installation, facts, patterns);
    }

    /// The network changed, or a retry is due. True if anything became different.
    pub fn follow(
        &mut self,
        installation: &mut Installation,
        facts: &Facts,
        patterns: &[String],
    ) -> bool {
        let Some(mode) = self.mode else { return false };
        let now = Instant::now();
        let mut changed = false;
        let names = net::interfaces(facts, patterns);
        for name in &names {
            if !self.wanted.contains_key(name) {
                tracing::info!(interface = name, "an uplink from now on");
                self.wanted.insert(name.clone(), Uplink::new(name, now));
            }
        }
        for (name, uplink) in &mut self.wanted {
            let before = uplink.shown.clone();
            match link(facts, name) {
                None => {
                    if uplink.ifindex.take().is_some() && names.contains(name) {
                        tracing::warn!(interface = name, "interface is gone; waiting for it");
                    }
                    uplink.shown.index = None;
                    uplink.shown.attached = state::Attached::Missing;
                    uplink.retry = now;
                    uplink.pause = FIRST_PAUSE;
                }
                Some((index, _)) if uplink.serves(index, mode) => uplink.show(facts),
                Some(_) if uplink.retry > now => {}
                Some(_) => {
                    uplink.retry = now + uplink.pause;
                    uplink.pause = LONGEST_PAUSE.min(uplink.pause * 2);
                    if let Err(error) = uplink.attach(installation, facts, mode) {
                        tracing::error!(interface = name, %error, "not attached; trying again");
                    }
                }
            }
            changed |= uplink.shown != before;
        }
        // After the others: a renamed interface has its programs by its new name by now.
        changed
            | self.forget(installation, |name| {
                link(facts, name).is_none() && !names.contains(name)
            })
    }

    /// Forgets uplinks that nobody waits for; true if there were any.
    fn forget(&mut self, installation: &Installation, is_over: impl Fn(&str) -> bool) -> bool {
        let before = self.wanted.len();
        self.wanted.retain(|name, _| {
            if !is_over(name) {
                return true;
            }
            match installation.release(name) {
                Ok(()) => tracing::info!(interface = name, "no longer ours to serve"),
                Err(error) => tracing::error!(interface = name, %error, "stays attached"),
            }
            false
        });
        self.wanted.len() < before
    }

    /// When an interface is to be tried again.
    pub fn retry(&self) -> Option<Instant> {
        let refused =
            |uplink: &&Uplink| matches!(uplink.shown.attached, state::Attached::Refused { .. });
        self.wanted
            .values()
            .filter(refused)
            .map(|uplink| uplink.retry)
            .min()
    }

    /// Indexes of the interfaces that have the programs.
    pub fn indexes(&self) -> BTreeSet<u32> {
        let uplinks = self.wanted.values();
        uplinks.filter_map(|uplink| uplink.ifindex).collect()
    }

    /// Indexes of the interfaces that a start would attach to.
    pub fn expected(facts: &Facts, patterns: &[String]) -> BTreeSet<u32> {
        let names = net::interfaces(facts, patterns);
        let links = names.iter().filter_map(|name| link(facts, name));
        links.map(|(index, _)| index).collect()
    }

    pub fn report(&self) -> Vec<state::Interface> {
        self.wanted
            .values()
            .map(|uplink| uplink.shown.clone())
            .collect()
    }
}

impl Uplink {
    fn serves(&self, index: u32, mode: Mode) -> bool {
        let as_asked = match self.shown.attached {
            state::Attached::Native => mode == Mode::Native,
            state::Attached::Generic => mode == Mode::Generic,
            _ => false,
        };
        as_asked && self.ifindex == Some(index)
    }

    fn attach(
        &mut self,
        installation: &mut Installation,
        facts: &Facts,
        mode: Mode,
    ) -> Result<(), AttachError> {
        let name = self.shown.name.clone();
        match installation.attach(&name, mode) {
            Ok(attached) => {
                self.ifindex = Some(attached.ifindex);
                self.pause = FIRST_PAUSE;
                self.shown.attached = match attached.mode {
                    Mode::Native => state::Attached::Native,
                    Mode::Generic => state::Attached::Generic,
                };
                self.show(facts);
                let how = match attached.xdp {
                    How::Attached => "attached",
                    How::Replaced => "program replaced",
                };
                tracing::info!(interface = name, mode = ?attached.mode, "{how}");
                Ok(())
            }
            Err(error) => {
                self.ifindex = None;
                self.show(facts);
                self.shown.attached = match error {
                    AttachError::NoInterface(_) => state::Attached::Missing,
                    _ => state::Attached::Refused {
                        why: error.to_string(),
                    },
                };
                Err(error)
            }
        }
    }

    fn show(&mut self, facts: &Facts) {
        let name = &self.shown.name;
        let Some((index, link)) = link(facts, name) else {
            return;
        };
        self.shown.index = Some(index);
        self.shown.mtu = link.mtu;
        self.shown.driver = match link.kind.as_str() {
            "" => net::driver(name),
            kind => kind.to_owned(),
        };
    }
}

fn link<'a>(facts: &'a Facts, name: &str) -> Option<(u32, &'a Link)> {
    facts
        .links
        .iter()
        .find(|(_, link)| link.name == name)
        .map(|(index, link)| (*index, link))
}
