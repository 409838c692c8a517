//! nginx in a pod: files down and up, and a log of who asked.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Cluster, PATIENCE, Space};
use crate::{
    netns::{Folder, Netns, Process, run, until},
    servers::write_big_file,
};

/// Where it listens.
pub const NGINX: u16 = 9080;

/// Runs in the network of a pod, whose own programs go on.
#[derive(Debug)]
pub struct Nginx {
    folder: Folder,
    _process: Process,
}

impl Space<'_> {
    /// In the pod of a Deployment that has one. It serves a file of `bytes`.
    pub fn nginx(&self, name: &str, bytes: usize) -> Result<Nginx> {
        let pods = self.list_pods(name)?;
        let uid = pods.first().and_then(|pod| pod["metadata"]["uid"].as_str());
        let netns = Netns::of(inhabitant(uid.context("a pod")?)?)?;
        let folder = Folder::create("nginx")?;
        write_big_file(&folder, bytes)?;
        let configuration = folder.file("nginx.conf");
        let root = folder.path().display();
        let text = format!(
            "daemon off; master_process off; user root; pid nginx.pid; error_log error.log;
events {{}}
http {{
  log_format who '$remote_addr $request_method';
  access_log access.log who;
  client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
  server {{
    listen {NGINX}; listen [::]:{NGINX};
    root {root};
    client_max_body_size 0;
    location = /up {{ dav_methods PUT; }}
  }}
}}
"
        );
        fs::write(&configuration, text)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder.path());
        command.arg("-e").arg(folder.file("error.log"));
        let process = netns.spawn(command.arg("-c").arg(&configuration))?;
        until(PATIENCE, || {
            let nginx = netns.enter(|| std::net::TcpStream::connect(("127.0.0.1", NGINX)));
            nginx.map(drop).context("nginx")
        })?;
        Ok(Nginx {
            folder,
            _process: process,
        })
    }
}

impl Nginx {
    /// Gets the file and sends it back; both times it arrives as it was.
    pub fn exchange(&self, cluster: &Cluster, server: SocketAddr) -> Result<()> {
        let (big, up) = (self.folder.file("big"), self.folder.file("up"));
        let down = self.folder.file("down");
        let url = |path: &str| format!("http://{server}/{path}");
        curl(cluster, &[Path::new("--output"), &down], &url("big"))?;
        run(Command::new("cmp").args([&big, &down]))?;
        curl(cluster, &[Path::new("--upload-file"), &down], &url("up"))?;
        run(Command::new("cmp").args([&big, &up]))?;
        // The next one is to make them anew.
        fs::remove_file(&up)?;
        fs::remove_file(&down)?;
        Ok(())
    }

    /// Who asked, the last one last: address and method.
    pub fn log(&self) -> Result<Vec<String>> {
        let log: PathBuf = self.folder.file("access.log");
        let text = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

fn curl(cluster: &Cluster, options: &[&Path], url: &str) -> Result<()> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail", "--globoff"]);
    // A stall is what a packet that fits nowhere looks like.
    curl.args(["--speed-time", "10", "--speed-limit", "1"]);
    cluster.client.run(curl.args(options).arg(url)).map(drop)
}

/// A process of a pod's, by the pod's uid.
fn inhabitant(uid: &str) -> Result<u32> {
    let cgroup = format!("/pod{uid}/");
    let numbers = fs::read_dir("/proc")?.flatten();
    let mut processes = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let lives = |process: &u32| {
        let cgroups = fs::read_to_string(format!("/proc/{process}/cgroup"));
        cgroups.is_ok_and(|text| text.contains(&cgroup))
    };
    let found = processes.find(lives);
    found.with_context(|| format!("no process of pod {uid}"))
}
