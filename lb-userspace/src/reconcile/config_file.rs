//! The config file, watched.
//!
//! By looking at it five times a second: that sees writes, renames over it and exchanged symbolic links (a mounted `ConfigMap`)
//! alike, on every file system. A change counts when the file stayed the same between two looks, so that half
//! a file is hardly ever read; if it is, it is refused, and the other half makes another change.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval},
};

const LOOK: Duration = Duration::from_millis(200);

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last change of content, and of the inode.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Text of the file, or why it cannot be read.
pub type Text = Result<String, String>;

pub fn read(path: &Path) -> Text {
    fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{}: {error}: the agent keeps no capability to read what root may not; `chown root` or `chmod a+r` it",
            path.display()
        ),
        _ => format!("{}: {error}", path.display()),
    })
}

/// Sends the text whenever the file changes, and when `again` is notified. `last` is the text that is known already.
/// Ends when nobody receives any more.
pub async fn watch(path: PathBuf, mut last: String, again: &Notify, texts: mpsc::Sender<Text>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut read_as, mut seen_as) = (None, None);
    loop {
        let asked = tokio::select! {
            _ = looks.tick() => false,
            () = again.notified() => true,
            () = texts.closed() => return,
        };
        let now = stamp(&path);
        let settled = now == seen_as;
        seen_as = now;
        if !asked && (!settled || now == read_as) {
            continue;
        }
        read_as = now;
        let text = read(&path);
        // A touched file with the same text is no change; one that was asked for always is.
        if !asked && text.as_ref().is_ok_and(|text| *text == last) {
            continue;
        }
        if let Ok(text) = &text {
            last.clone_from(text);
        }
        if texts.send(text).await.is_err() {
            return;
        }
    }
}

/// None: there is no such file.
fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some(Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, sync::Arc};

    use tokio::time::timeout;

    use super::*;

    struct Watched {
        folder: PathBuf,
        again: Arc<Notify>,
        texts: mpsc::Receiver<Text>,
    }

    impl Watched {
        fn start(name: &str, text: &str) -> Self {
            let folder =
                std::env::temp_dir().join(format!("millrace-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("lb.yaml"), text).unwrap();
            let (sender, texts) = mpsc::channel(1);
            let again = Arc::new(Notify::new());
            let (path, last, notify) =
                (folder.join("lb.yaml"), text.to_owned(), Arc::clone(&again));
            tokio::spawn(async move { watch(path, last, &notify, sender).await });
            Self {
                folder,
                again,
                texts,
            }
        }

        async fn next(&mut self) -> Text {
            timeout(Duration::from_secs(10), self.texts.recv())
                .await
                .unwrap()
                .unwrap()
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.folder).unwrap();
        }
    }

    #[tokio::test]
    async fn writes_renames_and_exchanged_links_are_seen() {
        let mut file = Watched::start("watch", "one");
        let path = file.folder.join("lb.yaml");
        fs::write(&path, "two").unwrap();
        assert_eq!(file.next().await.unwrap(), "two");

        fs::write(file.folder.join("new"), "three").unwrap();
        fs::rename(file.folder.join("new"), &path).unwrap();
        assert_eq!(file.next().await.unwrap(), "three");

        for text in ["four", "five"] {
            fs::write(file.folder.join(text), text).unwrap();
            symlink(text, file.folder.join("link")).unwrap();
            fs::rename(file.folder.join("link"), &path).unwrap();
            assert_eq!(file.next().await.unwrap(), text);
        }
        fs::remove_file(&path).unwrap();
        assert!(file.next().await.unwrap_err().contains("lb.yaml"));
    }

    #[tokio::test]
    async fn the_same_text_is_told_only_when_asked_for() {
        let mut file = Watched::start("again", "one");
        let path = file.folder.join("lb.yaml");
        fs::write(&path, "one").unwrap();
        file.again.notify_one();
        assert_eq!(file.next().await.unwrap(), "one");
        fs::write(&path, "two").unwrap();
        assert_eq!(file.next().await.unwrap(), "two");
    }
}
