//! Clients: the real ones (`curl`, `dig`, `iperf3`), and our own where thousands of connections are wanted.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::netns::{Netns, slowness};

/// How long a client waits for a connection or an answer: several SYN retransmissions.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Between two requests of a client that goes on and on.
const PACE: Duration = Duration::from_millis(10);

/// For what should have come long ago.
const BRIEFLY: Duration = Duration::from_millis(1);

/// Who answered how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    pub by_backend: BTreeMap<String, usize>,
    /// What went wrong, and how often.
    pub failures: BTreeMap<String, usize>,
}

impl Answers {
    pub fn note(&mut self, answer: Result<String>) {
        match answer {
            Ok(name) => *self.by_backend.entry(name).or_default() += 1,
            Err(error) => *self.failures.entry(format!("{error:#}")).or_default() += 1,
        }
    }

    pub fn absorb(&mut self, other: Self) {
        for (name, count) in other.by_backend {
            *self.by_backend.entry(name).or_default() += count;
        }
        for (what, count) in other.failures {
            *self.failures.entry(what).or_default() += count;
        }
    }

    pub fn answered(&self) -> usize {
        self.by_backend.values().sum()
    }

    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// The largest distance of a backend's share from an even one among `backends`, as a fraction of that share.
    pub fn worst_share(&self, backends: usize) -> f64 {
        let even = self.answered() as f64 / backends as f64;
        let missing = backends.saturating_sub(self.by_backend.len());
        self.by_backend
            .values()
            .copied()
            .chain(std::iter::repeat_n(0, missing))
            .map(|count| (count as f64 - even).abs() / even)
            .fold(0.0, f64::max)
    }
}

/// `curl URL` and its answer.
pub fn curl(client: &Netns, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("curl");
    client.run(
        command
            .args(["-sS", "--fail", "-g", "--max-time", "30"])
            .args(arguments),
    )
}

/// The backend's name in the TXT record of `who.test`, asked of `server` by `dig`.
pub fn dig(client: &Netns, server: SocketAddr) -> Result<String> {
    let mut command = Command::new("dig");
    command.args(["+short", "+tries=1", "+time=5"]);
    command.args([
        "-p",
        &server.port().to_string(),
        &format!("@{}", server.ip()),
    ]);
    let answer = client.run(command.args(["who.test", "TXT"]))?;
    Ok(answer.trim().trim_matches('"').to_owned())
}

/// What `iperf3 --json` measured, in bits per second as the receiver saw them.
pub fn iperf3(client: &Netns, server: SocketAddr, arguments: &[&str]) -> Result<f64> {
    let mut command = Command::new("iperf3");
    command.args([
        "-c",
        &server.ip().to_string(),
        "-p",
        &server.port().to_string(),
    ]);
    command.args(["--json", "--time", "2"]).args(arguments);
    let report: serde_json::Value = serde_json::from_str(&client.run(&mut command)?)?;
    let end = &report["end"];
    [&end["sum_received"], &end["sum"]]
        .iter()
        .find_map(|sum| sum["bits_per_second"].as_f64())
        .with_context(|| format!("no sum in {end}"))
}

/// TCP segments that this namespace had to send again: what was lost on the way.
pub fn retransmissions(client: &Netns) -> Result<u64> {
    let table = client.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
    // Two lines: names and values.
    let mut lines = table.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (
        lines.next().context("names")?,
        lines.next().context("values")?,
    );
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, count) = pairs
        .find(|(name, _)| *name == "RetransSegs")
        .context("RetransSegs")?;
    Ok(count.parse()?)
}

/// `count` HTTP requests, each over a connection of its own, by `threads` clients at a time.
pub fn http(client: &Netns, server: SocketAddr, count: usize, threads: usize) -> Answers {
    let left = AtomicUsize::new(count);
    repeat(client, threads, |_| {
        let took = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        took.ok().map(|_| http_once(server))
    })
}

/// Waits as clients do that go on for as long as something else takes: it needs the processors, too.
pub fn pause() {
    thread::sleep(PACE * slowness());
}

/// HTTP requests by `threads` clients for as long as `wanted` says so, with pauses between them.
pub fn http_while(
    client: &Netns,
    server: SocketAddr,
    threads: usize,
    wanted: impl Fn() -> bool + Sync,
) -> Answers {
    repeat(client, threads, |_| {
        pause();
        wanted().then(|| http_once(server))
    })
}

/// `count` datagrams, each from a port of its own; every answer names a backend.
pub fn udp(client: &Netns, server: SocketAddr, count: usize) -> Answers {
    repeat(client, 1, |done| (done < count).then(|| udp_once(server)))
}

fn repeat(
    client: &Netns,
    threads: usize,
    next: impl Fn(usize) -> Option<Result<String>> + Sync,
) -> Answers {
    let all = Mutex::new(Answers::default());
    client.enter(|| {
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut own = Answers::default();
                    let mut done = 0;
                    while let Some(answer) = next(done) {
                        own.note(answer);
                        done += 1;
                    }
                    all.lock().expect("no client panicked").absorb(own);
                });
            }
        });
    });
    all.into_inner().expect("no client panicked")
}

/// One request; the answer's first word is the backend. To a server in a pod this path is the question for its name, to
/// the others it is any.
fn http_once(server: SocketAddr) -> Result<String> {
    let body = http_get(server, "hostname", PATIENCE)?;
    Ok(body
        .split_whitespace()
        .next()
        .context("empty body")?
        .to_owned())
}

/// The body of what a server answers to `GET /path`, over a connection of its own.
pub(crate) fn http_get(server: SocketAddr, path: &str, patience: Duration) -> Result<String> {
    let mut connection = TcpStream::connect_timeout(&server, patience).context("connect")?;
    connection.set_read_timeout(Some(patience))?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: who.test\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).context("read")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "not 200: {head}");
    Ok(body.to_owned())
}

fn udp_once(server: SocketAddr) -> Result<String> {
    let dropped = backlog_drops()?;
    let mut answer = ask(server, "question", PATIENCE);
    let unanswered = answer.as_ref().map_err(io::Error::kind) == Err(ErrorKind::WouldBlock);
    if unanswered && backlog_drops()? > dropped {
        answer = ask(server, "question", PATIENCE);
    }
    let (name, payload) = answer?;
    ensure!(payload == "question", "another payload: {payload}");
    Ok(name)
}

/// Packets that did not fit into the processors' queues (the second number of a line), which all namespaces share: other
/// tests run beside this one, and nobody sends a datagram again.
pub fn backlog_drops() -> Result<u64> {
    let table = fs::read_to_string("/proc/net/softnet_stat").context("softnet_stat")?;
    let dropped = |line: &str| -> Result<u64> {
        let number = line.split(' ').nth(1).context("a second number")?;
        Ok(u64::from_str_radix(number, 16)?)
    };
    table.lines().map(dropped).sum()
}

/// One datagram and its answer, as (backend, payload).
fn ask(server: SocketAddr, payload: &str, patience: Duration) -> io::Result<(String, String)> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(payload.as_bytes())?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let (name, payload) = answer.split_once(' ').ok_or(ErrorKind::InvalidData)?;
    Ok((name.into(), payload.into()))
}

/// How the attempt to reach a port over TCP ends.
pub fn tcp_refusal(client: &Netns, server: SocketAddr) -> Option<ErrorKind> {
    client
        .enter(|| TcpStream::connect_timeout(&server, PATIENCE))
        .err()
        .map(|error| error.kind())
}

/// How the attempt to reach a port over UDP ends.
pub fn udp_refusal(client: &Netns, server: SocketAddr) -> Option<ErrorKind> {
    client
        .enter(|| ask(server, "question", PATIENCE))
        .err()
        .map(|error| error.kind())
}

/// Open connections to echo servers.
#[derive(Debug, Default)]
pub struct Held {
    connections: Vec<(String, TcpStream)>,
}

impl Held {
    /// Opens `count` connections and learns from each who is at the other end.
    pub fn open(client: &Netns, server: SocketAddr, count: usize) -> Result<Self> {
        allow_many_files()?;
        let connections = client.enter(|| {
            // All connections first, then all greetings: the servers work meanwhile.
            let open: Vec<_> = (0..count)
                .map(|n| {
                    let opened = TcpStream::connect_timeout(&server, PATIENCE);
                    opened.with_context(|| format!("connection {n} of {count} to {server}"))
                })
                .collect::<Result<_>>()?;
            open.into_iter().map(greeted).collect::<Result<_>>()
        })?;
        Ok(Self { connections })
    }

    pub fn len(&self) -> usize {
        self.connections.len()
    }

    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    pub fn by_backend(&self) -> BTreeMap<&str, usize> {
        let mut count = BTreeMap::new();
        for (name, _) in &self.connections {
            *count.entry(&**name).or_default() += 1;
        }
        count
    }

    /// A round trip on every connection; those that do not make it are closed and given back by backend.
    pub fn round_trip(&mut self) -> BTreeMap<String, usize> {
        let mut sent = Vec::with_capacity(self.connections.len());
        for (n, (_, connection)) in self.connections.iter_mut().enumerate() {
            // One write, so one packet.
            sent.push(connection.write_all(format!("{n:>9}\n").as_bytes()).is_ok());
        }
        let mut broken = BTreeMap::new();
        let deadline = Instant::now() + PATIENCE;
        let mut number = 0..;
        self.connections.retain_mut(|(name, connection)| {
            let n = number.next().expect("endless");
            let mut line = [0; 10];
            // One patience for all of them, not for each.
            let left = deadline.saturating_duration_since(Instant::now());
            let whole = sent[n]
                && connection.set_read_timeout(Some(left.max(BRIEFLY))).is_ok()
                && connection.read_exact(&mut line).is_ok()
                && line == *format!("{n:>9}\n").as_bytes();
            if !whole {
                *broken.entry(name.clone()).or_default() += 1;
            }
            whole
        });
        broken
    }
}

fn greeted(mut connection: TcpStream) -> Result<(String, TcpStream)> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    let mut name = Vec::new();
    let mut byte = [0];
    while connection.read_exact(&mut byte).is_ok() && byte != *b"\n" {
        name.push(byte[0]);
    }
    ensure!(byte == *b"\n", "no greeting on a connection");
    Ok((String::from_utf8(name)?, connection))
}

/// Raises this process' soft limit of open files to the hard one.
fn allow_many_files() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}
