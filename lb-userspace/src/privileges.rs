//! What the agent may do: the capabilities it works with, and no others.
//!
//! Capabilities belong to threads: each drops its own.

use aya::util::KernelVersion;
use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the agent keeps on a kernel of this version.
fn needed(kernel: KernelVersion) -> Vec<Capability> {
    let mut needed = vec![
        Capability::CAP_BPF,
        Capability::CAP_NET_ADMIN,
        Capability::CAP_PERFMON,
    ];
    // Before 5.8 CAP_SYS_ADMIN was all of BPF.
    if kernel < KernelVersion::new(5, 8, 0) {
        needed.push(Capability::CAP_SYS_ADMIN);
    }
    // Before 5.11 maps counted as locked memory.
    if kernel < KernelVersion::new(5, 11, 0) {
        needed.push(Capability::CAP_SYS_RESOURCE);
    }
    needed
}

/// Drops every capability that is not needed, for this thread and those it starts, and for good: the bounding set goes
/// along. Says which are left.
pub fn drop_unneeded() -> Result<String, CapsError> {
    let kernel = KernelVersion::current().unwrap_or(KernelVersion::new(5, 10, 0));
    let held = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = needed(kernel)
        .into_iter()
        .filter(|capability| held.contains(capability))
        .collect();
    // Without CAP_SETPCAP the bounding set stays as it is; nothing is gained by it without an exec.
    if held.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding)? {
            if !kept.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    let mut names: Vec<_> = kept.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(names.join(" "))
}

/// Takes as many file descriptors as the hard limit allows (the soft one stays at 1024 for `select`, which we do not
/// use), and says how many. Health checks need one each.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_err() {
        return limit.current.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_need_more() {
        assert_eq!(needed(KernelVersion::new(6, 1, 0)).len(), 3);
        assert!(needed(KernelVersion::new(5, 10, 0)).contains(&Capability::CAP_SYS_RESOURCE));
        assert!(needed(KernelVersion::new(5, 7, 0)).contains(&Capability::CAP_SYS_ADMIN));
    }
}
