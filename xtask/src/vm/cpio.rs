//! The archive that a Linux kernel unpacks as its first root: cpio in the "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{Result, Write};

/// File types and modes as in `st_mode`.
const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;
const DEVICE: u32 = 0o020_600;

pub(super) struct Archive<W: Write> {
    out: W,
    written: usize,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub(super) const fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            inode: 0,
        }
    }

    pub(super) fn folder(&mut self, path: &str) -> Result<()> {
        self.entry(path, FOLDER, (0, 0), &[])
    }

    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, LINK, (0, 0), target.as_bytes())
    }

    /// `mode`: the permission bits.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, FILE | mode & 0o7777, (0, 0), content)
    }

    pub(super) fn character_device(&mut self, path: &str, number: (u32, u32)) -> Result<()> {
        self.entry(path, DEVICE, number, &[])
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()
    }

    /// A header of thirteen hexadecimal fields, the name and the content, each filled up to a multiple of four.
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let path = path.trim_start_matches('/');
        self.inode += 1;
        let length = u32::try_from(content.len()).map_err(std::io::Error::other)?;
        let name = u32::try_from(path.len() + 1).map_err(std::io::Error::other)?;
        let fields = [
            self.inode, mode, 0, 0, 1, 0, length, 0, 0, device.0, device.1, name, 0,
        ];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08x}").as_bytes())?;
        }
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.fill()?;
        self.put(content)?;
        self.fill()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    fn fill(&mut self) -> Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_whole_words() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.folder("/etc").expect("a vector takes it");
        archive
            .file("etc/a", 0o644, b"hello")
            .expect("a vector takes it");
        archive.finish().expect("a vector takes it");
        let text = String::from_utf8(bytes).expect("ASCII");
        let places: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(places.len(), 3);
        assert!(places.iter().all(|at| at % 4 == 0), "{places:?}");
        let header = &text[places[1]..];
        assert_eq!(&header[14..22], "000081a4", "mode");
        assert_eq!(&header[54..62], "00000005", "length");
        assert!(header[110..].starts_with("etc/a\0hello"), "{header}");
    }
}
