//! Builds the packet path for the kernel, so that the agent carries it in its own file.
//!
//! In: the crates `lb-ebpf` and `lb-common`, or a finished object named by `MILLRACE_BPF_OBJECT`. Out: the compile-time
//! variable `MILLRACE_BPF_OBJECT`, the path of the object that `include_bytes_aligned!` takes in.
//!
//! The object is built by a second cargo in a target folder of its own, `bpf` below the outer one: all profiles and
//! clippy share it, and its file lock is not the one that the outer cargo holds.

use std::{
    env,
    error::Error,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

const TARGET: &str = "bpfel-unknown-none";
const OBJECT_VARIABLE: &str = "MILLRACE_BPF_OBJECT";

fn main() -> ExitCode {
    match object() {
        Ok(path) => {
            println!("cargo::rustc-env={OBJECT_VARIABLE}={}", path.display());
            ExitCode::SUCCESS
        }
        Err(lines) => {
            for line in lines.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Path of the object in `OUT_DIR`.
fn object() -> Result<PathBuf, String> {
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let built = match env::var_os(OBJECT_VARIABLE) {
        Some(given) => {
            println!("cargo::rerun-if-changed={}", given.display());
            PathBuf::from(given)
        }
        None => build(&out_dir)?,
    };
    let kept = out_dir.join("millrace-bpf.o");
    copy_without_dwarf(&built, &kept)
        .map_err(|e| format!("BPF object {}: {e}", built.display()))?;
    Ok(kept)
}

/// What the kernel reads is BTF. DWARF, which BTF was made of, is two thirds of the object, and its relocations are what
/// most of reading it is.
fn copy_without_dwarf(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let object = fs::read(from)?;
    let mut object = Builder::read(&*object)?;
    for section in &mut object.sections {
        let name = section.name.strip_prefix(b".rel").unwrap_or(&section.name);
        section.delete = name.starts_with(b".debug_");
    }
    // Symbols go with what they are in.
    object.delete_orphans();
    // LLVM has one table for the names of sections and symbols; what writes the copy wants two.
    let names = object.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut copy = Vec::new();
    object.write(&mut copy)?;
    fs::write(to, copy)?;
    Ok(())
}

fn build(out_dir: &Path) -> Result<PathBuf, String> {
    let crate_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let root = crate_dir
        .parent()
        .ok_or("lb-userspace lies in no workspace")?;
    for input in [
        "lb-ebpf/src",
        "lb-ebpf/Cargo.toml",
        "lb-common/src",
        "lb-common/Cargo.toml",
        ".cargo/config.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    let path = path_with_cargo_bin()?;
    let compiler = compiler()?;
    require_linker(&path)?;

    let target_dir = outer_target_dir(out_dir)?.join("bpf");
    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os() {
        if name.to_str().is_none_or(leaks) {
            cargo.env_remove(name);
        }
    }
    let output = cargo
        .current_dir(root)
        .env("PATH", path)
        .env("RUSTC", &compiler)
        .env("RUSTC_BOOTSTRAP", "1")
        .args([
            "build",
            "--locked",
            "--release",
            "--package",
            "lb-ebpf",
            "--bin",
            "millrace-bpf",
        ])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .arg("--config")
        .arg(remapped(root, &compiler)?)
        .output()
        .map_err(|e| format!("cargo for the BPF object: {e}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "the BPF object does not build ({}):\n{text}",
            output.status
        ));
    }
    Ok(target_dir.join(TARGET).join("release/millrace-bpf"))
}

/// The setting that makes the object's debug information name files as any machine would, so that the object is the same
/// wherever it is built. It joins the flags of `.cargo/config.toml`.
fn remapped(root: &Path, compiler: &OsString) -> Result<String, String> {
    let mut folders = vec![(sysroot(compiler)?, "rust"), (root.to_path_buf(), ".")];
    folders.extend(cargo_home().map(|home| (home, "cargo")));
    let flags = folders
        .iter()
        .map(|(from, to)| format!("'--remap-path-prefix={}={to}'", from.display()));
    let flags: Vec<_> = flags.collect();
    Ok(format!("target.{TARGET}.rustflags=[{}]", flags.join(", ")))
}

/// Whether a variable of the outer build would change the inner one: flags and wrappers (clippy's is one) meant for the
/// host, profile and target settings, and what cargo tells this script about this crate. The jobserver
/// (`CARGO_MAKEFLAGS`), `CARGO_HOME`, network and registry settings stay.
fn leaks(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "CLIPPY_ARGS",
        "CARGO_INCREMENTAL",
        "TARGET",
        "HOST",
        "OPT_LEVEL",
        "PROFILE",
        "DEBUG",
        "NUM_JOBS",
        "OUT_DIR",
    ];
    const PREFIXES: &[&str] = &[
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "DEP_",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The folder that cargo marks as its target folder, upwards from `OUT_DIR` (which lies four or five levels below it,
/// depending on `--target`).
fn outer_target_dir(out_dir: &Path) -> Result<&Path, String> {
    out_dir
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .or_else(|| out_dir.ancestors().nth(4))
        .ok_or_else(|| format!("no target folder above {}", out_dir.display()))
}

/// `cargo install` puts the linker into cargo's own folder, which Debian's cargo has not on PATH.
fn path_with_cargo_bin() -> Result<OsString, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(cargo_home().map(|home| home.join("bin")));
    env::join_paths(dirs).map_err(|e| format!("PATH: {e}"))
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// `-Z build-std` compiles `core` from the sources of exactly the compiler that builds: the machine's own where they are
/// installed, else the one that set-up keeps in its cache together with its sources.
fn compiler() -> Result<OsString, String> {
    let own = variable("RUSTC")?;
    let core = sysroot(&own)?.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if core.is_file() {
        return Ok(own);
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::home_dir().map(|home| home.join(".cache")));
    cache
        .map(|cache| cache.join("millrace/rustc-web/rustc"))
        .filter(|script| script.is_file())
        .map(OsString::from)
        .ok_or_else(|| {
            let core = core.display();
            format!("no library sources of this compiler at {core}: run `cargo xtask setup`")
        })
}

fn sysroot(compiler: &OsString) -> Result<PathBuf, String> {
    let output = Command::new(compiler)
        .args(["--print", "sysroot"])
        .output()
        .map_err(|e| format!("{}: {e}", compiler.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

fn require_linker(path: &OsString) -> Result<(), String> {
    if env::split_paths(path).any(|dir| dir.join("bpf-linker").is_file()) {
        return Ok(());
    }
    Err("bpf-linker is not on PATH: run `cargo xtask setup`".into())
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}
