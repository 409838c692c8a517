//! Real servers on the backends. Each says which backend it is, so that a client can tell who answered.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    netns::{Folder, Process, until},
    topology::{Family, Host, VIP4, VIP6},
};

pub mod decap;
pub mod echo;
pub mod tunnels;

/// HTTP on port 80, for modes that keep the port, and on 8080 for those that change it.
pub const HTTP: u16 = 80;
pub const HTTP_BEHIND: u16 = 8080;
pub const ECHO: u16 = 7;
pub const SSH: u16 = 22;
pub const DNS: u16 = 53;
pub const IPERF: u16 = 5201;
/// Asked for as `GET /big`.
pub const BIG_FILE_BYTES: usize = 64 << 20;

const PATIENCE: Duration = Duration::from_secs(10);

/// nginx: `/` answers `NAME CLIENT-ADDRESS`, `/big` is a large file.
pub fn nginx(host: &Host, folder: &Folder) -> Result<Process> {
    let home = folder.file(&format!("nginx-{}", host.name));
    fs::create_dir_all(&home)?;
    let configuration = home.join("nginx.conf");
    let name = &host.name;
    let shared = folder.path().display();
    fs::write(
        &configuration,
        format!(
            "daemon off; master_process off; user root; pid nginx.pid; error_log error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
  server {{
    listen {HTTP} backlog=16384; listen [::]:{HTTP} backlog=16384;
    listen {HTTP_BEHIND} backlog=16384; listen [::]:{HTTP_BEHIND} backlog=16384;
    location / {{ return 200 \"{name} $remote_addr\\n\"; }}
    location = /big {{ root {shared}; }}
  }}
}}
"
        ),
    )?;
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(&home)
        .arg("-c")
        .arg(&configuration)
        .arg("-e")
        .arg(home.join("error.log"));
    start(host, &mut command, HTTP)
}

/// The file behind `/big`: bytes that repeat nowhere near each other, in whole MiB.
pub fn write_big_file(folder: &Folder, bytes: usize) -> Result<PathBuf> {
    let path = folder.file("big");
    let mut file = fs::File::create(&path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(1 << 20);
    for _ in 0..bytes >> 20 {
        block.clear();
        while block.len() < 1 << 20 {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(path)
}

/// dnsmasq: the TXT record of `who.test` is the backend's name.
pub fn dnsmasq(host: &Host) -> Result<Process> {
    let mut command = Command::new("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file=",
        "--log-facility=/dev/null",
        &format!("--port={DNS}"),
        &format!("--txt-record=who.test,{}", host.name),
    ]);
    start(host, &mut command, DNS)
}

pub fn iperf3(host: &Host) -> Result<Process> {
    let mut command = Command::new("iperf3");
    // It complains of every connection that is no test, our own first look included.
    command
        .args(["-s", "-p", &IPERF.to_string()])
        .stderr(Stdio::null());
    start(host, &mut command, IPERF)
}

/// Our echo server where ssh would be: someone's way into the host.
pub fn ssh(host: &Host) -> Result<Process> {
    let mut command = Command::new(sibling("peer")?);
    command.args(["echo", &host.name]);
    command.args(Family::BOTH.map(|family| host.at(family, SSH).to_string()));
    start(host, &mut command, SSH)
}

/// Our echo server over TCP and UDP, on the host's addresses and, where it has them, on the VIPs.
pub fn echo(host: &Host) -> Result<Process> {
    let mut addresses = vec![host.at(Family::V4, ECHO), host.at(Family::V6, ECHO)];
    let own = host
        .netns
        .run(Command::new("ip").args(["-o", "address", "show", "dev", "lo"]))?;
    addresses.extend(
        [
            SocketAddr::new(VIP4.into(), ECHO),
            SocketAddr::new(VIP6.into(), ECHO),
        ]
        .into_iter()
        .filter(|vip| own.contains(&format!(" {}/", vip.ip()))),
    );
    let mut command = Command::new(sibling("peer")?);
    command
        .args(["echo", &host.name])
        .args(addresses.iter().map(ToString::to_string));
    start(host, &mut command, ECHO)
}

/// Unpacks IP-in-IP packets on a backend. GRO would make large packets of several small ones, whose checksums only the stack
/// knows to be good: a raw socket hands them out as they lie there.
pub fn decap(host: &Host) -> Result<Process> {
    let mut ethtool = Command::new("ethtool");
    host.netns.run(ethtool.args(["-K", "eth0", "gro", "off"]))?;
    let mut command = Command::new(sibling("peer")?);
    let unpacker = host.netns.spawn(command.args(["decap", "tun0"]))?;
    until(PATIENCE, || host.netns.ip(["link set tun0 up"]))?;
    Ok(unpacker)
}

/// A program of this workspace: the one that the environment names (`MILLRACE_BIN` for `millrace`), or the one beside
/// the running program.
pub fn sibling(name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(format!("{}_BIN", name.to_uppercase())) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    // A test runs in target/debug/deps, a binary in target/debug.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{name} is not beside {}: build the workspace first",
                own.display()
            )
        })
}

/// Starts a server and waits until it takes TCP connections.
fn start(host: &Host, command: &mut Command, port: u16) -> Result<Process> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut server = host.netns.spawn(command)?;
    until(PATIENCE, || {
        if let Some(status) = server.exited()? {
            return Err(anyhow::anyhow!("{command:?} ended: {status}"));
        }
        for family in Family::BOTH {
            host.netns
                .enter(|| TcpStream::connect(host.at(family, port)))?;
        }
        Ok(())
    })?;
    Ok(server)
}
