//! Someone who is logged in to the balancer's host from a client's place: what must never be cut off.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    clients::{self, Held},
    netns::{Netns, Process},
    servers::{self, SSH},
    topology::{Family, Topology},
};

/// Connections of each family that stay open.
const SESSIONS: usize = 4;

/// Sessions at the host's own addresses.
#[derive(Debug)]
pub struct Login {
    client: Netns,
    addresses: [std::net::SocketAddr; 2],
    held: Vec<Held>,
    _server: Process,
}

impl Login {
    pub fn open(topology: &Topology) -> Result<Self> {
        let host = &topology.balancer;
        let server = servers::ssh(host)?;
        let client = topology.client().clone();
        let addresses = Family::BOTH.map(|family| host.at(family, SSH));
        let held = addresses
            .iter()
            .map(|address| Held::open(&client, *address, SESSIONS))
            .collect::<Result<_>>()?;
        Ok(Self {
            client,
            addresses,
            held,
            _server: server,
        })
    }

    /// Every open session answers, and new ones can be opened.
    pub fn check(&mut self) -> Result<()> {
        for held in &mut self.held {
            let broken = held.round_trip();
            ensure!(broken.is_empty(), "sessions broken: {broken:?}");
        }
        for address in self.addresses {
            Held::open(&self.client, address, 1).with_context(|| format!("to {address}"))?;
        }
        Ok(())
    }

    /// Does something while the sessions are in use all the time; says how many rounds they had.
    pub fn during<T: Send>(
        &mut self,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<(T, usize)> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let sessions = scope.spawn(|| -> Result<usize> {
                let mut rounds = 0;
                loop {
                    // The last round begins after the end.
                    let last = over.load(Ordering::Acquire);
                    self.check().with_context(|| format!("in round {rounds}"))?;
                    rounds += 1;
                    if last {
                        return Ok(rounds);
                    }
                    clients::pause();
                }
            });
            let done = work();
            over.store(true, Ordering::Release);
            let rounds = sessions.join().expect("sessions")?;
            Ok((done?, rounds))
        })
    }
}
