use thiserror::Error;

/// Why a service cannot be planned. Nothing of it was planned then.
#[derive(Clone, Copy, PartialEq, Eq, Error, Debug)]
pub enum PlanError {
    #[error("{what}: {needed} of {max}; {fix}")]
    Full {
        /// `frontends`, `backends`, `services`, `slots`, `members` or `source ranges`.
        what: &'static str,
        needed: u64,
        max: u64,
        fix: &'static str,
    },
}

impl PlanError {
    pub(super) fn full(what: &'static str, needed: impl Into<u64>, max: impl Into<u64>) -> Self {
        Self::Full {
            what,
            needed: needed.into(),
            max: max.into(),
            fix: match what {
                "frontends" | "services" => "raise limits.frontends",
                "source ranges" => "merge some",
                _ => "raise limits.backends",
            },
        }
    }
}
