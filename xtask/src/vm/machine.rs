//! A virtual machine in QEMU: boots a kernel with an image and runs shell scripts in it, one after another.
//!
//! The kernel's messages go to a file by the first serial port, scripts and their output travel by the second one.

use anyhow::{Context as _, Result, anyhow, bail};
use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

/// From QEMU's start to the first line of `init`. Emulated on a busy machine: 4 to 10 s.
const BOOT: Duration = Duration::from_mins(2);

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    Tcg,
}

/// How a VM is made.
#[derive(Debug, Clone)]
pub(crate) struct Boot<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) image: &'a Path,
    pub(crate) accelerator: Accelerator,
    pub(crate) memory_mib: u32,
    /// Words for the kernel's command line, such as `lockdown=confidentiality`.
    pub(crate) words: &'a str,
    pub(crate) nics: &'a [Nic],
    /// A file system; what the guest writes to it is gone with the guest.
    pub(crate) disk: Option<&'a Path>,
    /// File for the kernel's messages.
    pub(crate) console: &'a Path,
    /// Network namespace that QEMU runs in, where it has tap devices.
    pub(crate) netns: Option<&'a str>,
}

/// A virtio-net device.
#[derive(Debug, Clone)]
pub(crate) struct Nic {
    /// Last byte of its MAC.
    pub(crate) number: u8,
    pub(crate) wire: Wire,
}

/// What a NIC is connected to.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    /// A unix socket that this side makes, or finds. One pair of queues.
    Socket { path: PathBuf, makes_it: bool },
    /// A tap device of the namespace with this many queues. Without offloads nothing is left to it but frames.
    Tap {
        device: String,
        queues: u8,
        offloads: bool,
    },
}

pub(crate) struct Machine {
    qemu: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    console: PathBuf,
    jobs: u32,
    /// Seconds from the kernel's start to that of the first script, as the guest counts them.
    pub(crate) up: f64,
    /// Seconds from QEMU's start to the same moment.
    pub(crate) booted: f64,
}

impl Machine {
    pub(crate) fn boot(boot: &Boot<'_>) -> Result<Self> {
        Self::boot_within(boot, BOOT)
    }

    fn boot_within(boot: &Boot<'_>, patience: Duration) -> Result<Self> {
        let start = Instant::now();
        let mut qemu = command(boot)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("qemu-system-x86_64")?;
        let input = qemu.stdin.take().context("stdin")?;
        let output = qemu.stdout.take().context("stdout")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output
                .read_until(b'\n', &mut line)
                .is_ok_and(|read| read > 0)
            {
                let text = String::from_utf8_lossy(&line);
                if sender.send(text.trim_end().to_owned()).is_err() {
                    break;
                }
                line.clear();
            }
        });
        let mut machine = Self {
            qemu,
            input,
            lines,
            console: boot.console.to_owned(),
            jobs: 0,
            up: 0.0,
            booted: 0.0,
        };
        let deadline = start + patience;
        let line = loop {
            let line = machine.line(deadline, "boot")?;
            if line.starts_with("up ") {
                break line;
            }
        };
        machine.booted = start.elapsed().as_secs_f64();
        let up = line.split(' ').nth(1).and_then(|text| text.parse().ok());
        machine.up = up.context(line)?;
        Ok(machine)
    }

    /// Runs a shell script to its end and gives back what it said; an error if its status is not 0.
    pub(crate) fn run(&mut self, script: &str, patience: Duration) -> Result<String> {
        let mut said = String::new();
        let status = self.stream(script, patience, |line| {
            said.push_str(line);
            said.push('\n');
        })?;
        if status != 0 {
            bail!(
                "status {status} of:\n{script}\n{said}{}",
                self.console_tail()
            );
        }
        Ok(said)
    }

    /// Runs a shell script to its end, hands on its lines as they come, and gives back its status.
    pub(crate) fn stream(
        &mut self,
        script: &str,
        patience: Duration,
        mut line: impl FnMut(&str),
    ) -> Result<i32> {
        self.jobs += 1;
        let mark = format!("@job-{}@", self.jobs);
        writeln!(self.input, "{mark} {}", base64(script.as_bytes()))
            .context("a VM's serial port")?;
        self.input.flush()?;
        let deadline = Instant::now() + patience;
        loop {
            let said = self.line(deadline, script)?;
            if let Some(status) = said.strip_prefix(&mark) {
                return status.trim().parse().with_context(|| said.clone());
            }
            line(&said);
        }
    }

    fn line(&self, deadline: Instant, script: &str) -> Result<String> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).map_err(|error| {
            let what = match error {
                RecvTimeoutError::Timeout => "did not end in its time",
                RecvTimeoutError::Disconnected => "ended with its VM",
            };
            anyhow!("{script}: {what}; {}", self.console_tail())
        })
    }

    /// The last of the kernel's messages.
    fn console_tail(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(20)..];
        format!("console:\n{}", last.join("\n"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}

/// KVM where a guest really boots by it, else emulation. A device file does not say: under some hypervisors it opens
/// and the guest never gets anywhere.
pub(crate) fn accelerator(kernel: &Path, image: &Path, console: &Path) -> Accelerator {
    let kvm = Path::new("/dev/kvm");
    let opens = fs::File::options().read(true).write(true).open(kvm).is_ok();
    let boot = Boot {
        kernel,
        image,
        accelerator: Accelerator::Kvm,
        memory_mib: 1024,
        words: "",
        nics: &[],
        disk: None,
        console,
        netns: None,
    };
    // A guest under KVM is there within 2 s.
    if opens && Machine::boot_within(&boot, Duration::from_secs(8)).is_ok() {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    }
}

fn command(boot: &Boot<'_>) -> Command {
    let mut command = match boot.netns {
        Some(netns) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", netns, "qemu-system-x86_64"]);
            command
        }
        None => Command::new("qemu-system-x86_64"),
    };
    let (accelerator, cpu, own_words) = match boot.accelerator {
        Accelerator::Kvm => ("kvm", "host", ""),
        Accelerator::Tcg => ("tcg", EMULATED_CPU, SLOW_STRINGS_OFF),
    };
    let words = format!(
        "console=ttyS0 quiet mitigations=off panic=-1 net.ifnames=0 {own_words} {}",
        boot.words
    );
    command
        .args(["-accel", accelerator, "-cpu", cpu])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-m", &boot.memory_mib.to_string()])
        .arg("-kernel")
        .arg(boot.kernel)
        .arg("-initrd")
        .arg(boot.image)
        .args(["-append", words.trim_end()])
        .arg("-serial")
        .arg(format!("file:{}", boot.console.display()))
        .args(["-serial", "stdio"]);
    if let Some(disk) = boot.disk {
        let drive = "if=virtio,format=raw,snapshot=on";
        command.arg("-drive");
        command.arg(format!("{drive},file={}", disk.display()));
    }
    for nic in boot.nics {
        let id = format!("nic{}", nic.number);
        let mut device = format!(
            "virtio-net-pci,netdev={id},mac=52:54:00:00:00:{:02x},romfile=",
            nic.number
        );
        let netdev = match &nic.wire {
            Wire::Socket { path, makes_it } => {
                let server = if *makes_it { "on" } else { "off" };
                let path = path.display();
                format!("stream,id={id},server={server},addr.type=unix,addr.path={path}")
            }
            Wire::Tap {
                device: tap,
                queues,
                offloads,
            } => {
                // They stand in the way of native XDP.
                for offload in OFFLOADS.iter().filter(|_| !offloads) {
                    _ = write!(device, ",{offload}=off");
                }
                _ = write!(device, ",mq=on,vectors={}", 2 * queues + 2);
                format!(
                    "tap,id={id},ifname={tap},queues={queues},script=no,downscript=no,vhost=off"
                )
            }
        };
        command.args(["-netdev", &netdev, "-device", &device]);
    }
    command
}

/// All that QEMU can emulate but what costs it time. Copies by string instructions go a byte at a time there (`erms`,
/// `fsrm`): the verifier, which copies its state all the time, takes half as long by plain moves. Five levels of page
/// tables, and the checks and switches of address spaces, are work at each access or system call. `cx16` is off since
/// 6.12 once crashed in kmalloc behind its cmpxchg16b with QEMU 7.2, with flags that cannot be.
const EMULATED_CPU: &str = "max,la57=off,cx16=off,erms=off,fsrm=off,smap=off,smep=off,pcid=off";

/// Linux takes string instructions for fast (`rep_good`, bit 112 of its features) on every such CPU.
const SLOW_STRINGS_OFF: &str = "clearcpuid=112";

const OFFLOADS: [&str; 10] = [
    "csum",
    "gso",
    "guest_csum",
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "guest_ufo",
    "host_tso4",
    "host_tso6",
    "host_ecn",
];

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=group.len()].copy_from_slice(group);
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            if place <= group.len() {
                let digit = word >> (18 - 6 * place) & 63;
                text.push(char::from(DIGITS[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_remainder() {
        // RFC 4648, section 10.
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
