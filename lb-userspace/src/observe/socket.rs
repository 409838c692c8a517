//! The admin API's unix socket: for root alone, and never taken away from a living agent.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::net;
use tokio::net::UnixListener;

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another agent answers on {}: stop it, or give this one its own --socket", .0.display())]
    InUse(PathBuf),
    #[error("{} is there and is no socket: remove it, or give another --socket", .0.display())]
    NotASocket(PathBuf),
    #[error("socket {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The listening socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Makes the folder (0755) and the socket (0600). A socket nobody answers on, left by an agent that was killed, is
    /// replaced. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// Another agent answers, the path is something else, or the file system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let fail = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(fail)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::InUse(path.to_owned())),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(fail)?;
                }
                Err(error) => return Err(fail(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        Ok(Self {
            listener: listen(path).map_err(fail)?,
            path: path.to_owned(),
        })
    }
}

/// The file takes its mode from the socket's inode, so it is never open to others, not even for a moment.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = net::socket_with(
        net::AddressFamily::UNIX,
        net::SocketType::STREAM,
        net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    net::bind(&socket, &net::SocketAddrUnix::new(path)?)?;
    net::listen(&socket, 64)?;
    UnixListener::from_std(socket.into())
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, path = %self.path.display(), "socket stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("millrace-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let folder = folder("socket");
        let path = folder.join("deeper/millrace.sock");
        let first = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));

        // What kill -9 leaves: the file without a listener.
        let kept = folder.join("deeper/kept");
        fs::hard_link(&path, &kept).unwrap();
        drop(first);
        fs::rename(&kept, &path).unwrap();
        let second = Socket::bind(&path).unwrap();

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        drop(second);
        assert!(!path.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_file_at_the_path_stays() {
        let folder = folder("file");
        let path = folder.join("millrace.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Socket::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_dir_all(folder).unwrap();
    }
}
