//! A11: what a Service's health check port tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    sync::Arc,
};

use super::backends::Candidate;
use crate::cluster::facts::{ObjectKey, Service};

/// `spec.healthCheckNodePort` and its answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    pub service: ObjectKey,
    pub uid: Arc<str>,
    pub port: NonZeroU16,
    /// Ready endpoints on this node by address, of IPv4.
    pub local_endpoints4: usize,
    /// The same of IPv6.
    pub local_endpoints6: usize,
}

/// By port; the API server gives none twice.
pub type HealthChecks = Arc<BTreeMap<u16, HealthCheck>>;

/// Only with `type: LoadBalancer` and `externalTrafficPolicy: Local` (A11.1).
pub(super) fn port(service: &Service) -> Option<NonZeroU16> {
    let asked =
        service.kind == "LoadBalancer" && service.external_local && !service.for_another_proxy;
    let port = u16::try_from(service.health_check_port)
        .ok()
        .and_then(NonZeroU16::new);
    port.filter(|_| asked)
}

/// Distinct addresses of ready endpoints on this node, over all ports (A11.2, A11.4).
pub(super) fn local_ready(endpoints: &[Candidate<'_>]) -> usize {
    let ready = endpoints.iter().filter(|one| one.local && one.ready);
    ready.map(|one| one.address).collect::<BTreeSet<_>>().len()
}
