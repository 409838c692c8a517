//! A1.8: who has a frontend that several Services ask for; and which Services ask for an address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::frontends::Asked;
use crate::config::{Frontend, Protocol, ServiceName};

/// Order of claims: the oldest Service, then the lower UID.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Claimant {
    pub created: i64,
    pub uid: String,
    pub service: ServiceName,
}

#[derive(Default, Debug)]
pub(super) struct Claims {
    frontends: BTreeMap<Frontend, BTreeSet<Claimant>>,
    /// How many claims have an address as VIP.
    vips: BTreeMap<IpAddr, usize>,
}

/// What a change of claims concerns.
#[derive(Default, Debug)]
pub(super) struct Concerned {
    /// They lost or won a frontend.
    pub services: BTreeSet<ServiceName>,
    /// They became VIPs, or are none any more.
    pub addresses: BTreeSet<IpAddr>,
}

impl Claims {
    /// Who has it.
    pub(super) fn holder(&self, frontend: &Frontend) -> Option<&Claimant> {
        self.frontends.get(frontend)?.first()
    }

    pub(super) fn is_vip(&self, address: IpAddr) -> bool {
        self.vips.contains_key(&address)
    }

    /// Services that ask for frontends of an address.
    pub(super) fn of_address(&self, address: IpAddr) -> impl Iterator<Item = &ServiceName> {
        let port = |port, protocol| Frontend {
            address,
            port,
            protocol,
        };
        let range = port(0, Protocol::Tcp)..=port(u16::MAX, Protocol::Udp);
        let claims = self.frontends.range(range);
        claims.flat_map(|(_, claimants)| claimants.iter().map(|one| &one.service))
    }

    pub(super) fn add(&mut self, claimant: &Claimant, asked: &[Asked], concerned: &mut Concerned) {
        for one in asked {
            let claimants = self.frontends.entry(one.frontend).or_default();
            claimants.insert(claimant.clone());
            if claimants.first() == Some(claimant) {
                // Who had it loses it; the others are told of another holder.
                concerned.services.extend(others(claimants, claimant));
            }
            if one.class.is_vip() {
                let claims = self.vips.entry(one.frontend.address).or_default();
                *claims += 1;
                if *claims == 1 {
                    concerned.addresses.insert(one.frontend.address);
                }
            }
        }
    }

    pub(super) fn remove(
        &mut self,
        claimant: &Claimant,
        asked: &[Asked],
        concerned: &mut Concerned,
    ) {
        for one in asked {
            if let Some(claimants) = self.frontends.get_mut(&one.frontend) {
                let held = claimants.first() == Some(claimant);
                claimants.remove(claimant);
                if held {
                    concerned.services.extend(others(claimants, claimant));
                }
                if claimants.is_empty() {
                    self.frontends.remove(&one.frontend);
                }
            }
            if one.class.is_vip()
                && let Some(claims) = self.vips.get_mut(&one.frontend.address)
            {
                *claims -= 1;
                if *claims == 0 {
                    self.vips.remove(&one.frontend.address);
                    concerned.addresses.insert(one.frontend.address);
                }
            }
        }
    }
}

fn others<'a>(
    claimants: &'a BTreeSet<Claimant>,
    but: &'a Claimant,
) -> impl Iterator<Item = ServiceName> + 'a {
    let others = claimants.iter().filter(move |one| *one != but);
    others.map(|one| one.service.clone())
}
