//! The packet path's object file, carried in this binary, and its way into the kernel.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramError, SchedClassifier, Xdp},
};

use super::{AttachError, layout::Layout, tc::Side, xdp};

/// The object that the build script built.
pub fn bytes() -> &'static [u8] {
    aya::include_bytes_aligned!(env!("MILLRACE_BPF_OBJECT"))
}

/// Loads all programs. Maps pinned in `folder` are used as they are: they must have been compared before. Maps that are
/// not there are made and pinned.
pub(super) fn load(folder: &Path, layouts: &[Layout], log_level: u8) -> Result<Ebpf, AttachError> {
    let mut loader = EbpfLoader::new();
    for map in layouts {
        loader
            .map_max_entries(&map.name, map.entries)
            .map_pin_path(&map.name, folder.join(&map.name));
    }
    // 0 lets the verifier remove every trace of logging; a program that never logs has no such constant.
    loader.override_global("AYA_LOG_LEVEL", &log_level, false);
    let mut ebpf = loader
        .load(bytes())
        .map_err(|error| failed("object", error))?;
    main(&mut ebpf)?
        .load()
        .map_err(|error| failed(xdp::NAME, error))?;
    for side in Side::BOTH {
        tc(&mut ebpf, side)?
            .load()
            .map_err(|error| failed(side.program(), error))?;
    }
    Ok(ebpf)
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
