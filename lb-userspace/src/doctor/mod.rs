//! Is this machine fit? Facts are gathered once ([`Facts::gather`], [`Tunnels::probe`]), judged by pure functions ([`check`]), and told a line
//! each: what was looked at, how it stands, what was found, and the command that mends it.

mod checks;
mod facts;
mod interface;
mod nat;
mod proxies;
mod system;
#[cfg(test)]
mod tests;
mod tunnels;

use serde::{Deserialize, Serialize};

pub use self::{
    checks::check,
    facts::{Agent, Facts, Found, Question, Sysctls},
    proxies::Proxy,
    tunnels::Tunnels,
};
use crate::attach::Mend;

/// How something stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Ok,
    /// It works, but less well or not in every case.
    Limit,
    /// It does not work like this.
    Unfit,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limit => "limit",
            Self::Unfit => "unfit",
        }
    }
}

/// What one check says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    pub check: String,
    /// Absent where it is about the whole host.
    pub interface: Option<String>,
    pub state: State,
    pub found: String,
    /// A command or a setting; absent where nothing is to be mended, or nobody can.
    pub fix: Option<String>,
    /// What `--fix` does.
    #[serde(skip)]
    pub mend: Option<Mend>,
}

impl Line {
    fn new(check: &str, state: State, found: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            interface: None,
            state,
            found: found.into(),
            fix: None,
            mend: None,
        }
    }

    fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, State::Ok, found)
    }

    fn limit(check: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, State::Limit, found).fixed_by(fix)
    }

    fn unfit(check: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, State::Unfit, found).fixed_by(fix)
    }

    fn fixed_by(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// With a fix that `--fix` can do.
    fn mended_by(mut self, mend: Mend) -> Self {
        self.fix = Some(mend.to_string());
        self.mend = Some(mend);
        self
    }

    fn on(mut self, interface: &str) -> Self {
        self.interface = Some(interface.to_owned());
        self
    }
}

/// The worst of the lines.
pub fn verdict(lines: &[Line]) -> State {
    let states = lines.iter().map(|line| line.state);
    states.max().unwrap_or(State::Ok)
}
