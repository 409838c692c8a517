//! Clients whose port is known before their first packet, and what `millrace explain` says would become of them.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    observe::view::{Explanation, Flow, Flows},
    state::Protocol,
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use super::{
    Agents, Cluster,
    traffic::{Reach, SHORTLY, SILENCE},
};

/// A TCP socket of the client's that has its port and is not connected yet.
#[derive(Debug)]
pub struct Caller {
    socket: OwnedFd,
    pub from: SocketAddr,
}

/// A connection over which several questions are asked.
#[derive(Debug)]
pub struct Call {
    stream: BufReader<TcpStream>,
    pub from: SocketAddr,
}

/// What an agent says of one packet.
#[derive(Debug)]
pub struct Explained {
    pub said: Explanation,
    /// What `millrace explain` ended with.
    pub exit: Option<i32>,
}

impl Cluster {
    /// With a free port of one of the client's addresses.
    pub fn caller(&self, from: IpAddr) -> Result<Caller> {
        let family = if from.is_ipv6() {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        self.client.enter(|| {
            let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &SocketAddr::new(from, 0)).with_context(|| from.to_string())?;
            let from = getsockname(&socket)?.try_into()?;
            Ok(Caller { socket, from })
        })
    }

    /// As many of the client's own address.
    pub fn callers(&self, count: usize, v6: bool) -> Result<Vec<Caller>> {
        let from = self.address("client", v6)?;
        (0..count).map(|_| self.caller(from)).collect()
    }
}

impl Caller {
    pub fn call(self, server: SocketAddr) -> Result<Call> {
        let from = self.from;
        let stream = self
            .connected(server, SHORTLY)
            .with_context(|| format!("{from} to {server}"))?;
        stream.set_read_timeout(Some(SHORTLY))?;
        Ok(Call {
            stream: BufReader::new(stream),
            from,
        })
    }

    /// The attempt to connect ends so. Only what is to be silent is not waited for.
    pub fn ensure(self, wanted: Reach, server: SocketAddr) -> Result<()> {
        let from = self.from;
        let patience = match wanted {
            Reach::Silent => SILENCE,
            Reach::Answered | Reach::Refused => SHORTLY,
        };
        let reach = Reach::of(self.connected(server, patience));
        let reach = reach.with_context(|| format!("{from} to {server}"))?;
        ensure!(reach == wanted, "{from} to {server}: {reach:?}");
        Ok(())
    }

    fn connected(self, server: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
        set_socket_timeout(&self.socket, Timeout::Send, Some(patience))?;
        match connect(&self.socket, &server) {
            // What the timeout is called here.
            Err(Errno::INPROGRESS) => Err(Errno::TIMEDOUT.into()),
            Err(other) => Err(other.into()),
            Ok(()) => Ok(self.socket.into()),
        }
    }
}

impl Call {
    /// What the server in the pod says to `GET /path`: `hostname`, `clientip`, …
    pub fn get(&mut self, path: &str) -> Result<String> {
        self.ask(path, "keep-alive")?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = self.stream.read_line(&mut head)?;
            ensure!(read > 0, "ended after {head:?}");
        }
        ensure!(head.starts_with("HTTP/1.1 200 "), "not 200: {head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.with_context(|| head.clone())?.parse()?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(String::from_utf8(body)?)
    }

    /// A question behind whose answer the server closes the connection.
    pub fn ask_last(&mut self, path: &str) -> Result<()> {
        self.ask(path, "close")
    }

    /// All that comes, head and body.
    pub fn rest(mut self) -> Result<String> {
        let mut all = String::new();
        self.stream.read_to_string(&mut all)?;
        Ok(all)
    }

    fn ask(&mut self, path: &str, connection: &str) -> Result<()> {
        let request =
            format!("GET /{path} HTTP/1.1\r\nHost: who.test\r\nConnection: {connection}\r\n\r\n");
        Ok(self.stream.get_mut().write_all(request.as_bytes())?)
    }

    /// Whom the pod takes for its client.
    pub fn seen(&mut self) -> Result<SocketAddr> {
        let seen = self.get("clientip")?;
        seen.trim().parse().context(seen)
    }
}

impl Agents<'_> {
    /// What a node's agent says would become of TCP packets from here to there: the first ones of their flows, or with
    /// `flags` others.
    pub fn explain(
        &self,
        node: &str,
        from: &[SocketAddr],
        to: SocketAddr,
        flags: &str,
    ) -> Result<Vec<Explained>> {
        let to = format!("{to}/tcp");
        let one = |from: &SocketAddr| {
            let from = from.to_string();
            self.explained(node, &["--from", &from, "--to", &to, "--flags", flags])
        };
        from.iter().map(one).collect()
    }

    /// What a node's agent says would become of a whole frame, in hex.
    pub fn explain_frame(&self, node: &str, frame: &str) -> Result<Explained> {
        self.explained(node, &["--frame", frame])
    }

    fn explained(&self, node: &str, packet: &[&str]) -> Result<Explained> {
        let words = [&["explain", "--output=json"], packet].concat();
        let output = self.output(node, &words)?;
        let text = String::from_utf8(output.stdout)?;
        let said = serde_json::from_str(&text).with_context(|| {
            let error = String::from_utf8_lossy(&output.stderr);
            format!("{packet:?}: {text} {error}")
        })?;
        Ok(Explained {
            said,
            exit: output.status.code(),
        })
    }

    /// Flows to a frontend that a node's packet path remembers, those over TCP.
    pub fn flows(&self, node: &str, to: SocketAddr) -> Result<Vec<Flow>> {
        let to = to.to_string();
        let flows = ["flows", "--to", &to, "--limit", "100000", "--output=json"];
        let text = self.millrace(node, &flows)?;
        let all: Flows = serde_json::from_str(&text).context(text)?;
        let mut flows = all.flows;
        flows.retain(|flow| flow.protocol == Protocol::Tcp);
        Ok(flows)
    }
}

impl Explained {
    /// Result and reason of a step; empty if there is none of that name.
    pub fn step(&self, name: &str) -> (&str, &str) {
        let mut steps = self.said.steps.iter();
        let step = steps.find(|step| step.step == name);
        step.map_or(("", ""), |step| (&step.result, &step.why))
    }

    /// The step's reason names these lines of the contract.
    pub fn ensure_rule(&self, step: &str, line: &str) -> Result<()> {
        let (_, why) = self.step(step);
        ensure!(why.contains(&format!("[{line}]")), "{step}: {self:#?}");
        Ok(())
    }
}
