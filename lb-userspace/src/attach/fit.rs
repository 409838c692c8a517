//! Whether this machine and this process can do it at all.

use aya::util::KernelVersion;
use caps::{CapSet, Capability};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::AttachError;

/// Oldest kernel whose features the packet path needs (design.md section 8).
const OLDEST: (u8, u8) = (5, 10);

/// Before, the stack refuses a program with a map of devices that could have programs of their own, as ours has
/// (`generic_xdp_install`; Linux commit 2ea5eabaf04a).
const GENERIC_SINCE: (u8, u8) = (5, 15);

/// `BPF_*` commands and attaching; `PERFMON` for what the verifier grants only with it.
const NEEDED: [(Capability, &str); 3] = [
    (Capability::CAP_BPF, "CAP_BPF"),
    (Capability::CAP_NET_ADMIN, "CAP_NET_ADMIN"),
    (Capability::CAP_PERFMON, "CAP_PERFMON"),
];

pub(super) fn check() -> Result<(), AttachError> {
    let release = release();
    if let Some(version) = kernel_version(&release)
        && version < OLDEST
    {
        return Err(AttachError::KernelTooOld {
            release,
            needed: OLDEST,
        });
    }
    let missing = missing_capabilities();
    if !missing.is_empty() {
        return Err(AttachError::NoPrivileges(missing));
    }
    lift_memlock_limit();
    Ok(())
}

/// What this thread lacks; `CAP_SYS_ADMIN` stands for BPF and PERFMON.
pub fn missing_capabilities() -> Vec<&'static str> {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    let admin = held.contains(&Capability::CAP_SYS_ADMIN);
    NEEDED
        .iter()
        .filter(|(capability, _)| {
            let covered = admin && *capability != Capability::CAP_NET_ADMIN;
            !held.contains(capability) && !covered
        })
        .map(|(_, name)| *name)
        .collect()
}

/// Of the running kernel.
pub(super) fn release() -> String {
    let uname = rustix::system::uname();
    uname.release().to_string_lossy().into_owned()
}

/// Whether a kernel of this release runs our program in the stack.
pub fn has_generic(release: &str) -> bool {
    kernel_version(release).is_none_or(|version| version >= GENERIC_SINCE)
}

/// What to do where a driver does not run our program, on a kernel of this release.
pub fn without_native(release: &str) -> &'static str {
    if has_generic(release) {
        "set `xdp.mode: generic` (slower), or use another interface"
    } else {
        "use another interface, or boot a kernel from 5.15 on and set `xdp.mode: generic` (slower)"
    }
}

/// Major and minor number of a release such as `6.1.0-28-amd64`.
pub fn kernel_version(release: &str) -> Option<(u8, u8)> {
    let mut numbers = release.trim().split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Below 5.11 maps count against the limit of locked memory, whose default holds none of ours.
fn lift_memlock_limit() {
    if KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(5, 11, 0)) {
        return;
    }
    let none = Rlimit {
        current: None,
        maximum: None,
    };
    if let Err(error) = setrlimit(Resource::Memlock, none) {
        tracing::warn!(%error, "limit of locked memory stays; maps may not fit (CAP_SYS_RESOURCE lifts it)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_numbers() {
        assert_eq!(kernel_version("6.1.0-28-amd64\n"), Some((6, 1)));
        assert_eq!(kernel_version("5.4.0"), Some((5, 4)));
        assert_eq!(kernel_version("6.18-rc1"), Some((6, 18)));
        assert_eq!(kernel_version(""), None);
        assert!(has_generic("5.15.0") && !has_generic("5.10.0-32-cloud-amd64"));
        assert!((5, 4) < OLDEST && (5, 10) >= OLDEST && (6, 1) >= OLDEST);
    }
}
