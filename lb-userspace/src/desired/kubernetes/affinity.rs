//! A8: for how long a client is to keep its backend.

use std::time::Duration;

use crate::cluster::facts::Service;

/// In seconds; what the API server allows.
const LONGEST: i32 = 86_400;
const DEFAULT: i32 = 10_800;

/// None: no affinity. The packet path hashes the client's address alone, so a client keeps its backend for at least as
/// long, while the members stay (A8.4, A8.6).
pub(super) fn affinity(service: &Service) -> Option<Duration> {
    service.affinity.then(|| {
        let seconds = service
            .affinity_seconds
            .unwrap_or(DEFAULT)
            .clamp(1, LONGEST);
        Duration::from_secs(seconds as u64)
    })
}
