//! Drains by command, kept in a file so that they outlive the agent (but not the machine: what is attached does not
//! either).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::desired::Drains;

/// The file, which is read once and written at each change.
#[derive(Debug)]
pub struct DrainFile(PathBuf);

impl DrainFile {
    /// The file's contents; none if there is no file. What cannot be read is logged and taken as none: a damaged file
    /// must not keep an agent from starting.
    pub fn open(path: &Path) -> (Self, Drains) {
        let drains = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Drains::default(),
            text => text
                .and_then(|text| Ok(serde_json::from_str(&text)?))
                .unwrap_or_else(|error| {
                    tracing::warn!(path = %path.display(), %error, "drains are lost");
                    Drains::default()
                }),
        };
        (Self(path.to_owned()), drains)
    }

    /// Puts a new file in the place of the old one.
    pub fn write(&self, drains: &Drains) -> io::Result<()> {
        if let Some(folder) = self.0.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = self.0.with_extension("new");
        fs::write(&new, serde_json::to_string(drains)?)?;
        fs::rename(new, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drains_come_back_and_a_damaged_file_is_none() {
        let folder = std::env::temp_dir().join(format!("millrace-drains-{}", std::process::id()));
        let path = folder.join("deeper/drains.json");
        let (file, mut drains) = DrainFile::open(&path);
        assert_eq!(drains, Drains::default());
        let backend = "10.0.0.1:80".parse().unwrap();
        drains.set("web", backend, true);
        file.write(&drains).unwrap();
        let (_, read) = DrainFile::open(&path);
        assert!(read.contains("web", backend));
        fs::write(&path, "{").unwrap();
        assert_eq!(DrainFile::open(&path).1, Drains::default());
        fs::remove_dir_all(folder).unwrap();
    }
}
