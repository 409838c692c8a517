//! Randomness of the kernel's.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// A key that nobody can guess.
///
/// # Errors
/// The kernel gives no random bytes.
pub(crate) fn key() -> io::Result<[u64; 2]> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
    }
    let key = u128::from_ne_bytes(bytes);
    Ok([(key >> 64) as u64, key as u64])
}
