//! The tc program at an interface's ingress: as a TCX link where the kernel has it (6.6), else as a filter of `clsact`.
//!
//! It comes first in the row: what XDP hands up is ours, and a foreign program that ends the row would hide it. Ours
//! leaves everything else to the next. A filter has no pin; its priority and handle are how it is found again. `clsact`
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

/// The name that the kernel knows our program by.
pub(super) const NAME: &str = "millrace_tc";

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

/// Puts the program on the interface's ingress.
pub(super) fn attach(
    root: &Root,
    run_folder: &Path,
    interface: &Interface,
    choice: TcChoice,
    program: &mut SchedClassifier,
) -> Result<How, AttachError> {
    if choice == TcChoice::Best {
        let fd = program
            .fd()
            .and_then(|fd| Ok(fd.try_clone()?))
            .map_err(|error| AttachError::Load {
                program: NAME.into(),
                source: Box::new(error),
            })?;
        if let Some(how) = attach_tcx(root, interface, fd.as_fd())? {
            return Ok(how);
        }
    }
    attach_clsact(run_folder, interface, program)
}

/// `None`: the kernel has no TCX.
fn attach_tcx(
    root: &Root,
    interface: &Interface,
    program: BorrowedFd<'_>,
) -> Result<Option<How>, AttachError> {
    let pin = root.link(Home::Tc, &interface.name);
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
    match link::create(
        program,
        interface.index,
        bpf_attach_type::BPF_TCX_INGRESS,
        FIRST,
    ) {
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
    let link = match at_our_place(interface.index).map_err(asked())? {
        Some(filter) if is_ours(&filter) => {
            let link = our_filter(interface)?;
            (How::Replaced, program.attach_to_link(link))
        }
        Some(filter) => return Err(stranger(interface, &filter)),
        None => {
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle: HANDLE,
                classid: None,
            });
            let ingress = TcAttachType::Ingress;
            let link = program.attach_with_options(&interface.name, ingress, options);
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

/// Removes our filter, and `clsact` if we made it and nobody else uses it. Says whether there was a filter.
pub(super) fn detach_clsact(run_folder: &Path, interface: &Interface) -> Result<bool, AttachError> {
    let asked = || AttachError::system(format!("tc filters of {}", interface.name));
    let found = at_our_place(interface.index)
        .map_err(asked())?
        .is_some_and(|filter| is_ours(&filter));
    if found {
        our_filter(interface)?
            .detach()
            .map_err(|error| failed(interface, error))?;
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

fn our_filter(interface: &Interface) -> Result<SchedClassifierLink, AttachError> {
    let ingress = TcAttachType::Ingress;
    SchedClassifierLink::attached(&interface.name, ingress, PRIORITY, HANDLE, None)
        .map_err(|error| failed(interface, error))
}

fn at_our_place(ifindex: u32) -> io::Result<Option<Filter>> {
    let filters = netlink::filters(ifindex, INGRESS)?;
    Ok(filters
        .into_iter()
        .find(|filter| (filter.priority, filter.handle) == (PRIORITY, u32::from(HANDLE))))
}

fn is_ours(filter: &Filter) -> bool {
    filter.name == NAME
}

fn stranger(interface: &Interface, filter: &Filter) -> AttachError {
    AttachError::ForeignProgram {
        interface: interface.name.clone(),
        program: Program {
            id: filter.program,
            name: filter.name.clone(),
        },
        removal: format!(
            "tc filter del dev {} ingress pref {PRIORITY}",
            interface.name
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
