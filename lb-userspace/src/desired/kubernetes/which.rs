//! A1: which Services have frontends at all.

use crate::cluster::facts::Service;

/// Why a Service has no frontends here. That is no fault of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotOurs {
    ExternalName,
    Headless,
    AnotherProxy,
}

/// `loadBalancerClass` is of no concern: who forwards serves any VIP that a status names (A1.5).
pub(super) fn ours(service: &Service) -> Result<(), NotOurs> {
    if service.for_another_proxy {
        return Err(NotOurs::AnotherProxy);
    }
    if service.kind == "ExternalName" {
        return Err(NotOurs::ExternalName);
    }
    if service.cluster_ip.is_empty() || service.cluster_ip.eq_ignore_ascii_case("none") {
        return Err(NotOurs::Headless);
    }
    Ok(())
}
