//! The chain for replies whose connection the kernel has forgotten, see [`crate::attach::replies`]: kept after the backends
//! of this node, at a cost in proportion to what changed, and away while everything passes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::SocketAddr,
};

use lb_common::abi::Mode;

use crate::{
    attach::{
        Nft,
        replies::{self, Answering},
    },
    config::ServiceName,
    desired::Service,
};

/// What the chain is to hold, and as far as is known, does.
#[derive(Default, Debug)]
pub struct Replies {
    by_service: HashMap<ServiceName, BTreeSet<Answering>>,
    /// Services behind each.
    users: BTreeMap<Answering, u32>,
    added: BTreeSet<Answering>,
    removed: BTreeSet<Answering>,
    chain: Chain,
    nft: Nft,
    /// The last attempt failed, and that was told.
    told: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Chain {
    /// As another agent left it, or a change failed.
    #[default]
    Unknown,
    Absent,
    Present,
}

impl Replies {
    /// A service changed; None: it is gone.
    pub fn follow(&mut self, name: &ServiceName, service: Option<&Service>) {
        let wanted = service.map(answering).unwrap_or_default();
        let before = self.by_service.remove(name).unwrap_or_default();
        for one in wanted.difference(&before) {
            let users = self.users.entry(*one).or_default();
            *users += 1;
            if *users == 1 && !self.removed.remove(one) {
                self.added.insert(*one);
            }
        }
        for one in before.difference(&wanted) {
            let Some(users) = self.users.get_mut(one) else {
                continue;
            };
            *users -= 1;
            if *users == 0 {
                self.users.remove(one);
                if !self.added.remove(one) {
                    self.removed.insert(*one);
                }
            }
        }
        if !wanted.is_empty() {
            self.by_service.insert(name.clone(), wanted);
        }
    }

    /// Brings the kernel after it, if it is not. `on`: packets are taken at all.
    pub fn keep(&mut self, on: bool) {
        if !self.is_behind(on) {
            return;
        }
        match self.flush(on) {
            Ok(()) => self.told = false,
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(
                        %error,
                        "nftables: replies of connections that the kernel has forgotten may get another source"
                    );
                }
            }
        }
    }

    /// Looks whether somebody has removed the chain, as `nft flush ruleset` does: it is written anew then.
    pub fn look(&mut self) {
        if self.chain == Chain::Present && matches!(replies::are_kept(&mut self.nft), Ok(false)) {
            tracing::warn!("nftables: somebody removed the table inet millrace; it is made again");
            self.chain = Chain::Unknown;
        }
    }

    /// # Errors
    /// The kernel's; the next call begins from nothing.
    fn flush(&mut self, on: bool) -> io::Result<()> {
        let wanted = on && !self.users.is_empty();
        let before = std::mem::take(&mut self.chain);
        match (before, wanted) {
            (Chain::Absent, false) => {}
            (_, false) => drop(replies::remove(&mut self.nft)?),
            (Chain::Present, true) => {
                replies::change(&mut self.nft, &self.added, &self.removed)?;
            }
            (_, true) => {
                replies::write(&mut self.nft, &self.users.keys().copied().collect())?;
            }
        }
        self.added.clear();
        self.removed.clear();
        self.chain = if wanted {
            Chain::Present
        } else {
            Chain::Absent
        };
        Ok(())
    }

    fn is_behind(&self, on: bool) -> bool {
        let wanted = on && !self.users.is_empty();
        match self.chain {
            Chain::Unknown => true,
            Chain::Absent => wanted,
            Chain::Present => !wanted || !self.added.is_empty() || !self.removed.is_empty(),
        }
    }
}

/// Where a service's backends on this node answer from.
fn answering(service: &Service) -> BTreeSet<Answering> {
    let mut all = BTreeSet::new();
    for group in &service.groups {
        let protocols = group.frontends.iter();
        let protocols: BTreeSet<u8> = protocols
            .map(|one| one.frontend.protocol.number())
            .collect();
        let here = group.backends.iter();
        for backend in here.filter(|backend| backend.mode == Mode::Local) {
            let socket = SocketAddr::new(backend.address, backend.port);
            all.extend(protocols.iter().map(|protocol| (socket, *protocol)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Algorithm, Frontend, Protocol},
        desired::{Backend, Group, GroupFrontend, GroupKey},
    };

    fn service(frontends: &[Protocol], backends: &[(u8, Mode)]) -> Service {
        let frontends = frontends.iter().map(|protocol| GroupFrontend {
            frontend: Frontend {
                address: [192, 0, 2, 10].into(),
                port: 80,
                protocol: *protocol,
            },
            owns_address: true,
            rules: None,
        });
        let backends = backends.iter().map(|(last, mode)| Backend {
            socket: target(*last),
            address: target(*last).ip(),
            port: 8080,
            mode: *mode,
            weight: 100,
            drain: false,
            down: false,
            away: false,
            node_address: None,
            source: None,
            path: None,
            origin: None,
        });
        Service {
            mode: Mode::Local,
            is_tunnel_end: false,
            affinity: None,
            algorithm: Algorithm::Rendezvous,
            groups: vec![Group {
                key: GroupKey::default(),
                frontends: frontends.collect(),
                backends: backends.collect(),
                source_ranges: None,
                drop: false,
            }],
            left_out: Vec::new(),
        }
    }

    fn target(last: u8) -> SocketAddr {
        ([10, 244, 1, last], 8080).into()
    }

    #[test]
    fn what_two_services_need_stays_until_neither_does() {
        let [web, dns]: [ServiceName; 2] = ["web", "dns"].map(|name| name.parse().unwrap());
        let mut replies = Replies::default();
        let both = service(&[Protocol::Tcp, Protocol::Udp], &[(11, Mode::Local)]);
        let one = service(
            &[Protocol::Udp],
            &[(11, Mode::Local), (12, Mode::Local), (13, Mode::Pass)],
        );
        replies.follow(&web, Some(&both));
        replies.follow(&dns, Some(&one));
        let all = [(target(11), 6), (target(11), 17), (target(12), 17)];
        assert_eq!(replies.added, BTreeSet::from(all));
        assert!(replies.is_behind(true));

        // As if it were written.
        replies.chain = Chain::Present;
        replies.added.clear();
        assert!(!replies.is_behind(true));
        assert!(replies.is_behind(false), "in bypass it goes");
        replies.follow(&web, None);
        assert_eq!(replies.removed, BTreeSet::from([(target(11), 6)]));
        // It comes back before anybody looked.
        replies.follow(&web, Some(&both));
        assert!(!replies.is_behind(true));
        replies.follow(&web, None);
        replies.follow(&dns, None);
        assert_eq!(replies.removed, BTreeSet::from(all));
        assert!(replies.is_behind(true), "no chain for nobody");
    }
}
