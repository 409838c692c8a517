//! `explain`: the host's build of the very same pipeline, over the live maps. Reads are look-ups in the pinned maps,
//! made when the pipeline asks; writes stay in memory: no counter, token or entry changes.

pub(crate) mod frame;
mod live;
mod overlay;
mod route;
#[cfg(test)]
mod tests;
mod words;

use std::{fmt, io, path::Path, sync::Arc};

use lb_common::{
    abi::Reason,
    pipeline::{self, Scratch, Step, Verdict},
    sim::Frame,
};

pub use self::frame::BadQuestion;
use self::{live::Live, overlay::Overlay, route::Routing};
use super::view;
use crate::{
    attach::Clock,
    dataplane::OpenError,
    net::{Facts, Link},
    state::State,
};

/// What the pipeline would do with one frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    pub verdict: Verdict,
    pub steps: Vec<Step>,
    /// As it leaves.
    pub frame: Vec<u8>,
    /// Interface it came in by.
    pub ingress: u32,
}

/// The live maps and the network around them.
pub struct Explainer {
    live: Live,
    clock: Arc<Clock>,
    routing: Routing,
}

impl Explainer {
    /// `folder` is that of the pinned maps.
    ///
    /// # Errors
    /// A map is not there or not as it must be.
    pub fn open(folder: &Path, clock: Arc<Clock>, facts: Facts) -> Result<Self, OpenError> {
        Ok(Self {
            live: Live::open(folder)?,
            clock,
            routing: Routing::new(facts),
        })
    }

    /// The XDP program's decision on a frame that comes in by `ingress`, with the tokens of `cpu`.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn decide(&self, frame: &[u8], ingress: u32, cpu: usize) -> io::Result<Decision> {
        self.run(frame, ingress, cpu, false)
    }

    /// The same, followed up to the tc program where XDP hands the packet up.
    fn follow(&self, frame: &[u8], ingress: u32, cpu: usize) -> io::Result<Decision> {
        self.run(frame, ingress, cpu, true)
    }

    fn run(&self, bytes: &[u8], ingress: u32, cpu: usize, follow: bool) -> io::Result<Decision> {
        let settings = self.live.settings()?;
        let now = self.clock.now()?;
        let overlay = Overlay::new(&self.live, &self.routing, settings, ingress, now, cpu);
        let arrived = Frame {
            bytes: bytes.to_vec(),
            ingress,
        };
        let mut scratch = Scratch::default();
        let mut frame = arrived.clone();
        let mut verdict = pipeline::process(&mut frame, &overlay, &settings, &mut scratch);
        if follow && verdict == Verdict::Pass(Reason::HandedUp) {
            overlay.go_up();
            frame = arrived;
            verdict = pipeline::process(&mut frame, &overlay, &settings, &mut scratch);
        }
        Ok(Decision {
            verdict,
            steps: overlay.finish()?,
            frame: frame.bytes,
            ingress,
        })
    }

    /// Answers a question in words; names come from the agent's state.
    pub(super) fn explain(
        &self,
        question: &view::Question,
        state: &State,
    ) -> Result<view::Explanation, Unexplained> {
        let facts = self.routing.facts();
        let (ingress, link) = arrival(question, state, facts)?;
        let frame = frame::of(&question.packet, link.mac.unwrap_or_default())?;
        let decision = self.follow(&frame, ingress, rustix::thread::sched_getcpu())?;
        let sendable = match decision.verdict {
            Verdict::Redirect { ifindex } => self.live.sends_on(ifindex)?,
            _ => true,
        };
        let to = match &question.packet {
            view::Packet::Ends(ends) => Some((ends.to, ends.protocol)),
            view::Packet::Frame(_) => None,
        };
        Ok(words::explanation(&decision, to, sendable, state, facts))
    }
}

impl fmt::Debug for Explainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Explainer").finish_non_exhaustive()
    }
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unexplained {
    #[error(transparent)]
    Question(#[from] BadQuestion),
    #[error("no interface {0}: `millrace status` lists them")]
    Interface(String),
    #[error("maps: {0}")]
    Maps(#[from] io::Error),
}

/// The interface that the packet arrives on: the one named, or the first of ours that is there.
fn arrival<'a>(
    question: &view::Question,
    state: &State,
    facts: &'a Facts,
) -> Result<(u32, &'a Link), Unexplained> {
    let named = |name: &str| facts.links.iter().find(|(_, link)| link.name == name);
    let found = match &question.interface {
        Some(name) => named(name),
        None => state.interfaces.iter().find_map(|ours| named(&ours.name)),
    };
    found.map(|(index, link)| (*index, link)).ok_or_else(|| {
        let name = question.interface.clone();
        Unexplained::Interface(name.unwrap_or_else(|| "of ours is up".to_owned()))
    })
}
