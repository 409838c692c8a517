//! Checks of the kernel, of the process's rights, and of the agent.

use super::{Facts, Line};
use crate::{attach::kernel_version, desired, state::Bypass};

/// What the packet path needs and since when the kernel has it (design.md, section 8).
const NEEDED: [((u8, u8), &str); 4] = [
    ((5, 5), "arrays mapped into memory"),
    ((5, 7), "replacing the program of a link"),
    ((5, 9), "links for XDP, and detaching them"),
    ((5, 10), "redirecting by the neighbour table"),
];

/// What is used where it is there.
const USED: [((u8, u8), &str); 2] = [
    ((5, 12), "the route's MTU from look-ups"),
    ((6, 6), "TCX (clsact serves instead)"),
];

pub(super) fn kernel(facts: &Facts) -> Line {
    const NAME: &str = "kernel";
    let release = &facts.kernel;
    let Some(version) = kernel_version(release) else {
        return Line::limit(
            NAME,
            format!("\"{release}\" is no version that can be read"),
            "uname -r",
        );
    };
    let lacks = |features: &[((u8, u8), &str)]| -> Vec<String> {
        let missing = features.iter().filter(|(since, _)| version < *since);
        missing
            .map(|((major, minor), what)| format!("{what} ({major}.{minor})"))
            .collect()
    };
    let missing = lacks(&NEEDED);
    if !missing.is_empty() {
        return Line::unfit(
            NAME,
            format!("{release} lacks {}", missing.join(", ")),
            "boot a kernel from 5.10 on",
        );
    }
    let missing = lacks(&USED);
    if missing.is_empty() {
        Line::ok(NAME, release.clone())
    } else {
        Line::limit(
            NAME,
            format!("{release} lacks {}", missing.join(", ")),
            "boot a kernel from 6.6 on",
        )
    }
}

pub(super) fn privileges(facts: &Facts) -> Line {
    const NAME: &str = "privileges";
    if facts.missing_capabilities.is_empty() {
        return Line::ok(NAME, "BPF, NET_ADMIN, PERFMON");
    }
    Line::unfit(
        NAME,
        format!("missing {}", facts.missing_capabilities.join(", ")),
        "sudo millrace doctor",
    )
}

pub(super) fn lockdown(facts: &Facts) -> Line {
    const NAME: &str = "lockdown";
    match facts.lockdown.as_deref() {
        None => Line::ok(NAME, "the kernel has none"),
        // LOCKDOWN_BPF_READ_KERNEL forbids programs to read kernel memory, which ours do not; the rest of BPF stays.
        Some("confidentiality") => Line::limit(
            NAME,
            "confidentiality: tracing of the kernel is off, `bpftool` shows less; the packet path needs none of it",
            "boot with lockdown=integrity",
        ),
        Some(mode) => Line::ok(NAME, mode),
    }
}

pub(super) fn bpf_filesystem(facts: &Facts) -> Line {
    const NAME: &str = "bpffs";
    if facts.bpf_filesystem {
        Line::ok(NAME, "mounted")
    } else {
        Line::limit(
            NAME,
            "not mounted; the agent mounts it at its start, if it may",
            "mount -t bpf bpf /sys/fs/bpf",
        )
    }
}

pub(super) fn jit(facts: &Facts) -> Line {
    const NAME: &str = "jit";
    match facts.jit {
        Some(false) => Line::limit(
            NAME,
            "BPF programs are interpreted, many times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(true) => Line::ok(NAME, "on"),
        None => Line::ok(NAME, "cannot be read: always on, or another namespace's"),
    }
}

pub(super) fn type_information(facts: &Facts) -> Line {
    const NAME: &str = "btf";
    if facts.type_information {
        Line::ok(NAME, "the kernel has its types")
    } else {
        Line::limit(
            NAME,
            "the kernel does not carry its types: `bpftool` shows less; the packet path does not need them",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        )
    }
}

/// What would be wrong with the configuration on this host.
pub(super) fn configuration(facts: &Facts) -> Vec<Line> {
    const NAME: &str = "config";
    let config = match &facts.config {
        None => return Vec::new(),
        Some(Err(faults)) => {
            let faults = faults.lines();
            return faults
                .map(|fault| Line::unfit(NAME, fault, "millrace check FILE"))
                .collect();
        }
        Some(Ok(config)) => config,
    };
    let refusals = desired::check(config, &facts.network);
    if refusals.is_empty() {
        return vec![Line::ok(
            NAME,
            format!("{} services", config.services.len()),
        )];
    }
    refusals
        .into_iter()
        // `nat` has lines of its own.
        .filter(|refusal| !refusal.field.starts_with("nat."))
        .map(|refusal| {
            let found = format!("{}: {}", refusal.field, refusal.what);
            Line::unfit(NAME, found, refusal.fix)
        })
        .collect()
}

/// The agent gives a sign of life each second.
const LATE: u64 = 10;

pub(super) fn heartbeat(facts: &Facts) -> Line {
    const NAME: &str = "heartbeat";
    let Some(agent) = facts.agent else {
        return Line::ok(NAME, "nothing of ours is in the kernel");
    };
    match agent.bypass {
        Some(Bypass::Command) => {
            return Line::limit(
                NAME,
                "bypass is on: everything passes",
                "millrace bypass off",
            );
        }
        Some(Bypass::Unconfirmed) => {
            return Line::limit(
                NAME,
                "the trial ended unconfirmed: everything passes",
                "millrace bypass off",
            );
        }
        _ => {}
    }
    let start = "millrace run --config FILE";
    match (agent.silence, agent.bypass) {
        (None, _) => Line::limit(NAME, "no agent has ever given a sign of life", start),
        (Some(silence), Some(_)) => Line::limit(
            NAME,
            format!(
                "the agent is silent for {} s: everything passes",
                silence.as_secs()
            ),
            start,
        ),
        (Some(silence), None) if silence.as_secs() >= LATE => Line::limit(
            NAME,
            format!(
                "the agent is silent for {} s: what it left goes on forwarding, health and routes stand still",
                silence.as_secs()
            ),
            start,
        ),
        (Some(silence), None) => Line::ok(NAME, format!("{} s ago", silence.as_secs())),
    }
}
