//! The tc programs at an interface's ingress and egress: as TCX links where the kernel has them (6.6), else as filters of
//! `clsact`.
//!
//! They come first in their rows: what XDP hands up is ours, and a foreign program that ends the row would hide it. Ours
//! leave everything else to the next. A filter has no pin; its priority and handle are how it is found again. `clsact`
//! may be shared, so whether we made it is remembered in the run folder.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    links::Link as _,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use aya_obj::generated::bpf_attach_type;

use super::{
    AttachError, How, Program, link,
    netlink::{self, EGRESS, Filter, INGRESS, Interface},
    pins::{Home, Root},
};

/// A side of an interface, and with it one of the two programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// What XDP handed up.
    Ingress,
    /// Replies of backends on this node.
    Egress,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The name that the kernel knows our program by.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Ingress => "millrace_tc",
            Self::Egress => "millrace_egress",
        }
    }

    pub(super) const fn home(self) -> Home {
        match self {
            Self::Ingress => Home::Tc,
            Self::Egress => Home::Egress,
        }
    }

    /// Where the kernel lists its filters.
    pub(super) const fn parent(self) -> u32 {
        match self {
            Self::Ingress => INGRESS,
            Self::Egress => EGRESS,
        }
    }

    pub(super) const fn of_clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    const fn of_tcx(self) -> bpf_attach_type {
        match self {
            Self::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
            Self::Egress => bpf_attach_type::BPF_TCX_EGRESS,
        }
    }

    /// As `tc filter` calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// `BPF_F_BEFORE`: in front of all others.
const FIRST: u32 = 1 << 3;
/// Before what people and CNIs usually take (from 1 upwards they are taken, but never this one with this handle).
const PRIORITY: u16 = 947;
const HANDLE: TcHandle = TcHandle::new(0, 0x4d4c);

/// Where the program goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TcChoice {
    /// TCX if the kernel has it.
    #[default]
    Best,
    /// `clsact`, as on kernels before 6.6.
    Clsact,
}

/// Puts a side's program on the interface.
pub(super) fn attach(
    root: &Root,
    run_folder: &Path,
    interface: &Interface,
    side: Side,
    choice: TcChoice,
    program: &mut SchedClassifier,
) -> Result<How, AttachError> {
    if choice == TcChoice::Best {
        let fd = program
            .fd()
            .and_then(|fd| Ok(fd.try_clone()?))
            .map_err(|error| AttachError::Load {
                program: side.program().into(),
                source: Box::new(error),
            })?;
        if let Some(how) = attach_tcx(root, interface, side, fd.as_fd())? {
            return Ok(how);
        }
    }
    attach_clsact(run_folder, interface, side, program)
}

/// `None`: the kernel has no TCX.
fn attach_tcx(
    root: &Root,
    interface: &Interface,
    side: Side,
    program: BorrowedFd<'_>,
) -> Result<Option<How>, AttachError> {
    let pin = root.link(side.home(), &interface.name);
    if let Some((pinned, info)) = pin.open()? {
        if info.ifindex == interface.index {
            link::replace(pinned.fd.as_fd(), program).map_err(AttachError::system(format!(
                "replace tc on {}",
                interface.name
            )))?;
            return Ok(Some(How::Replaced));
        }
        pin.remove()?;
    }
    match link::create(program, interface.index, side.of_tcx(), FIRST) {
        Ok(new) => {
            link::pin(new.as_fd(), &pin.path)
                .map_err(AttachError::system(pin.path.display().to_string()))?;
            Ok(Some(How::Attached))
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(AttachError::system(format!(
            "attach tc to {}",
            interface.name
        ))(error)),
    }
}

fn attach_clsact(
    run_folder: &Path,
    interface: &Interface,
    side: Side,
    program: &mut SchedClassifier,
) -> Result<How, AttachError> {
    let asked = || AttachError::system(format!("tc filters of {}", interface.name));
    if netlink::ingress_discipline(interface.index)
        .map_err(asked())?
        .is_none()
    {
        // The mark first: a clsact with a mark that we did not make would be worse than one of ours that stays.
        let mark = mark(run_folder, &interface.name);
        fs::write(&mark, b"").map_err(AttachError::system(mark.display().to_string()))?;
        aya::programs::tc::qdisc_add_clsact(&interface.name)
            .map_err(|error| failed(interface, error))?;
    }
    let link = match at_our_place(interface.index, side).map_err(asked())? {
        Some(filter) if filter.name == side.program() => {
            let link = our_filter(interface, side)?;
            (How::Replaced, program.attach_to_link(link))
        }
        Some(filter) => return Err(stranger(interface, side, &filter)),
        None => {
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle: HANDLE,
                classid: None,
            });
            let place = side.of_clsact();
            let link = program.attach_with_options(&interface.name, place, options);
            (How::Attached, link)
        }
    };
    let (how, id) = link;
    let link = id
        .and_then(|id| program.take_link(id))
        .map_err(|error| failed(interface, error))?;
    // The filter is to outlive this process; the link would take it away when it is dropped.
    std::mem::forget(link);
    Ok(how)
}

/// Removes our filters, and `clsact` if we made it and nobody else uses it. Says whether there was a filter.
pub(super) fn detach_clsact(run_folder: &Path, interface: &Interface) -> Result<bool, AttachError> {
    let asked = || AttachError::system(format!("tc filters of {}", interface.name));
    let mut found = false;
    for side in Side::BOTH {
        let filter = at_our_place(interface.index, side).map_err(asked())?;
        if filter.is_some_and(|filter| filter.name == side.program()) {
            our_filter(interface, side)?
                .detach()
                .map_err(|error| failed(interface, error))?;
            found = true;
        }
    }
    let mark = mark(run_folder, &interface.name);
    if mark.exists() {
        let mut others = netlink::filters(interface.index, INGRESS).map_err(asked())?;
        others.extend(netlink::filters(interface.index, EGRESS).map_err(asked())?);
        let discipline = netlink::ingress_discipline(interface.index).map_err(asked())?;
        if others.is_empty() && discipline.as_deref() == Some("clsact") {
            netlink::remove_clsact(interface.index).map_err(asked())?;
        }
        fs::remove_file(&mark).map_err(AttachError::system(mark.display().to_string()))?;
    }
    Ok(found)
}

fn our_filter(interface: &Interface, side: Side) -> Result<SchedClassifierLink, AttachError> {
    let place = side.of_clsact();
    SchedClassifierLink::attached(&interface.name, place, PRIORITY, HANDLE, None)
        .map_err(|error| failed(interface, error))
}

fn at_our_place(ifindex: u32, side: Side) -> io::Result<Option<Filter>> {
    let filters = netlink::filters(ifindex, side.parent())?;
    Ok(filters
        .into_iter()
        .find(|filter| (filter.priority, filter.handle) == (PRIORITY, u32::from(HANDLE))))
}

fn stranger(interface: &Interface, side: Side, filter: &Filter) -> AttachError {
    AttachError::ForeignProgram {
        interface: interface.name.clone(),
        program: Program {
            id: filter.program,
            name: filter.name.clone(),
        },
        removal: format!(
            "tc filter del dev {} {} pref {PRIORITY}",
            interface.name,
            side.name()
        ),
    }
}

fn failed(
    interface: &Interface,
    error: impl std::error::Error + Send + Sync + 'static,
) -> AttachError {
    AttachError::System {
        what: format!("attach tc to {}", interface.name),
        source: io::Error::other(error),
    }
}

fn mark(run_folder: &Path, interface: &str) -> PathBuf {
    run_folder.join(format!("clsact-{interface}"))
}
