//! A machine within this one: this machine's files, on which nothing that is written stays (an overlay), a BPF
//! filesystem and a `/run` of its own, and a network namespace. Programs see it as the whole; processes are shared.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    balancer::PATIENCE,
    netns::{Folder, Netns, Process, until},
};

/// A mount namespace is gone with its last process: this one stays.
const SETUP: &str = r#"
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" root
cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t bpf bpf sys/fs/bpf
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
touch run/sandbox
exec sleep infinity
"#;

#[derive(Debug)]
pub struct Sandbox {
    netns: Netns,
    keeper: Process,
    folder: Folder,
}

impl Sandbox {
    /// Its network is that of `netns`.
    pub fn create(netns: &Netns) -> Result<Self> {
        let folder = Folder::create("sandbox")?;
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-ec",
                SETUP,
                "sh",
            ])
            .arg(folder.path())
            .stdin(Stdio::null());
        let sandbox = Self {
            netns: netns.clone(),
            keeper: netns.spawn(&mut command)?,
            folder,
        };
        until(PATIENCE, || {
            ensure!(sandbox.file("run/sandbox").exists(), "no sandbox yet");
            Ok(())
        })?;
        Ok(sandbox)
    }

    /// A file in it, for us outside. `path` is relative to its root.
    pub fn file(&self, path: &str) -> PathBuf {
        let own = Path::new("/proc").join(self.keeper.id().to_string());
        let root = self.root();
        own.join("root")
            .join(root.strip_prefix("/").unwrap_or(&root))
            .join(path)
    }

    /// As the keeper sees it.
    fn root(&self) -> PathBuf {
        self.folder.file("root")
    }

    /// A program in it, to be started by [`Self::spawn`].
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--target", &self.keeper.id().to_string()])
            .arg("chroot")
            .arg(self.root())
            .arg(program)
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            );
        command
    }

    pub fn spawn(&self, command: &mut Command) -> Result<Process> {
        self.netns.spawn(command)
    }

    /// Runs a program to its end, whatever that is.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        self.netns.output(self.command(program).args(arguments))
    }

    /// Runs a program that must succeed: what it prints.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.output(program, arguments)?;
        ensure!(
            output.status.success(),
            "{program} {arguments:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).context("output")
    }
}
