//! Kernel modules in the order in which they can be loaded.

use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A module as the kernel takes it: not compressed, its signature behind it.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The wanted modules of a kernel, each after those it needs. What is not there as a file is taken for built in.
pub(super) fn ordered(folder: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    list(&folder.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    for name in wanted {
        add(name, &files, &mut order)?;
    }
    Ok(order)
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<Module>) -> Result<()> {
    let Some(file) = files.get(name) else {
        return Ok(());
    };
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let content = read(file)?;
    for needed in needs(&content) {
        add(&needed, files, order)?;
    }
    order.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

/// Files by module name, which has `_` where file names may have `-`.
fn list(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(file).with_context(|| file.display().to_string()),
    };
    let output = Command::new(tool)
        .args(["--decompress", "--stdout"])
        .arg(file)
        .output()
        .context(tool)?;
    ensure!(
        output.status.success(),
        "{tool}: {}: {}",
        file.display(),
        output.status
    );
    Ok(output.stdout)
}

/// The field `depends` of a module's `.modinfo`: NUL-terminated `key=value` strings.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_modules_are_named() {
        let module = b"\x7fELF\0license=GPL\0depends=nf_defrag-ipv4,libcrc32c\0retpoline=Y\0";
        assert_eq!(needs(module), ["nf_defrag_ipv4", "libcrc32c"]);
        assert_eq!(needs(b"\0depends=\0x=y\0"), [""; 0]);
        assert_eq!(needs(b"no module"), [""; 0]);
    }
}
