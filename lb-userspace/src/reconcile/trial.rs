//! The trial of `run --try`, kept in a file while an agent is on trial: one that does not end well hands its term on to
//! the next, so that an agent that crashes again and again gives the host back when the first term is over.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::Engine;
use crate::{dataplane::Dataplane, lease::Left};

/// The file. There is one from the start of an agent on trial to its good end, whatever becomes of the trial.
#[derive(Debug)]
pub struct TrialFile {
    path: PathBuf,
    holds: Option<Left>,
}

impl TrialFile {
    /// An agent begins, with maps that were there or new ones: the end of its trial in jiffies, if it has one, and the
    /// file that tells the next agent of it.
    ///
    /// # Errors
    /// The file's.
    pub fn begin<D: Dataplane>(
        path: &Path,
        engine: &Engine<D>,
        adopted: bool,
        now: u64,
        term: Option<Duration>,
    ) -> io::Result<(Self, Option<u64>)> {
        let mut file = Self::open(path);
        let left = file.holds.filter(|_| adopted);
        let end = engine.trial(now, term, left);
        match term {
            Some(_) => file.write(end.map_or(Left::WentWell, Left::Ends))?,
            None => file.remove()?,
        }
        Ok((file, end))
    }

    /// What cannot be read is logged and taken as none.
    fn open(path: &Path) -> Self {
        let holds = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            text => text
                .and_then(|text| Ok(serde_json::from_str(&text)?))
                .inspect_err(|error| {
                    tracing::warn!(path = %path.display(), %error, "a trial is lost");
                })
                .ok(),
        };
        Self {
            path: path.to_owned(),
            holds,
        }
    }

    fn write(&mut self, left: Left) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.path, serde_json::to_string(&left)?)?;
        self.holds = Some(left);
        Ok(())
    }

    /// The trial went well, if there is one.
    ///
    /// # Errors
    /// The file's.
    pub fn passed(&mut self) -> io::Result<()> {
        match self.holds {
            Some(Left::Ends(_)) => self.write(Left::WentWell),
            _ => Ok(()),
        }
    }

    /// The agent ends well: the next one's trial is its own.
    ///
    /// # Errors
    /// The file's.
    pub fn remove(&mut self) -> io::Result<()> {
        match self.holds.take() {
            Some(_) => fs::remove_file(&self.path),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_end_well_is_left() {
        let folder = std::env::temp_dir().join(format!("millrace-trial-{}", std::process::id()));
        let path = folder.join("deeper/trial.json");
        let mut file = TrialFile::open(&path);
        assert_eq!(file.holds, None);
        // Without a trial there is no file.
        file.passed().unwrap();
        file.remove().unwrap();
        assert!(!path.exists());
        file.write(Left::Ends(7)).unwrap();
        let mut next = TrialFile::open(&path);
        assert_eq!(next.holds, Some(Left::Ends(7)));
        next.passed().unwrap();
        assert_eq!(TrialFile::open(&path).holds, Some(Left::WentWell));
        next.remove().unwrap();
        assert_eq!(TrialFile::open(&path).holds, None);
        fs::write(&path, "{").unwrap();
        assert_eq!(TrialFile::open(&path).holds, None);
        fs::remove_dir_all(folder).unwrap();
    }
}
