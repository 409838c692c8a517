//! The router's ends of the nodes' wires, as NICs that take what their peers send by `XDP_TX`.
//!
//! A veth with GRO and without a program takes such frames into its ring and looks at them when an ordinary packet comes
//! along (`veth_xdp_flush` looks for a program; Linux 6.18). When the ring is full, nothing arrives any more.

use super::{layout::Layout, network};
use crate::run::quietly;
use anyhow::{Context as _, Result};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};
use std::fs;

/// `r0 = XDP_PASS; exit`
const PASS: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// Where the loader of `ip link` finds the program.
const SECTION: &str = "xdp";

/// `ip` makes folders in the BPF file system, for maps of programs that have some: in one that goes with it.
const OWN_BPF: &str = r#"mount -t bpf bpf /sys/fs/bpf && exec "$@""#;

/// Attaches a program that passes everything to the router's ends. It goes with them.
pub(super) fn take_everything(layout: &Layout) -> Result<()> {
    let file = layout.file("pass.o");
    fs::write(&file, program()?).with_context(|| file.display().to_string())?;
    for place in layout.places().skip(1) {
        let own = ["unshare", "--mount", "sh", "-c", OWN_BPF, "sh"];
        let link = ["ip", "link", "set", "dev", &place, "xdpdrv", "object"];
        quietly(
            network::inside(layout, "router", own.into_iter().chain(link))
                .arg(&file)
                .args(["section", SECTION]),
        )?;
    }
    Ok(())
}

/// As an ELF file.
fn program() -> Result<Vec<u8>> {
    let mut file = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    put(&mut file, SECTION, SectionKind::Text, "pass", &PASS);
    put(&mut file, "license", SectionKind::Data, "license", b"MIT\0");
    Ok(file.write()?)
}

/// A section of its own with one named thing in it.
fn put(file: &mut Object<'_>, section: &str, kind: SectionKind, name: &str, bytes: &[u8]) {
    let section = file.add_section(Vec::new(), section.into(), kind);
    let value = file.append_section_data(section, bytes, 8);
    file.add_symbol(Symbol {
        name: name.into(),
        value,
        size: bytes.len() as u64,
        kind: match kind {
            SectionKind::Text => SymbolKind::Text,
            _ => SymbolKind::Data,
        },
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
}
