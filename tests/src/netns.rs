//! Network namespaces that live as long as a value, and real programs started inside them.
//!
//! A namespace is entered by one thread only (`setns`), never by the process: whatever the thread opens or spawns stays
//! in the namespace, the mounts stay the host's (so `/sys/fs/bpf` is the same folder everywhere), and tests can run side
//! by side. Names carry the process id, so that what a killed run left behind can be told apart and swept away.

use std::{
    fmt, fs,
    fs::File,
    io::Write as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    process::{Pid, Signal, kill_process, test_kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// First part of the name of every namespace and folder of these tests.
const PREFIX: &str = "mlt";

/// A name no other run and no other part of this run has: `mlt-PID-NUMBER-label`.
pub fn unique_name(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}-{}-{number}-{label}", std::process::id())
}

/// A network namespace, removed when its last clone is dropped.
#[derive(Clone)]
pub struct Netns(Arc<Inner>);

struct Inner {
    name: String,
    file: File,
    /// Whether it ends with the value.
    ours: bool,
}

impl Netns {
    /// Makes a namespace with `lo` up and no IPv6 duplicate address detection (it takes a second per address).
    pub fn create(label: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let name = unique_name(label);
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let netns = Self::open(name, true)?;
        for scope in ["all", "default", "lo"] {
            netns.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), "0")?;
            netns.sysctl(&format!("net.ipv6.conf.{scope}.accept_ra"), "0")?;
            netns.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
        }
        netns.ip(["link set lo up"])?;
        Ok(netns)
    }

    /// A namespace that someone else made and removes.
    pub fn existing(name: &str) -> Result<Self> {
        Self::open(name.to_owned(), false)
    }

    /// That of a process, which `ip` has no name for.
    pub fn of(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/ns/net");
        Self::file(Path::new(&path), path.clone(), false)
    }

    fn open(name: String, ours: bool) -> Result<Self> {
        let path = Path::new("/run/netns").join(&name);
        Self::file(&path, name, ours)
    }

    fn file(path: &Path, name: String, ours: bool) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Ok(Self(Arc::new(Inner { name, file, ours })))
    }

    /// As `ip netns` and `nsenter --net=/run/netns/NAME` know it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets it opens and programs it spawns stay inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.0.file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("setns needs root");
                work()
            });
            inside.join().expect("thread inside the namespace")
        })
    }

    /// Starts a program inside.
    pub fn spawn(&self, command: &mut Command) -> Result<Process> {
        let shown = format!("{command:?}");
        let child = self
            .enter(|| command.spawn())
            .with_context(|| shown.clone())?;
        Ok(Process { child, shown })
    }

    /// Runs a program inside to its end, whatever that is.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let shown = format!("{command:?}");
        self.enter(|| command.stdin(Stdio::null()).output())
            .context(shown)
    }

    /// Runs a program inside, which must succeed; gives back what it printed.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        let shown = format!("{command:?}");
        checked(&shown, &self.output(command)?)
    }

    /// `ip` commands without the leading `ip`, all in one run.
    pub fn ip<'a>(&self, commands: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let lines: Vec<&str> = commands.into_iter().collect();
        let mut batch = Command::new("ip")
            .args(["-n", &self.0.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = batch.stdin.take().context("stdin of ip")?;
        stdin.write_all((lines.join("\n") + "\n").as_bytes())?;
        drop(stdin);
        checked(&format!("ip -batch: {lines:?}"), &batch.wait_with_output()?).map(drop)
    }

    /// Sets one of the namespace's own `net.*` settings, named with dots. `/proc/sys/net` belongs to the namespace of the
    /// thread that opens it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = PathBuf::from(format!("/proc/sys/{}", key.replace('.', "/")));
        self.enter(|| fs::write(&path, value))
            .with_context(|| format!("{key}={value}"))
    }

    /// Makes `device` behave like a NIC on a wire: full checksums and VLAN tags inside the frame, no segmentation
    /// left to the "hardware". `gro` starts the device's NAPI, without which nothing can be redirected to it by XDP.
    pub fn like_a_wire(&self, device: &str) -> Result<()> {
        let options = "tx off txvlan off rxvlan off gso off gro on";
        let mut ethtool = Command::new("ethtool");
        ethtool.args(["-K", device]).args(options.split(' '));
        self.run(&mut ethtool).map(drop)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.ours {
            remove(&self.name);
        }
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

/// A running program, killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    shown: String,
}

impl Process {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: the program has no chance to clean up or say goodbye.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, then its exit status.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(patience)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = Pid::from_raw(self.child.id() as i32).context("process id")?;
        Ok(kill_process(id, signal)?)
    }

    /// Its exit status if it ends within `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let shown = self.shown.clone();
        until(patience, || {
            self.exited()?
                .with_context(|| format!("still runs: {shown}"))
        })
    }

    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_ok_and(|status| status.is_none()) {
            drop(self.kill());
        }
    }
}

/// A folder of this run, removed with all it holds on drop.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn create(label: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(unique_name(label));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// How many times longer everything may take here than on the machine that the patience was measured on:
/// `MILLRACE_SLOWNESS`, which is set where the CPU is an emulated one.
pub(crate) fn slowness() -> u32 {
    std::env::var("MILLRACE_SLOWNESS").map_or(1, |text| text.parse().unwrap_or(1))
}

/// Tries until it works or `patience` is over; the last error is the answer then.
pub fn until<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let patience = patience * slowness();
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {patience:?}")));
            }
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Runs a program on the host, which must succeed.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    checked(&shown, &command.output().with_context(|| shown.clone())?)
}

/// What a program printed that must have succeeded.
pub(crate) fn checked(shown: &str, output: &Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "{shown}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes the namespaces and folders of test processes that no longer exist.
fn sweep() {
    for folder in [
        "/run/netns".into(),
        std::env::temp_dir(),
        "/sys/fs/bpf".into(),
    ] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !owner(&name).is_ok_and(|id| test_kill_process(id).is_err()) {
                continue;
            }
            if entry.path().starts_with("/run/netns") {
                remove(&name);
            } else {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }
}

/// The process that made the namespace or folder of this name.
fn owner(name: &str) -> Result<Pid> {
    let mut parts = name.split('-');
    if parts.next() != Some(PREFIX) {
        bail!("not ours");
    }
    let id = parts.next().context("process id")?.parse()?;
    Pid::from_raw(id).context("process id")
}

/// Ends what still runs in a namespace of ours and removes it.
fn remove(name: &str) {
    let inside = run(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    for id in inside
        .lines()
        .filter_map(|id| Pid::from_raw(id.trim().parse().ok()?))
    {
        kill_process(id, Signal::KILL).ok();
    }
    drop(run(Command::new("ip").args(["netns", "del", name])));
}
