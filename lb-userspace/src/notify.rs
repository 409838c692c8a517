//! Telling the service manager how far we are: `sd_notify(3)`'s protocol, a datagram of `NAME=value` lines to the unix
//! socket that `NOTIFY_SOCKET` names. Small enough to need no crate.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// How far the agent is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The maps hold the config, and every interface that is there has the program.
    Ready,
    /// On its way out; what is attached stays.
    Stopping,
}

impl Phase {
    const fn message(self) -> &'static str {
        match self {
            Self::Ready => "READY=1\nSTATUS=serving",
            Self::Stopping => "STOPPING=1\nSTATUS=ending; what is attached goes on forwarding",
        }
    }
}

/// Whoever started us and wants to know; nobody, if `NOTIFY_SOCKET` is not set.
#[derive(Clone, Debug)]
pub struct Manager(Option<SocketAddr>);

impl Manager {
    /// # Errors
    /// `NOTIFY_SOCKET` is set to what is no unix socket's address.
    pub fn from_environment() -> io::Result<Self> {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        Ok(Self(name.map(|name| address(&name)).transpose()?))
    }

    /// # Errors
    /// The manager does not listen.
    pub fn tell(&self, phase: Phase) -> io::Result<()> {
        let Some(address) = &self.0 else {
            return Ok(());
        };
        let message = phase.message().as_bytes();
        UnixDatagram::unbound()?.send_to_addr(message, address)?;
        Ok(())
    }
}

/// A path, or `@` and an abstract name.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let name = format!("millrace-notify-{}", std::process::id());
        let path = env::temp_dir().join(&name);
        for name in [format!("@{name}"), path.display().to_string()] {
            let address = address(name.as_ref()).unwrap();
            let manager = UnixDatagram::bind_addr(&address).unwrap();
            Manager(Some(address)).tell(Phase::Ready).unwrap();
            let mut buffer = [0; 64];
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\nSTATUS=serving");
        }
        std::fs::remove_file(&path).unwrap();
        let gone = Manager(Some(address(path.as_os_str()).unwrap()));
        assert!(gone.tell(Phase::Stopping).is_err());
        assert!(Manager(None).tell(Phase::Ready).is_ok());
    }
}
