//! A kernel, an image for it, and a place for what its VMs leave.

use super::{
    image::Image,
    machine::{self, Accelerator, Boot, Machine, Nic},
};
use crate::setup::Kernel;
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

/// The maps of an agent with default limits, and the image.
const MEMORY_MIB: u32 = 1536;

/// A folder of this run, gone with the value.
pub(crate) struct Work(PathBuf);

impl Work {
    pub(crate) fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("millrace-vm-{}", process::id()));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// What VMs of one kernel have in common.
pub(crate) struct Lab<'a> {
    pub(crate) work: &'a Path,
    pub(crate) kernel: &'a Kernel,
    image: PathBuf,
    pub(crate) accelerator: Accelerator,
    /// For the kernel's command line.
    pub(crate) words: &'a str,
    disk: Option<&'a Path>,
}

impl<'a> Lab<'a> {
    /// Writes the image for this kernel. `accelerator`: as an earlier lab found it.
    pub(crate) fn open(
        work: &'a Path,
        kernel: &'a Kernel,
        image: &Image,
        accelerator: Option<Accelerator>,
    ) -> Result<Self> {
        let file = work.join(format!("{}.cpio", kernel.release));
        image.write(kernel, &file)?;
        let console = work.join("kvm.console");
        let accelerator =
            accelerator.unwrap_or_else(|| machine::accelerator(&kernel.image, &file, &console));
        Ok(Self {
            work,
            kernel,
            image: file,
            accelerator,
            words: "",
            disk: None,
        })
    }

    /// The same with these words on the kernel's command line.
    pub(crate) fn with_words(self, words: &'a str) -> Self {
        Self { words, ..self }
    }

    /// The same with a disk, which no VM changes for others.
    pub(crate) fn with_disk(self, disk: &'a Path) -> Self {
        Self {
            disk: Some(disk),
            ..self
        }
    }

    /// Boots a VM; `name` is its own within this lab.
    pub(crate) fn boot(&self, name: &str, nics: &[Nic], netns: Option<&str>) -> Result<Machine> {
        let console = self.work.join(format!("{name}.console"));
        Machine::boot(&Boot {
            kernel: &self.kernel.image,
            image: &self.image,
            accelerator: self.accelerator,
            memory_mib: MEMORY_MIB,
            words: self.words,
            nics,
            disk: self.disk,
            console: &console,
            netns,
        })
        .with_context(|| format!("{} on {}", name, self.kernel.release))
    }

    pub(crate) fn kernel_at_least(&self, major: u32, minor: u32) -> bool {
        let mut numbers = self.kernel.release.split(['.', '-', '+']);
        let mut number = || {
            numbers
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        (number(), number()) >= (major, minor)
    }
}
