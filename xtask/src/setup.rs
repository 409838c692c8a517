//! `cargo xtask setup`: what the build, the tests and the demo need beyond Rust itself.
//!
//! In: what the machine has. Out: Debian packages, the library sources of exactly this compiler (`-Z build-std`) and
//! `bpf-linker`, installed once. What was fetched or built stays in a cache outside the checkout, keyed by version.
//! Speaks on stderr only: stdout belongs to the verb that called.

mod apt_sources;
mod debian;
mod debian_root;
mod kernels;
mod linker;
mod machine;
mod packages;
mod rust_src;
mod rustc_web;

use crate::Outcome;
use anyhow::{Result, bail};
pub(crate) use debian_root::debian_root;
pub(crate) use kernels::{Kernel, kernel, series as kernel_series};
use machine::Machine;
use packages::Use;
use std::{
    io::{IsTerminal as _, Write as _, stdin},
    path::PathBuf,
    process::ExitCode,
};

#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Args {
    /// Install without asking
    #[arg(long)]
    yes: bool,
    /// Only report; exit with 1 if something is lacking
    #[arg(long, conflicts_with = "yes")]
    check: bool,
}

pub(crate) fn run(args: Args) -> Outcome {
    let machine = Machine::probe()?;
    let lacking = Lacking::probe(&machine, Use::Everything);
    if args.check || lacking.is_empty() {
        lacking.report(&machine);
        return Ok(if lacking.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    install(&machine, &lacking, args.yes)?;
    Ok(ExitCode::SUCCESS)
}

/// What the other verbs call: silent when nothing is lacking.
pub(crate) fn ensure() -> Result<()> {
    ensure_for(Use::Namespaces)
}

/// The same, with what virtual machines need.
pub(crate) fn ensure_for_vms() -> Result<()> {
    ensure_for(Use::VirtualMachines)
}

/// The same, with what a Kubernetes cluster needs.
pub(crate) fn ensure_for_cluster() -> Result<()> {
    ensure_for(Use::Cluster)
}

/// Whatever a whole test run needs.
pub(crate) fn ensure_for_tests() -> Result<()> {
    ensure_for(Use::Everything)
}

/// Downloads and built tools, outside the checkout: they outlive it.
pub(crate) fn cache() -> Result<PathBuf> {
    Ok(Machine::probe()?.cache)
}

fn ensure_for(purpose: Use) -> Result<()> {
    let machine = Machine::probe()?;
    let lacking = Lacking::probe(&machine, purpose);
    if lacking.is_empty() {
        return Ok(());
    }
    install(&machine, &lacking, false)
}

/// Like [`ensure`], with the C++ compiler that none but the fuzzers want.
pub(crate) fn ensure_with_cpp() -> Result<()> {
    ensure()?;
    let machine = Machine::probe()?;
    if machine.program(packages::CPP.name).is_some() {
        return Ok(());
    }
    let lacking = Lacking {
        purpose: Use::Namespaces,
        programs: vec![&packages::CPP],
        sources: false,
        linker: false,
    };
    install(&machine, &lacking, false)
}

/// Whether the machine's compiler has its own sources: clippy can check the BPF target by no other's.
pub(crate) fn has_own_sources() -> Result<bool> {
    Ok(rust_src::present(&Machine::probe()?))
}

struct Lacking {
    purpose: Use,
    programs: Vec<&'static packages::Program>,
    sources: bool,
    linker: bool,
}

impl Lacking {
    fn probe(machine: &Machine, purpose: Use) -> Self {
        Self {
            purpose,
            programs: packages::lacking(machine, purpose),
            sources: !rust_src::present(machine) && !rustc_web::present(machine),
            linker: !linker::present(machine),
        }
    }

    fn is_empty(&self) -> bool {
        self.programs.is_empty() && !self.sources && !self.linker
    }

    fn report(&self, machine: &Machine) {
        for program in packages::programs(self.purpose) {
            let lacking = self.programs.iter().any(|p| p.name == program.name);
            line(
                lacking,
                program.name,
                &format!("Debian package {}", program.package(machine)),
            );
        }
        let sources = format!(
            "library of rustc {}, {}",
            machine.rustc,
            machine.library().display()
        );
        line(self.sources, "rust-src", &sources);
        line(
            self.linker,
            "bpf-linker",
            &format!("version {}", linker::VERSION),
        );
    }

    /// What will be done, and where.
    fn plan(&self, machine: &Machine) {
        eprintln!("setup: this machine lacks");
        if !self.programs.is_empty() {
            let names = packages::names(&self.programs, machine).join(" ");
            eprintln!("  Debian packages    {names}: by apt-get (no service is started)");
        }
        if self.sources {
            let library = machine.library();
            eprintln!(
                "  library sources    of rustc {}: into {}",
                machine.rustc,
                library.display()
            );
        }
        if self.linker {
            let bin = machine.cargo_bin.display();
            eprintln!(
                "  bpf-linker {}  by cargo install: into {bin} (1-2 minutes)",
                linker::VERSION
            );
        }
        eprintln!("downloads are kept in {}", machine.cache.display());
    }
}

fn line(lacking: bool, name: &str, what: &str) {
    eprintln!(
        "{}  {name:<11} {what}",
        if lacking { "lacks" } else { "ok   " }
    );
}

fn install(machine: &Machine, lacking: &Lacking, yes: bool) -> Result<()> {
    lacking.plan(machine);
    if !yes && stdin().is_terminal() && !agreed()? {
        bail!("nothing was installed; `cargo xtask setup --check` lists what is lacking");
    }
    if !lacking.programs.is_empty() {
        packages::install(&lacking.programs, machine)?;
    }
    if lacking.sources {
        install_sources(machine)?;
    }
    if lacking.linker {
        linker::install(machine)?;
    }
    let left = Lacking::probe(machine, lacking.purpose);
    if !left.is_empty() {
        left.report(machine);
        bail!("setup ran through, and the above is lacking still");
    }
    eprintln!("setup: done");
    Ok(())
}

fn install_sources(machine: &Machine) -> Result<()> {
    let Err(own) = rust_src::install(machine) else {
        return Ok(());
    };
    eprintln!("setup: {own:#}");
    let Err(web) = rustc_web::install(machine) else {
        return Ok(());
    };
    bail!(
        "no library sources of rustc {version} ({own:#}; Debian's rustc-web: {web:#}). By hand: where the network \
         reaches further, run `rustup component add rust-src` with rustc {version}, or unpack Debian's package rust-src \
         of that version, and copy the folder `library` (with core/src/lib.rs in it) to {}",
        machine.library().display(),
        version = machine.rustc,
    )
}

fn agreed() -> Result<bool> {
    eprint!("go on? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(matches!(
        answer.trim().to_lowercase().as_str(),
        "" | "y" | "yes"
    ))
}
