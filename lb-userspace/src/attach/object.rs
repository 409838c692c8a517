//! The packet path's object file, carried in this binary, and its way into the kernel.

use std::{iter, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::ProgramArray,
    programs::{ProgramError, SchedClassifier, Xdp},
};

use super::{AttachError, Options, layout::Layout, tc::Side, xdp};

/// What the XDP program calls for packets that came through tunnels, and the array that it calls by.
const TUNNEL: &str = "millrace_tunnel";
const PROGRAMS: &str = "PROGRAMS";

/// In one place: each use of a constant may have a copy of its own.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MILLRACE_BPF_OBJECT"));

/// The object that the build script built.
pub fn bytes() -> &'static [u8] {
    OBJECT
}

/// Loads all programs that are wanted. Maps pinned in `folder` are used as they are: they must have been compared before.
/// Maps that are not there are made and pinned.
pub(super) fn load(
    folder: &Path,
    layouts: &[Layout],
    options: &Options,
) -> Result<Ebpf, AttachError> {
    let mut loader = EbpfLoader::new();
    for map in layouts {
        loader
            .map_max_entries(&map.name, map.entries)
            .map_pin_path(&map.name, folder.join(&map.name));
    }
    // 0 lets the verifier remove every trace of logging; a program that never logs has no such constant.
    loader.override_global("AYA_LOG_LEVEL", &options.log_level, false);
    let mut ebpf = loader
        .load(bytes())
        .map_err(|error| failed("object", error))?;
    let tunnel = options.tunnels.then_some(TUNNEL);
    for name in iter::once(xdp::NAME).chain(tunnel) {
        let program: &mut Xdp = program(&mut ebpf, name)?;
        program.load().map_err(|error| failed(name, error))?;
    }
    for side in Side::BOTH {
        tc(&mut ebpf, side)?
            .load()
            .map_err(|error| failed(side.program(), error))?;
    }
    Ok(ebpf)
}

/// Gives the XDP program what it calls, if that is loaded. Those that run already call it from now on: what they do is of
/// the same ABI.
pub fn link(ebpf: &mut Ebpf) -> Result<(), AttachError> {
    let tunnel: &mut Xdp = program(ebpf, TUNNEL)?;
    let tunnel = match tunnel.fd() {
        Ok(tunnel) => tunnel.try_clone().map_err(Into::into),
        // What an agent with tunnels left there is called for packets of its tunnels only.
        Err(ProgramError::NotLoaded) => return Ok(()),
        Err(error) => Err(error),
    };
    let tunnel = tunnel.map_err(|error| failed(TUNNEL, error))?;
    let map = ebpf
        .map_mut(PROGRAMS)
        .ok_or_else(|| failed(PROGRAMS, std::io::Error::other("not in the object")))?;
    let mut programs = ProgramArray::try_from(map).map_err(|error| failed(PROGRAMS, error))?;
    programs
        .set(0, &tunnel, 0)
        .map_err(|error| failed(PROGRAMS, error))
}

pub(super) fn main(ebpf: &mut Ebpf) -> Result<&mut Xdp, AttachError> {
    program(ebpf, xdp::NAME)
}

pub(super) fn tc(ebpf: &mut Ebpf, side: Side) -> Result<&mut SchedClassifier, AttachError> {
    program(ebpf, side.program())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, AttachError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| failed(name, std::io::Error::other("not in the object")))?
        .try_into()
        .map_err(|error| failed(name, error))
}

pub(super) fn failed(
    program: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> AttachError {
    AttachError::Load {
        program: program.to_owned(),
        source: Box::new(error),
    }
}
