//! Programs of the distribution that tests and demo call.

use super::machine::{Machine, is_root, run};
use anyhow::{Result, bail};
use std::{collections::BTreeSet, process::Command};

pub(super) struct Program {
    pub(super) name: &'static str,
    debian: &'static str,
}

impl Program {
    pub(super) fn package(&self, machine: &Machine) -> &'static str {
        // Ubuntu ships bpftool with its kernels; the generic package brings the one for the running kernel.
        if self.name == "bpftool" && machine.distribution.id == "ubuntu" {
            return "linux-tools-generic";
        }
        self.debian
    }
}

/// What programs are wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Demo, bench and the tests on this kernel.
    Namespaces,
    /// The same, and other kernels.
    VirtualMachines,
    /// The same as the first, and Kubernetes.
    Cluster,
    /// A whole test run.
    Everything,
}

pub(super) fn programs(purpose: Use) -> impl Iterator<Item = &'static Program> {
    let (vms, cluster): (&[_], &[_]) = match purpose {
        Use::Namespaces => (&[], &[]),
        Use::VirtualMachines => (VM_PROGRAMS, &[]),
        Use::Cluster => (&[], CLUSTER_PROGRAMS),
        Use::Everything => (VM_PROGRAMS, CLUSTER_PROGRAMS),
    };
    PROGRAMS.iter().chain(vms).chain(cluster)
}

const VM_PROGRAMS: &[Program] = &[
    Program {
        name: "qemu-system-x86_64",
        debian: "qemu-system-x86",
    },
    Program {
        name: "busybox",
        debian: "busybox-static",
    },
    Program {
        name: "mmdebstrap",
        debian: "mmdebstrap",
    },
    Program {
        name: "mkfs.ext4",
        debian: "e2fsprogs",
    },
    Program {
        name: "strip",
        debian: "binutils",
    },
    Program {
        name: "xz",
        debian: "xz-utils",
    },
];

/// Kubernetes' own programs are no packages of Debian's.
const CLUSTER_PROGRAMS: &[Program] = &[
    Program {
        name: "containerd",
        debian: "containerd",
    },
    Program {
        name: "runc",
        debian: "runc",
    },
    // Beside all paths, so by its place.
    Program {
        name: "/usr/lib/cni/bridge",
        debian: "containernetworking-plugins",
    },
    Program {
        name: "buildah",
        debian: "buildah",
    },
    Program {
        name: "iptables",
        debian: "iptables",
    },
    Program {
        name: "ipset",
        debian: "ipset",
    },
    Program {
        name: "openssl",
        debian: "openssl",
    },
    Program {
        name: "hostname",
        debian: "hostname",
    },
    Program {
        name: "nsenter",
        debian: "util-linux",
    },
];

const PROGRAMS: &[Program] = &[
    Program {
        name: "bpftool",
        debian: "bpftool",
    },
    Program {
        name: "nft",
        debian: "nftables",
    },
    Program {
        name: "ethtool",
        debian: "ethtool",
    },
    Program {
        name: "ip",
        debian: "iproute2",
    },
    Program {
        name: "nginx",
        debian: "nginx-light",
    },
    Program {
        name: "iperf3",
        debian: "iperf3",
    },
    Program {
        name: "dnsmasq",
        debian: "dnsmasq-base",
    },
    Program {
        name: "dig",
        debian: "bind9-dnsutils",
    },
    Program {
        name: "conntrack",
        debian: "conntrack",
    },
    Program {
        name: "tcpdump",
        debian: "tcpdump",
    },
    Program {
        name: "ping",
        debian: "iputils-ping",
    },
    Program {
        name: "curl",
        debian: "curl",
    },
    Program {
        name: "sysctl",
        debian: "procps",
    },
];

/// Not among [`PROGRAMS`]: asked for by name.
pub(super) const CPP: Program = Program {
    name: "c++",
    debian: "g++",
};

pub(super) fn lacking(machine: &Machine, purpose: Use) -> Vec<&'static Program> {
    programs(purpose)
        .filter(|program| machine.program(program.name).is_none())
        .collect()
}

pub(super) fn names(programs: &[&Program], machine: &Machine) -> Vec<&'static str> {
    let names: BTreeSet<_> = programs
        .iter()
        .map(|program| program.package(machine))
        .collect();
    names.into_iter().collect()
}

pub(super) fn install(programs: &[&Program], machine: &Machine) -> Result<()> {
    let names = names(programs, machine);
    if machine.program("apt-get").is_none() {
        let programs: Vec<_> = programs.iter().map(|program| program.name).collect();
        bail!(
            "this machine has no apt-get: install {} by its own package manager (in Debian: {}), then run this again",
            programs.join(", "),
            names.join(" ")
        );
    }
    let mut command = if is_root() {
        Command::new("sh")
    } else if machine.program("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        sudo.arg("sh");
        sudo
    } else {
        bail!(
            "installing packages needs root, and there is no sudo: run `apt-get install {}` as root",
            names.join(" ")
        );
    };
    eprintln!("setup: apt-get install {}", names.join(" "));
    run(command.arg("-c").arg(SCRIPT).arg("sh").args(&names))
}

/// Debian packages start their services when they are installed and enable them for the next boot (of ours nginx and
/// containerd do).
/// A policy-rc.d that answers 101 is Debian's documented way to forbid the first; whoever has one keeps it. The second
/// is taken back, if the service was not there before. Unpacking the packages into a folder instead would leave their
/// dependencies to us.
///
/// A fresh container has no package lists and an old machine stale ones: fetch them only when the first try fails.
const SCRIPT: &str = r#"
set -e
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if ! [ -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
had=
for service in nginx containerd; do
    if command -v $service > /dev/null; then had="$had $service"; fi
done
install() { apt-get install --yes --quiet --no-install-recommends "$@"; }
install "$@" || { apt-get update --quiet && install "$@"; }
for service in nginx containerd; do
    case "$had" in *$service*) continue ;; esac
    if command -v $service >/dev/null && command -v systemctl >/dev/null; then
        systemctl disable --quiet $service.service || true
    fi
done
"#;
