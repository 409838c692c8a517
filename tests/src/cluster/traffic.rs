//! What the client outside asks, and what becomes of it.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Cluster, PATIENCE};
use crate::{
    clients::{self, Answers, http_get},
    netns::{Netns, until},
};

/// Requests until each of a few servers has had its turn, if they are chosen at random: 2^-60 of all runs miss one of two.
pub(super) const REQUESTS: usize = 60;

/// For an answer: a SYN may have to be sent twice.
pub(super) const SHORTLY: Duration = Duration::from_secs(5);

/// Silence that is long enough to be meant.
pub(super) const SILENCE: Duration = Duration::from_millis(500);

/// Clients of one server that ask all the time: one may wait for what was lost while the next one comes.
const LANES: usize = 4;

/// After which such a client tries again, by a new connection.
const IMPATIENCE: Duration = Duration::from_millis(250);

/// How an attempt to connect ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    Answered,
    Refused,
    Silent,
}

impl Reach {
    pub(super) fn of(tried: io::Result<TcpStream>) -> Result<Self> {
        match tried {
            Ok(_) => Ok(Self::Answered),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused => Ok(Self::Refused),
                ErrorKind::TimedOut => Ok(Self::Silent),
                _ => Err(error.into()),
            },
        }
    }
}

/// Who answers so many requests, each of which comes over a connection of its own. The first that fails is the last: who
/// waits for a change looks again sooner.
pub(super) fn answering(place: &Netns, server: SocketAddr) -> Result<BTreeSet<String>> {
    let ask = |number| {
        let answer = http_get(server, "hostname", SHORTLY);
        answer.with_context(|| format!("{server}: request {number} of {REQUESTS}"))
    };
    place.enter(|| (1..=REQUESTS).map(ask).collect())
}

impl Cluster {
    /// Who answers the client's requests.
    pub fn answering(&self, server: SocketAddr) -> Result<BTreeSet<String>> {
        answering(&self.client, server)
    }

    /// Waits until these pods answer, each of them and no other.
    pub fn wait_for_answers(&self, servers: &[SocketAddr], pods: &BTreeSet<String>) -> Result<()> {
        servers.iter().try_for_each(|&server| {
            until(PATIENCE, || {
                let answered = self.answering(server)?;
                ensure!(answered == *pods, "{server}: {answered:?} of {pods:?}");
                Ok(())
            })
        })
    }

    /// How many requests [`Self::answering`] sends.
    pub const REQUESTS: u64 = REQUESTS as u64;

    /// What a server in a pod says to `GET /path`: `hostname`, `clientip`, …
    pub fn get(&self, server: SocketAddr, path: &str) -> Result<String> {
        self.client.enter(|| http_get(server, path, SHORTLY))
    }

    /// A socket with a port of its own, for as long as it lives.
    pub fn datagrams(&self, server: SocketAddr) -> Result<Datagrams> {
        self.client.enter(|| {
            let own = match server {
                SocketAddr::V4(_) => "0.0.0.0:0",
                SocketAddr::V6(_) => "[::]:0",
            };
            let socket = UdpSocket::bind(own)?;
            socket.connect(server)?;
            Ok(Datagrams { socket })
        })
    }

    /// Waits until a server answers at all: kube-proxy may not know it yet.
    pub fn wait_for(&self, server: SocketAddr) -> Result<()> {
        until(PATIENCE, || self.get(server, "hostname").map(drop))?;
        self.forget_early_packets(server.ip())
    }

    /// Servers see the client's own address, over TCP and UDP.
    pub fn ensure_seen(&self, server: SocketAddr) -> Result<()> {
        for seen in [
            self.get(server, "clientip")?,
            self.datagrams(server)?.ask("clientip")?,
        ] {
            ensure!(self.is_client(&seen)?, "{server}: {seen}");
        }
        Ok(())
    }

    /// Whether what a server said to `clientip` is the client's own address.
    pub fn is_client(&self, seen: &str) -> Result<bool> {
        let seen: SocketAddr = seen.trim().parse().with_context(|| seen.to_owned())?;
        Ok(seen.ip() == self.address("client", seen.is_ipv6())?)
    }

    /// How one attempt to connect ends.
    pub fn reach(&self, server: SocketAddr) -> Result<Reach> {
        Self::reach_from(&self.client, server, SILENCE)
    }

    pub(super) fn reach_from(
        place: &Netns,
        server: SocketAddr,
        silence: Duration,
    ) -> Result<Reach> {
        let tried = place.enter(|| TcpStream::connect_timeout(&server, silence));
        Reach::of(tried).with_context(|| server.to_string())
    }

    /// Waits until attempts to connect end so.
    pub fn wait_until(&self, wanted: Reach, server: SocketAddr) -> Result<()> {
        until(PATIENCE, || {
            let reach = self.reach(server)?;
            ensure!(reach == wanted, "{server}: {reach:?}, not {wanted:?}");
            Ok(())
        })?;
        self.forget_early_packets(server.ip())
    }

    /// While `work` is done, under requests all the time of which any may fail, no VIP is silent for as long as a second:
    /// `servers` are both families'. What the machine itself stands still for meanwhile is left out; `pod` tells it, which
    /// is asked the same way past everybody who serves VIPs.
    pub fn without_a_silent_second<T>(
        &self,
        servers: [SocketAddr; 2],
        pod: [SocketAddr; 2],
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let ([v4, v6], [pod4, pod6]) = (servers, pod);
        let (done, [v4, v6, still4, still6]) = self.silences([v4, v6, pod4, pod6], work)?;
        for (server, silent, still) in [(servers[0], v4, still4), (servers[1], v6, still6)] {
            eprintln!("{server}: silent for {silent:?}, a pod for {still:?}");
            ensure!(
                silent < Duration::from_secs(1) + still,
                "{server}: silent for {silent:?}, a pod for {still:?}"
            );
        }
        Ok(done)
    }

    /// For how long at most each of the servers said nothing.
    fn silences<T, const N: usize>(
        &self,
        servers: [SocketAddr; N],
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, [Duration; N])> {
        let going = AtomicBool::new(true);
        let ask = |server: SocketAddr| {
            let mut answered = Vec::new();
            while going.load(Ordering::Relaxed) {
                if http_get(server, "hostname", IMPATIENCE).is_ok() {
                    answered.push(Instant::now());
                }
                clients::pause();
            }
            answered
        };
        let ask = &ask;
        let (done, silences) = thread::scope(|scope| {
            let lane = |server| scope.spawn(move || self.client.enter(|| ask(server)));
            let asking = servers.map(|server| [(); LANES].map(|()| lane(server)));
            let began = Instant::now();
            let done = work();
            let ended = Instant::now();
            going.store(false, Ordering::Relaxed);
            let silences = asking.map(|lanes| {
                let answered = lanes.map(|lane| lane.join().expect("a client"));
                let during = answered.into_iter().flatten();
                let mut times: Vec<_> = during
                    .filter(|time| (began..ended).contains(time))
                    .collect();
                times.extend([began, ended]);
                times.sort_unstable();
                let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
                gaps.max().unwrap_or_default()
            });
            (done, silences)
        });
        Ok((done?, silences))
    }

    /// Requests to each of the servers all the time while `work` is done; it is an error if one fails.
    pub fn under_load<T>(
        &self,
        servers: &[SocketAddr],
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let going = AtomicBool::new(true);
        let wanted = || going.load(Ordering::Relaxed);
        let (done, answers) = thread::scope(|scope| {
            let clients: Vec<_> = servers
                .iter()
                .map(|&server| {
                    scope.spawn(move || clients::http_while(&self.client, server, 1, wanted))
                })
                .collect();
            let done = work();
            going.store(false, Ordering::Relaxed);
            let answers = clients.into_iter().map(|one| one.join().expect("a client"));
            (done, answers.collect::<Vec<Answers>>())
        });
        for (server, answers) in servers.iter().zip(&answers) {
            eprintln!("{server}: {} requests", answers.answered());
        }
        let done = done?;
        for (server, answers) in servers.iter().zip(&answers) {
            ensure!(answers.failures.is_empty(), "{server}: {answers:?}");
            ensure!(answers.answered() > 0, "{server}: no request");
        }
        Ok(done)
    }
}

/// A client's UDP socket.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
}

impl Datagrams {
    /// This end and the server.
    pub fn ends(&self) -> Result<[SocketAddr; 2]> {
        Ok([self.socket.local_addr()?, self.socket.peer_addr()?])
    }

    /// A datagram whose answer nobody waits for.
    pub fn send(&self, question: &[u8]) -> Result<()> {
        self.socket.send(question)?;
        Ok(())
    }

    /// What the server says to a datagram: `hostname` or `clientip`.
    pub fn ask(&self, question: &str) -> Result<String> {
        let answer = self.exchange(question.as_bytes())?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// A large question, and what is said to it. A client that learns instead of a smaller MTU, which pods of an overlay
    /// have, asks again.
    pub fn exchange(&self, question: &[u8]) -> Result<Vec<u8>> {
        self.send(question)?;
        let answer = self.answer();
        let error = answer.as_ref().err();
        let error = error.and_then(|error| error.downcast_ref::<io::Error>());
        if error.and_then(io::Error::raw_os_error) == Some(libc::EMSGSIZE) {
            self.send(question)?;
            return self.answer();
        }
        answer
    }

    /// What comes back, if it comes shortly.
    pub fn answer(&self) -> Result<Vec<u8>> {
        self.socket.set_read_timeout(Some(SHORTLY))?;
        let mut answer = vec![0; usize::from(u16::MAX)];
        let length = self.socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    }

    /// Whether a question was answered by an ICMP error: port unreachable.
    pub fn ensure_refused(&self) -> Result<()> {
        let error = match self.ask("hostname") {
            Ok(answer) => bail!("answered by {answer}"),
            Err(error) => error,
        };
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{error:#}");
        Ok(())
    }
}
