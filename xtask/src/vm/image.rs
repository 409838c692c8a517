//! The first root of a test VM, made of this machine's own programs: nothing is fetched, nothing is built.
//!
//! Programs lie in `/usr/bin` with the shared libraries they ask for, busybox stands in for all others, and
//! `init.sh` is process 1.

use super::{cpio::Archive, modules};
use crate::setup::Kernel;
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io::BufWriter,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

const INIT: &str = include_str!("init.sh");
/// The same for a VM whose root is on a disk.
const INIT_OF_DISK: &str = include_str!("init_of_disk.sh");
/// Runs the jobs, in either.
const JOBS: &str = include_str!("jobs.sh");

/// What each VM needs to be spoken to, and what our programs and the harness ask of a kernel.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
    "failover",
    "veth",
    "tun",
    "bridge",
    "8021q",
    "bonding",
    "dummy",
    "ipip",
    "sit",
    "ip6_tunnel",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nft_counter",
    "nft_ct",
];

/// Where an image has what goes to the same place in the root on a VM's disk.
pub(crate) const PUT: &str = "/put";

/// Files by their path in the VM.
#[derive(Default)]
pub(crate) struct Image {
    files: BTreeMap<String, Content>,
    links: BTreeMap<String, String>,
}

enum Content {
    Of(PathBuf),
    Text(String, u32),
}

impl Image {
    /// A shell, busybox and `init`.
    pub(crate) fn new() -> Result<Self> {
        let mut image = Self::default();
        let busybox = find("busybox")?;
        let list = output(Command::new(&busybox).arg("--list"))?;
        for applet in list.lines() {
            image
                .links
                .insert(format!("/bin/{applet}"), "busybox".to_owned());
        }
        image
            .files
            .insert("/bin/busybox".to_owned(), Content::Of(busybox));
        // Busybox's own shell prefers its applets to programs.
        image.program("dash")?;
        image
            .links
            .insert("/bin/sh".to_owned(), "/usr/bin/dash".to_owned());
        image.text("/init", INIT, 0o755);
        image.text("/jobs", JOBS, 0o755);
        image.text("/etc/passwd", "root:x:0:0:root:/srv:/bin/sh\n", 0o644);
        image.text("/etc/group", "root:x:0:\n", 0o644);
        image.text("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644);
        image.text("/srv/.keep", "", 0o644);
        Ok(image)
    }

    /// Only what brings up a Debian root with systemd from the VM's disk; [`PUT`] and below are put into that root.
    pub(crate) fn of_disk() -> Result<Self> {
        let mut image = Self::new()?;
        image.text("/init", INIT_OF_DISK, 0o755);
        image.text("/disk/.keep", "", 0o644);
        image.text(
            &format!("{PUT}/etc/systemd/system/jobs.service"),
            include_str!("jobs.service"),
            0o644,
        );
        image.text(&format!("{PUT}/srv/jobs"), JOBS, 0o755);
        image.enable("jobs.service", "../jobs.service");
        // Or systemd takes the first boot for an installation that wants to ask its user.
        let id = format!("{:032x}\n", 1);
        image.text(&format!("{PUT}/etc/machine-id"), &id, 0o444);
        Ok(image)
    }

    /// Makes a unit start with the root on the disk.
    pub(crate) fn enable(&mut self, unit: &str, target: &str) {
        let wants = format!("{PUT}/etc/systemd/system/multi-user.target.wants");
        let link = format!("{wants}/{unit}");
        self.links.insert(link, target.to_owned());
    }

    /// A program of this machine, by its name.
    pub(crate) fn program(&mut self, name: &str) -> Result<()> {
        let file = find(name)?;
        self.executable(&format!("/usr/bin/{name}"), &file)
    }

    /// Any program, with its libraries.
    pub(crate) fn executable(&mut self, path: &str, file: &Path) -> Result<()> {
        for library in libraries(file)? {
            self.file(&library.display().to_string(), &library);
        }
        self.file(path, file);
        Ok(())
    }

    /// A file as it is.
    pub(crate) fn file(&mut self, path: &str, file: &Path) {
        self.files
            .insert(path.to_owned(), Content::Of(file.to_owned()));
    }

    pub(crate) fn text(&mut self, path: &str, text: &str, mode: u32) {
        self.files
            .insert(path.to_owned(), Content::Text(text.to_owned(), mode));
    }

    /// Writes the archive for a kernel, with its modules in it.
    pub(crate) fn write(&self, kernel: &Kernel, to: &Path) -> Result<()> {
        let out = File::create(to).with_context(|| to.display().to_string())?;
        let mut archive = Archive::new(BufWriter::new(out));
        let modules = modules::ordered(&kernel.modules, MODULES)?;
        let mut folders = BTreeSet::new();
        let mounts = ["/dev", "/proc", "/sys", "/tmp", "/run", "/modules"].map(str::to_owned);
        let paths = self.files.keys().chain(self.links.keys());
        for path in paths.map(String::as_str) {
            let parents = Path::new(path).ancestors().skip(1);
            folders.extend(parents.map(|parent| parent.display().to_string()));
        }
        folders.extend(mounts);
        // The root is there already. Names sort behind those they begin with.
        for folder in folders.iter().filter(|folder| *folder != "/") {
            archive.folder(folder)?;
        }
        archive.character_device("/dev/console", (5, 1))?;
        for (path, content) in &self.files {
            match content {
                Content::Text(text, mode) => archive.file(path, *mode, text.as_bytes())?,
                Content::Of(file) => {
                    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
                    let mode = fs::metadata(file)?.permissions().mode();
                    archive.file(path, mode, &bytes)?;
                }
            }
        }
        for (path, target) in &self.links {
            if !self.files.contains_key(path) {
                archive.link(path, target)?;
            }
        }
        let mut order = String::new();
        for module in &modules {
            archive.file(
                &format!("/modules/{}.ko", module.name),
                0o644,
                &module.content,
            )?;
            order.push_str(&module.name);
            order.push('\n');
        }
        archive.file("/modules/order", 0o644, order.as_bytes())?;
        archive.finish().with_context(|| to.display().to_string())
    }
}

/// A program's file, by PATH and by the folders that a plain user's PATH leaves out.
fn find(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let beside = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(beside)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("no program {name}: `cargo xtask setup`"))
}

/// Shared libraries of a program and its loader, as the loader names them; none for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let ldd = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8_lossy(&ldd.stdout);
    ensure!(!text.contains("not found"), "{}: {text}", program.display());
    let path = |line: &str| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(PathBuf::from)
    };
    Ok(text.lines().filter_map(path).collect())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
