//! The Debian package: what is in it, and that it installs, serves, is upgraded and leaves nothing behind. `cargo xtask
//! test` makes the package and names it in `MILLRACE_DEB`.

use std::{
    env, fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    balancer::PATIENCE,
    clients, is_root,
    netns::{Folder, Process, run, unique_name},
    sandbox::Sandbox,
    servers::HTTP,
    stage::{self, Servers, Way},
    topology::{Family, Shape, Topology},
};

/// The package; says what is missing without one.
fn package() -> Option<PathBuf> {
    let named = env::var_os("MILLRACE_DEB").map(PathBuf::from);
    if named.is_none() {
        eprintln!("skipped: MILLRACE_DEB");
    }
    named
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Everything in the package, unpacked; control files below `DEBIAN`.
fn unpacked(package: &Path) -> Result<Folder> {
    let folder = Folder::create("package")?;
    run(Command::new("dpkg-deb")
        .arg("-R")
        .args([package, folder.path()]))?;
    Ok(folder)
}

#[test]
fn the_package_holds_what_a_machine_needs_and_no_more() -> Result<()> {
    let Some(package) = package() else {
        return Ok(());
    };
    let listing = run(Command::new("dpkg-deb").arg("-c").arg(&package))?;
    let mut files = Vec::new();
    for line in listing.lines() {
        let mut fields = line.split_whitespace();
        let (mode, owner) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let name = fields.last().context("a name")?.trim_start_matches("./");
        ensure!(owner == "root/root", "{line}");
        let expected = match name {
            _ if mode.starts_with('d') => "drwxr-xr-x",
            "usr/sbin/millrace" => "-rwxr-xr-x",
            _ => "-rw-r--r--",
        };
        ensure!(mode == expected, "{line}");
        if !mode.starts_with('d') {
            files.push(name.to_owned());
        }
    }
    let verbs: Vec<_> = files
        .extract_if(.., |name| name.starts_with("usr/share/man/man8/millrace-"))
        .collect();
    for verb in ["run", "status", "detach", "explain"] {
        let page = format!("usr/share/man/man8/millrace-{verb}.8.gz");
        ensure!(verbs.contains(&page), "no {page}");
    }
    files.sort();
    assert_eq!(
        files,
        [
            "etc/millrace/example.yaml",
            "usr/lib/systemd/system/millrace.service",
            "usr/sbin/millrace",
            "usr/share/bash-completion/completions/millrace",
            "usr/share/doc/millrace/changelog.Debian.gz",
            "usr/share/doc/millrace/changelog.gz",
            "usr/share/doc/millrace/config.md",
            "usr/share/doc/millrace/copyright",
            "usr/share/doc/millrace/third-party.gz",
            "usr/share/fish/vendor_completions.d/millrace.fish",
            "usr/share/man/man8/millrace.8.gz",
            "usr/share/zsh/vendor-completions/_millrace",
        ]
    );
    Ok(())
}

#[test]
fn the_control_files_are_whole() -> Result<()> {
    let Some(package) = package() else {
        return Ok(());
    };
    let folder = unpacked(&package)?;
    let control = text(&folder.file("DEBIAN/control"))?;
    ensure!(
        !control.contains('@') || control.matches('@').count() == 1,
        "{control}"
    );
    for field in ["Package: millrace", "Architecture: amd64", "Version: "] {
        ensure!(control.contains(field), "{control}");
    }
    // Static: it depends on nothing.
    ensure!(!control.contains("Depends:"), "{control}");
    run(Command::new("md5sum")
        .args(["--check", "--quiet", "DEBIAN/md5sums"])
        .current_dir(folder.path()))?;
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh")
            .arg("-n")
            .arg(folder.file("DEBIAN").join(script)))?;
    }
    for conffile in text(&folder.file("DEBIAN/conffiles"))?.lines() {
        let path = folder.path().join(conffile.trim_start_matches('/'));
        ensure!(path.is_file(), "{conffile} is not there");
    }
    let third_party = folder.file("usr/share/doc/millrace/third-party.gz");
    let notices = run(Command::new("gzip").arg("-dc").arg(third_party))?;
    ensure!(notices.contains("\naya 0."), "{}", &notices[..200]);
    Ok(())
}

#[test]
fn the_binary_is_static_and_tells_nothing_of_its_builder() -> Result<()> {
    let Some(package) = package() else {
        return Ok(());
    };
    let folder = unpacked(&package)?;
    let binary = fs::read(folder.file("usr/sbin/millrace"))?;
    let number = |at: usize, length: usize| {
        let bytes = binary[at..at + length].iter().rev();
        bytes.fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    // ELF-64: offset, size and number of the program headers; their type stands first. 3 is PT_INTERP, which names the
    // dynamic linker.
    ensure!(binary.starts_with(b"\x7fELF\x02\x01"), "no ELF of 64 bits");
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    ensure!(
        (0..count).all(|header| number(table + header * size, 4) != 3),
        "not static"
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("root")?;
    for path in [Some(root.to_path_buf()), env::home_dir()]
        .into_iter()
        .flatten()
    {
        let path = path.display().to_string();
        // A home folder alone may be a word that others use.
        let needle = format!("{path}/.").into_bytes();
        let needles = [needle, format!("{path}/lb-").into_bytes()];
        for needle in needles {
            let found = binary.windows(needle.len()).any(|window| window == needle);
            ensure!(!found, "{} is in it", String::from_utf8_lossy(&needle));
        }
    }
    Ok(())
}

#[test]
fn systemd_takes_the_unit() -> Result<()> {
    let Some(package) = package() else {
        return Ok(());
    };
    let analyze = Command::new("systemd-analyze").arg("--version").output();
    if analyze.is_err() {
        eprintln!("skipped: systemd-analyze");
        return Ok(());
    }
    let folder = unpacked(&package)?;
    let unit = folder.file("usr/lib/systemd/system/millrace.service");
    // It looks for the program where the unit says.
    let program = folder.file("usr/sbin/millrace").display().to_string();
    let here = folder.file("millrace.service");
    fs::write(&here, text(&unit)?.replace("/usr/sbin/millrace", &program))?;
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&here)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    // Units of the machine itself are read along; only ours is under test.
    let ours: Vec<_> = said
        .lines()
        .filter(|line| line.contains("millrace"))
        .collect();
    assert_eq!(ours, Vec::<&str>::new());
    Ok(())
}

/// An agent that runs as its unit says, and the socket by which it says how far it is.
struct Agent {
    process: Process,
    manager: UnixDatagram,
}

impl Agent {
    /// Returns when it says that it is ready.
    fn start(sandbox: &Sandbox, topology: &Topology) -> Result<Self> {
        let unit = text(&sandbox.file("usr/lib/systemd/system/millrace.service"))?;
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="));
        let words: Vec<_> = line.context("ExecStart")?.split(' ').collect();
        let name = unique_name("notify");
        let address = SocketAddr::from_abstract_name(&name)?;
        let netns = &topology.balancer.netns;
        let manager = netns.enter(|| UnixDatagram::bind_addr(&address))?;
        manager.set_read_timeout(Some(PATIENCE))?;
        let mut command = sandbox.command(words[0]);
        command
            .args(&words[1..])
            .env("NOTIFY_SOCKET", format!("@{name}"));
        let agent = Self {
            process: sandbox.spawn(&mut command)?,
            manager,
        };
        agent.hear("READY=1")?;
        Ok(agent)
    }

    /// Ends it as a service manager does.
    fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(PATIENCE)?;
        ensure!(status.success(), "{status}");
        self.hear("STOPPING=1")
    }

    fn hear(&self, expected: &str) -> Result<()> {
        let mut buffer = [0; 256];
        let length = self
            .manager
            .recv(&mut buffer)
            .context(expected.to_owned())?;
        let heard = String::from_utf8_lossy(&buffer[..length]);
        ensure!(heard.lines().next() == Some(expected), "{heard}");
        Ok(())
    }
}

/// The same package, one revision later.
fn next_revision(package: &Path, folder: &Folder) -> Result<PathBuf> {
    let tree = folder.file("tree");
    run(Command::new("dpkg-deb").arg("-R").arg(package).arg(&tree))?;
    let control = tree.join("DEBIAN/control");
    let old = text(&control)?;
    let version = old.lines().find_map(|line| line.strip_prefix("Version: "));
    let version = version.context("Version")?;
    fs::write(&control, old.replace(version, &format!("{version}+test1")))?;
    let next = folder.file("next.deb");
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Znone", "--build"])
        .args([&tree, &next]))?;
    Ok(next)
}

#[test]
fn it_installs_serves_is_upgraded_and_leaves_the_host_as_it_was() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let Some(package) = package() else {
        return Ok(());
    };
    let topology = Topology::build(Shape::OneArm, 2)?;
    let folder = Folder::create("upgrade")?;
    let _servers: Vec<_> = topology
        .backends
        .iter()
        .map(|host| Servers::start(host, &folder, Way::Nat))
        .collect::<Result<_>>()?;
    let netns = &topology.balancer.netns;
    let attached = || netns.run(Command::new("bpftool").args(["net", "show"]));
    let before = attached()?;
    let sandbox = Sandbox::create(netns)?;
    let dpkg =
        |arguments: &[&str]| sandbox.run("dpkg", &[&["--force-unsafe-io"], arguments].concat());
    fs::copy(&package, sandbox.file("tmp/first.deb"))?;
    fs::copy(
        next_revision(&package, &folder)?,
        sandbox.file("tmp/next.deb"),
    )?;

    dpkg(&["-i", "/tmp/first.deb"])?;
    ensure!(attached()? == before, "the installation attached something");
    // The example is a good one.
    sandbox.run("millrace", &["check", "/etc/millrace/example.yaml"])?;

    let configuration = stage::configuration(Way::Nat, Shape::OneArm, &topology.backends);
    let file = sandbox.file("etc/millrace/millrace.yaml");
    fs::write(&file, configuration.to_string())?;
    let agent = Agent::start(&sandbox, &topology)?;
    // What is ready serves the very first connection.
    let vips = Family::BOTH.map(|family| std::net::SocketAddr::new(family.vip(), HTTP));
    for vip in vips {
        let answers = clients::http(topology.client(), vip, 100, 2);
        ensure!(
            answers.failed() == 0 && answers.answered() == 100,
            "{answers:?}"
        );
    }

    let going = AtomicBool::new(true);
    let (agent, answers) = thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            clients::http_while(topology.client(), vips[0], 2, || {
                going.load(Ordering::Relaxed)
            })
        });
        let upgraded = (|| {
            dpkg(&["-i", "/tmp/next.deb"])?;
            // What the script asks systemd for.
            agent.stop()?;
            Agent::start(&sandbox, &topology)
        })();
        going.store(false, Ordering::Relaxed);
        let answers = traffic.join().expect("clients");
        upgraded.map(|agent| (agent, answers))
    })?;
    ensure!(
        answers.failed() == 0 && answers.answered() > 0,
        "{answers:?}"
    );

    let refused = sandbox.output("dpkg", &["-r", "millrace"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success(), "removed under a running agent");
    ensure!(said.contains("stop it first"), "{said}");
    let answers = clients::http(topology.client(), vips[1], 100, 2);
    ensure!(answers.failed() == 0, "{answers:?}");

    agent.stop()?;
    let answers = clients::http(topology.client(), vips[0], 100, 2);
    ensure!(answers.failed() == 0, "nobody forwards: {answers:?}");
    dpkg(&["-r", "millrace"])?;
    assert_eq!(attached()?, before);
    for gone in ["usr/sbin/millrace", "sys/fs/bpf/millrace", "run/millrace"] {
        ensure!(!sandbox.file(gone).exists(), "{gone} is left");
    }
    ensure!(sandbox.file("etc/millrace/example.yaml").exists());
    dpkg(&["-P", "millrace"])?;
    ensure!(!sandbox.file("etc/millrace/example.yaml").exists());
    // The user's own.
    ensure!(file.exists());
    Ok(())
}
