//! Changes of the host that someone asked for (`doctor --fix`), and their way back. Each is written down before it is
//! done, in the run folder, which is gone after a reboot as the changes are. Undoing leaves what someone else has changed
//! since.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{AttachError, netlink, run_folder};
use crate::net::ethtool::{self, Offload};

/// A change of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Mend {
    Offload {
        interface: String,
        offload: Offload,
        on: bool,
    },
    /// A setting below `net.`, named with dots.
    Sysctl { key: String, value: String },
}

/// The command that does the same.
impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offload {
                interface,
                offload,
                on,
            } => {
                let state = if *on { "on" } else { "off" };
                write!(f, "ethtool -K {interface} {} {state}", offload.name())
            }
            Self::Sysctl { key, value } => write!(f, "sysctl -w {key}={value}"),
        }
    }
}

impl Mend {
    /// How it is now, as the change that would lead back here. None: there is no such device or setting.
    fn now(&self) -> io::Result<Option<Self>> {
        Ok(match self {
            Self::Offload {
                interface, offload, ..
            } => {
                if netlink::interface(interface)?.is_none() {
                    return Ok(None);
                }
                Some(Self::Offload {
                    interface: interface.clone(),
                    offload: *offload,
                    on: ethtool::offload(interface, *offload)?.on,
                })
            }
            Self::Sysctl { key, .. } => match fs::read_to_string(sysctl(key)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                value => Some(Self::Sysctl {
                    key: key.clone(),
                    value: value?.trim().to_owned(),
                }),
            },
        })
    }

    fn apply(&self) -> io::Result<()> {
        match self {
            Self::Offload {
                interface,
                offload,
                on,
            } => ethtool::switch(interface, *offload, *on),
            Self::Sysctl { key, value } => fs::write(sysctl(key), value),
        }
    }

    fn interface(&self) -> Option<&str> {
        match self {
            Self::Offload { interface, .. } => Some(interface),
            Self::Sysctl { .. } => None,
        }
    }
}

/// `/proc/sys/net` is that of the thread that opens it.
fn sysctl(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}

/// What was done, and what leads back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    mend: Mend,
    before: Mend,
}

/// The file of changes of one pin folder.
#[derive(Debug)]
struct Book(PathBuf);

impl Book {
    fn of(pin_root: &Path, run_root: &Path) -> Self {
        Self(run_folder(run_root, pin_root).join("changes.json"))
    }

    fn read(&self) -> Result<Vec<Done>, AttachError> {
        let text = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.map_err(self.failed())?,
        };
        serde_json::from_str(&text).map_err(|error| self.failed()(error.into()))
    }

    /// Puts a new file in the place of the old one; none where there is nothing to remember.
    fn write(&self, changes: &[Done]) -> Result<(), AttachError> {
        if changes.is_empty() {
            return match fs::remove_file(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed()(error)),
                _ => Ok(()),
            };
        }
        let new = self.0.with_extension("new");
        let write = || -> io::Result<()> {
            if let Some(folder) = self.0.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&new, serde_json::to_vec_pretty(changes)?)?;
            fs::rename(&new, &self.0)
        };
        write().map_err(self.failed())
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> AttachError {
        AttachError::system(self.0.display().to_string())
    }
}

/// Changes the host, after writing down how it was. False if it is so already.
pub fn mend(pin_root: &Path, run_root: &Path, mend: &Mend) -> Result<bool, AttachError> {
    let failed = || AttachError::system(format!("`{mend}`"));
    let gone = || failed()(io::Error::from(io::ErrorKind::NotFound));
    let before = mend.now().map_err(failed())?.ok_or_else(gone)?;
    if before == *mend {
        return Ok(false);
    }
    let book = Book::of(pin_root, run_root);
    let mut changes = book.read()?;
    changes.push(Done {
        mend: mend.clone(),
        before,
    });
    book.write(&changes)?;
    if let Err(error) = mend.apply() {
        changes.pop();
        book.write(&changes)?;
        return Err(failed()(error));
    }
    Ok(true)
}

/// What became of changes that were to be undone.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Undone {
    /// What was done again the other way, the last change first.
    pub back: Vec<Mend>,
    /// Changes that someone else has changed since, or whose device is gone: left as they are.
    pub left: Vec<Mend>,
}

/// A line each; empty where there was nothing.
impl fmt::Display for Undone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mend in &self.back {
            writeln!(f, "undone: {mend}")?;
        }
        for mend in &self.left {
            writeln!(f, "changed since by someone else, and left: {mend}")?;
        }
        Ok(())
    }
}

/// Undoes the changes, the last one first: all, or those of some interfaces.
pub fn undo(
    pin_root: &Path,
    run_root: &Path,
    interfaces: Option<&[String]>,
) -> Result<Undone, AttachError> {
    let book = Book::of(pin_root, run_root);
    let mut kept = Vec::new();
    let mut undone = Undone::default();
    let mut changes = book.read()?;
    while let Some(done) = changes.pop() {
        let wanted = interfaces.is_none_or(|names| {
            let interface = done.mend.interface();
            interface.is_some_and(|interface| names.iter().any(|name| name == interface))
        });
        if !wanted {
            kept.insert(0, done);
            continue;
        }
        let failed = || AttachError::system(format!("`{}`", done.before));
        if done.mend.now().map_err(failed())?.as_ref() == Some(&done.mend) {
            done.before.apply().map_err(failed())?;
            undone.back.push(done.before);
        } else {
            undone.left.push(done.mend);
        }
        // Written each time: what fails after this is still known.
        let left: Vec<_> = changes.iter().chain(&kept).cloned().collect();
        book.write(&left)?;
    }
    Ok(undone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_what_people_would_type() {
        let offload = Mend::Offload {
            interface: "eth0".into(),
            offload: Offload::GroHw,
            on: false,
        };
        assert_eq!(offload.to_string(), "ethtool -K eth0 rx-gro-hw off");
        let sysctl = Mend::Sysctl {
            key: "net.ipv4.ip_local_reserved_ports".into(),
            value: "61000-65535".into(),
        };
        assert_eq!(
            sysctl.to_string(),
            "sysctl -w net.ipv4.ip_local_reserved_ports=61000-65535"
        );
    }

    #[test]
    fn the_book_is_read_as_it_was_written_and_goes_when_it_is_empty() {
        let folder = std::env::temp_dir().join(format!("millrace-book-{}", std::process::id()));
        let book = Book::of(Path::new("/sys/fs/bpf/x"), &folder);
        assert_eq!(book.read().unwrap(), []);
        let mend = |on| Mend::Offload {
            interface: "eth0".into(),
            offload: Offload::Lro,
            on,
        };
        let done = Done {
            mend: mend(false),
            before: mend(true),
        };
        book.write(std::slice::from_ref(&done)).unwrap();
        assert_eq!(book.read().unwrap(), [done]);
        book.write(&[]).unwrap();
        assert!(!book.0.exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
