//! Who asks a Service, and what becomes of it: the contract knows three kinds of clients (A4.8).

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::SocketAddr,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::{
    Cluster, PATIENCE, PORT, Pod, Reach,
    traffic::{REQUESTS, SILENCE, answering},
};
use crate::{
    clients::http_get,
    netns::{Netns, until},
};

/// Silence within the cluster. A process that sends an IPv6 SYN does not hear of its refusal on the same node before it
/// sends another, after a second.
const SILENCE_INSIDE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// The client outside of the cluster.
    Outside,
    /// A process of a node's own.
    Host(&'a str),
    /// A server of ours, which passes a question on.
    Pod(&'a Pod),
}

/// What becomes of requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Met {
    /// By these pods.
    Answered(BTreeSet<String>),
    Refused,
    Silence,
}

impl Met {
    pub fn answered(pods: &[&Pod]) -> Self {
        Self::Answered(pods.iter().map(|pod| pod.name.clone()).collect())
    }
}

/// What a server in a pod says of the questions that it passed on.
#[derive(Deserialize, Debug)]
struct Dialed {
    #[serde(default)]
    responses: Vec<String>,
    #[serde(default)]
    errors: Vec<String>,
}

impl Cluster {
    /// What becomes of someone's requests: of so many that each of a few pods has its turn.
    fn met(&self, asker: Asker<'_>, server: SocketAddr) -> Result<Met> {
        match asker {
            Asker::Outside => Self::met_at(&self.client, server, SILENCE),
            Asker::Host(node) => Self::met_at(&self.place(node)?, server, SILENCE_INSIDE),
            Asker::Pod(pod) => self.met_by(pod, server),
        }
    }

    /// Waits until it is this that becomes of them.
    pub fn wait_to_meet(&self, asker: Asker<'_>, server: SocketAddr, wanted: &Met) -> Result<()> {
        until(PATIENCE, || {
            let met = self.met(asker, server)?;
            ensure!(met == *wanted, "{server}: {met:?}, not {wanted:?}");
            Ok(())
        })
    }

    /// The same of several at once: silences take their time.
    pub fn wait_to_meet_each<'a>(
        &self,
        wanted: impl IntoIterator<Item = (Asker<'a>, SocketAddr, &'a Met)>,
    ) -> Result<()> {
        thread::scope(|scope| {
            let wait =
                |(asker, server, met)| scope.spawn(move || self.wait_to_meet(asker, server, met));
            let waiting: Vec<_> = wanted.into_iter().map(wait).collect();
            let mut waiting = waiting.into_iter();
            waiting.try_for_each(|one| one.join().expect("an asker"))
        })
    }

    fn met_at(place: &Netns, server: SocketAddr, silence: Duration) -> Result<Met> {
        match Self::reach_from(place, server, silence)? {
            Reach::Refused => return Ok(Met::Refused),
            Reach::Silent => return Ok(Met::Silence),
            Reach::Answered => {}
        }
        Ok(Met::Answered(answering(place, server)?))
    }

    fn met_by(&self, pod: &Pod, server: SocketAddr) -> Result<Met> {
        match self.dialed(pod, server, 1) {
            Ok(Dialed { errors, .. }) if !errors.is_empty() => {
                let refused = errors[0].contains("connection refused");
                ensure!(refused, "{server}: {errors:?}");
                return Ok(Met::Refused);
            }
            Ok(_) => {}
            // The pod itself has taken the question.
            Err(error) if is_silence(&error) => return Ok(Met::Silence),
            Err(error) => return Err(error),
        }
        let dialed = self.dialed(pod, server, REQUESTS)?;
        ensure!(dialed.errors.is_empty(), "{server}: {dialed:?}");
        Ok(Met::Answered(dialed.responses.into_iter().collect()))
    }

    /// What a pod meets that asks so many times. Its node brings it the question: beyond the nodes not every CNI has a route
    /// to pods.
    fn dialed(&self, pod: &Pod, server: SocketAddr, tries: usize) -> Result<Dialed> {
        let own = SocketAddr::new(pod.addresses[usize::from(server.is_ipv6())], PORT);
        let (host, port) = (server.ip(), server.port());
        let question =
            format!("dial?host={host}&port={port}&protocol=http&request=hostname&tries={tries}");
        let node = self.place(&pod.node)?;
        let answer = node.enter(|| http_get(own, &question, SILENCE_INSIDE))?;
        serde_json::from_str(&answer).context(answer)
    }
}

fn is_silence(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == ErrorKind::WouldBlock)
}
