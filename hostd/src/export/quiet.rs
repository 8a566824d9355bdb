//! Whether anybody can be changing a file at the moment.
//!
//! A write sets the file's time when it begins, and may take long after that; a mapping is written
//! to without any time being set. A read lease (fcntl(2), `F_SETLEASE`) is given only while nobody
//! has the file open for writing, or mapped so, on this machine. It is given back at once: whoever
//! opens the file for writing in between waits for as long as that takes.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

/// fcntl(2), from asm-generic/fcntl.h: the `libc` crate does not have it.
const F_SETSIG: libc::c_int = 10;

/// Held while there is a lease of ours.
static LEASE: Mutex<()> = Mutex::new(());

/// Asks the file system of this kernel; no, if it cannot tell. `file` is open for reading only.
pub(super) fn nobody_writes(file: BorrowedFd<'_>) -> bool {
    let _held = LEASE.lock().unwrap_or_else(PoisonError::into_inner);
    // how the kernel tells whose lease is in the way: by default that ends the process
    let unheard = set(file, F_SETSIG, libc::SIGURG);
    if !unheard || !set(file, libc::F_SETLEASE, libc::F_RDLCK) {
        return false;
    }
    set(file, libc::F_SETLEASE, libc::F_UNLCK)
}

/// Waits until the lease that was in somebody's way is given back.
pub(super) fn wait() {
    drop(LEASE.lock().unwrap_or_else(PoisonError::into_inner));
}

#[expect(unsafe_code, reason = "rustix has no leases")]
fn set(file: BorrowedFd<'_>, command: libc::c_int, value: libc::c_int) -> bool {
    // SAFETY: these commands take a number, and touch no memory of ours.
    unsafe { libc::fcntl(file.as_raw_fd(), command, value) != -1 }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn whoever_has_a_file_open_for_writing_may_be_changing_it() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "hello").unwrap();
        let file = fs::File::open(&path).unwrap();
        assert!(nobody_writes(file.as_fd()));
        let writer = OpenOptions::new().append(true).open(&path).unwrap();
        assert!(!nobody_writes(file.as_fd()));
        drop(writer);
        assert!(nobody_writes(file.as_fd()));
    }
}
