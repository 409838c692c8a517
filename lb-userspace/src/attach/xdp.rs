//! The XDP program on an interface: attached once, replaced in one step, never in a stranger's place.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya_obj::generated::bpf_attach_type;

use super::{
    AttachError, How, Mode, Program, fit, link, name_of,
    netlink::{self, Interface},
    pins::{Home, Root},
};
use crate::net::{drivers, ethtool};

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE`
const GENERIC: u32 = 1 << 1;
const NATIVE: u32 = 1 << 2;

/// The name that the kernel knows our program by.
pub(super) const NAME: &str = "millrace_xdp";

/// Puts `program` on the interface.
pub(super) fn attach(
    root: &Root,
    interface: &Interface,
    mode: Mode,
    program: BorrowedFd<'_>,
    names: &BTreeMap<u32, String>,
) -> Result<How, AttachError> {
    let pin = root.link(Home::Xdp, &interface.name);
    let mut before = None;
    if let Some((pinned, info)) = pin.open()? {
        let now = interface.xdp.map(|xdp| Mode::of(xdp.generic));
        if info.ifindex == interface.index && now == Some(mode) {
            link::replace(pinned.fd.as_fd(), program).map_err(AttachError::system(format!(
                "replace on {}",
                interface.name
            )))?;
            return Ok(How::Replaced);
        }
        // The interface was made anew, or the mode changes, which no link can: the old link goes first.
        pin.remove()?;
        before = now.filter(|_| info.ifindex == interface.index);
    } else if let Some(xdp) = interface.xdp {
        return Err(stranger(interface, xdp.program, names));
    }
    match attach_new(interface, mode, program, names) {
        Ok(new) => {
            link::pin(new.as_fd(), &pin.path)
                .map_err(AttachError::system(pin.path.display().to_string()))?;
            Ok(How::Attached)
        }
        Err(error) => {
            // Better the old mode than none.
            if let Some(old) = before
                && let Ok(new) = attach_new(interface, old, program, names)
                && let Err(error) = link::pin(new.as_fd(), &pin.path)
            {
                tracing::warn!(interface = interface.name, %error, "the old XDP mode could not be kept");
            }
            Err(error)
        }
    }
}

fn attach_new(
    interface: &Interface,
    mode: Mode,
    program: BorrowedFd<'_>,
    names: &BTreeMap<u32, String>,
) -> Result<OwnedFd, AttachError> {
    const ENOTSUPP: i32 = 524;
    let flags = match mode {
        Mode::Native => NATIVE,
        Mode::Generic => GENERIC,
    };
    let error = match link::create(program, interface.index, bpf_attach_type::BPF_XDP, flags) {
        Ok(link) => return Ok(link),
        Err(error) => error,
    };
    let unfit = |what: String, fix: String| AttachError::Unfit {
        interface: interface.name.clone(),
        what,
        fix,
    };
    Err(match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | ENOTSUPP) => unfit(
            "its driver has no native XDP".into(),
            fit::without_native(&fit::release()).into(),
        ),
        Some(libc::EINVAL) if mode == Mode::Generic && !fit::has_generic(&fit::release()) => unfit(
            "this kernel takes no program as ours in generic XDP".into(),
            fit::without_native(&fit::release()).into(),
        ),
        Some(libc::EINVAL | libc::ERANGE | libc::E2BIG) if mode == Mode::Native => unfit(
            format!(
                "its driver refuses native XDP as it is set now (MTU {})",
                interface.mtu
            ),
            refusal(interface),
        ),
        Some(libc::EBUSY | libc::EEXIST) => {
            // Someone was faster.
            let now = netlink::interface(&interface.name).ok().flatten();
            let program = now.and_then(|now| now.xdp).map_or(0, |xdp| xdp.program);
            stranger(interface, program, names)
        }
        Some(libc::ENODEV) => AttachError::NoInterface(interface.name.clone()),
        _ => AttachError::system(format!("attach XDP to {}", interface.name))(error),
    })
}

/// What may help where a driver refuses. On a veth it is the other end's MTU that counts.
fn refusal(interface: &Interface) -> String {
    let name = &interface.name;
    let known = ethtool::driver(name).ok();
    let known = known.as_deref().and_then(drivers::known);
    let lower = match known {
        Some(drivers::Driver {
            name: "veth",
            max_mtu: Some(most),
            ..
        }) => format!("lower the MTU of its other end to {most}"),
        Some(drivers::Driver {
            max_mtu: Some(most),
            ..
        }) if *most < interface.mtu => format!("`ip link set dev {name} mtu {most}`"),
        _ => format!(
            "lower its MTU below the driver's XDP limit (`ip link set dev {name} mtu 1500`)"
        ),
    };
    let other = fit::without_native(&fit::release());
    format!("{lower}, see `dmesg`; or {other}")
}

fn stranger(interface: &Interface, id: u32, names: &BTreeMap<u32, String>) -> AttachError {
    let name = name_of(id).or_else(|| names.get(&id).cloned());
    let program = Program {
        id,
        name: name.unwrap_or_default(),
    };
    if program.name == NAME {
        return AttachError::SecondAgent {
            interface: interface.name.clone(),
            program,
        };
    }
    AttachError::ForeignProgram {
        interface: interface.name.clone(),
        program,
        removal: format!("ip link set dev {} xdp off", interface.name),
    }
}
