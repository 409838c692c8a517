//! Multicast MACs that an interface takes in for us: where neighbours ask for announced IPv6 VIPs.
//!
//! An address of the interface itself, not the membership of a socket: it stays when the agent dies, and goes when we take
//! it away. The kernel counts no users of such addresses, so one that was there before us is not ours to remove; which are
//! ours is remembered in the run folder.
#![expect(unsafe_code, reason = "ioctl has no safe wrapper")]

use std::{
    collections::BTreeSet,
    fs, io,
    mem::zeroed,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use lb_common::bytes::Mac;
use rustix::net::{AddressFamily, SocketType, socket};

use super::{AttachError, netlink::Interface};

/// `linux/sockios.h`
const SIOCADDMULTI: libc::Ioctl = 0x8931;
const SIOCDELMULTI: libc::Ioctl = 0x8932;

const MARK: &str = "multicast-";

/// The addresses that the interfaces of this process have because of us.
#[derive(Debug)]
pub(super) struct Multicast {
    folder: PathBuf,
    /// By interface index and name.
    joined: BTreeSet<Joined>,
}

type Joined = (u32, String, Mac);

impl Multicast {
    /// `run_folder` remembers what an agent before this one has done.
    pub(super) fn new(run_folder: &Path) -> Self {
        Self {
            folder: run_folder.to_owned(),
            joined: BTreeSet::new(),
        }
    }

    /// Has these addresses taken in, and of ours no others. All are tried; the first error counts.
    pub(super) fn follow(&mut self, wanted: &BTreeSet<Joined>) -> Result<(), AttachError> {
        let mut result = Ok(());
        for (index, name, mac) in wanted.difference(&self.joined.clone()) {
            match join(&self.folder, *index, name, *mac) {
                Ok(()) => drop(self.joined.insert((*index, name.clone(), *mac))),
                Err(error) => result = result.and(Err(error)),
            }
        }
        for (name, mac, mark) in marks(&self.folder)? {
            let still = |(_, other, one): &Joined| (other, *one) == (&name, mac);
            if !wanted.iter().any(still) {
                result = result.and(leave(&name, mac, &mark));
            }
        }
        self.joined.retain(|one| wanted.contains(one));
        result
    }
}

/// Takes our addresses off an interface.
pub(super) fn detach(run_folder: &Path, interface: &Interface) -> Result<(), AttachError> {
    for (name, mac, mark) in marks(run_folder)? {
        if name == interface.name {
            leave(&name, mac, &mark)?;
        }
    }
    Ok(())
}

/// Forgets the addresses of interfaces that are gone, and took them along.
pub(super) fn forget(run_folder: &Path) -> Result<(), AttachError> {
    for (name, mac, mark) in marks(run_folder)? {
        leave(&name, mac, &mark)?;
    }
    Ok(())
}

fn join(folder: &Path, index: u32, name: &str, mac: Mac) -> Result<(), AttachError> {
    let what = || AttachError::system(format!("multicast address {} of {name}", text(mac)));
    let mark = folder.join(format!("{MARK}{name}-{}", text(mac)));
    let table = fs::read_to_string("/proc/thread-self/net/dev_mcast").map_err(what())?;
    if mark.exists() || !is_static(&table, index, mac) {
        // The mark first: an address of ours without one would stay for ever.
        fs::write(&mark, b"").map_err(AttachError::system(mark.display().to_string()))?;
    }
    change(SIOCADDMULTI, name, mac).map_err(what())
}

fn leave(name: &str, mac: Mac, mark: &Path) -> Result<(), AttachError> {
    match change(SIOCDELMULTI, name, mac) {
        // It is gone already, or its interface is.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
        result => result.map_err(AttachError::system(format!(
            "multicast address {} of {name}",
            text(mac)
        )))?,
    }
    fs::remove_file(mark).map_err(AttachError::system(mark.display().to_string()))
}

/// All marks: interface, address, file.
fn marks(folder: &Path) -> Result<Vec<(String, Mac, PathBuf)>, AttachError> {
    let failed = || AttachError::system(folder.display().to_string());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed())?,
    };
    let mut marks = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let parts = name
            .strip_prefix(MARK)
            .and_then(|name| name.rsplit_once('-'));
        if let Some((interface, mac)) = parts
            && let Some(mac) = parse(mac)
        {
            marks.push((interface.to_owned(), mac, entry.path()));
        }
    }
    Ok(marks)
}

/// Whether `/proc/net/dev_mcast` lists the address as set by hand: index, name, users, hands, address.
fn is_static(table: &str, index: u32, mac: Mac) -> bool {
    table.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words[..], [number, _, _, hands, address]
            if number.parse() == Ok(index) && hands != "0" && parse(address) == Some(mac))
    })
}

fn change(request: libc::Ioctl, interface: &str, mac: Mac) -> io::Result<()> {
    let socket: OwnedFd = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: integers and arrays of them only.
    let mut ask: libc::ifreq = unsafe { zeroed() };
    // One less: the name ends with a zero.
    let room = ask.ifr_name.len() - 1;
    for (to, from) in ask.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: integers and arrays of them only; `AF_UNSPEC` is 0.
    let mut address: libc::sockaddr = unsafe { zeroed() };
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = from.cast_signed();
    }
    ask.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: the kernel reads the struct it is given.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut ask) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).concat()
}

fn parse(text: &str) -> Option<Mac> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_by_hand_is_told_from_what_sockets_joined() {
        let table = "\
2    eth0            1     0     333300000001
2    eth0            1     1     3333ff000010
3    eth1            1     0     3333ff000010
";
        let group = [0x33, 0x33, 0xff, 0, 0, 0x10];
        assert!(is_static(table, 2, group));
        assert!(!is_static(table, 3, group));
        assert!(!is_static(table, 2, [0x33, 0x33, 0, 0, 0, 1]));
    }

    #[test]
    fn addresses_survive_the_way_into_a_file_name() {
        let group = [0x33, 0x33, 0xff, 0, 0, 0x10];
        assert_eq!(parse(&text(group)), Some(group));
        assert_eq!(parse("3333ff00001"), None);
        assert_eq!(parse("3333ff00001g"), None);
    }
}
