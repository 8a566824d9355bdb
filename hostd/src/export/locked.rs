//! A lock on a file of this machine, as its processes see it: by an open file of its own, so that
//! no other lock of this process touches it.

use std::os::fd::{AsRawFd, BorrowedFd};

use p2pfs::wire::lease::{Blocker, Lock, LockFamily, LockKind};
use rustix::fs::FlockOperation;
use rustix::io;

/// Locks; `EAGAIN` if somebody else has it.
pub(super) fn take(file: BorrowedFd<'_>, lock: &Lock) -> io::Result<()> {
    match lock.family {
        LockFamily::Range => range(file, libc::F_OFD_SETLK, lock, kind_of(lock.kind)).map(drop),
        LockFamily::Whole => rustix::fs::flock(
            file,
            match lock.kind {
                LockKind::Shared => FlockOperation::NonBlockingLockShared,
                LockKind::Exclusive => FlockOperation::NonBlockingLockExclusive,
            },
        ),
    }
}

/// Unlocks.
pub(super) fn free(file: BorrowedFd<'_>, lock: &Lock) -> io::Result<()> {
    match lock.family {
        LockFamily::Range => range(file, libc::F_OFD_SETLK, lock, libc::F_UNLCK).map(drop),
        LockFamily::Whole => rustix::fs::flock(file, FlockOperation::Unlock),
    }
}

/// Which lock of a process of this machine is in the way. The kernel has no such question for
/// `flock`.
pub(super) fn blocker(file: BorrowedFd<'_>, lock: &Lock) -> io::Result<Option<Blocker>> {
    if lock.family == LockFamily::Whole {
        return Ok(None);
    }
    let found = range(file, libc::F_OFD_GETLK, lock, kind_of(lock.kind))?;
    let kind = match i32::from(found.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => LockKind::Shared,
        _ => LockKind::Exclusive,
    };
    let start = u64::try_from(found.l_start).unwrap_or_default();
    let end = match u64::try_from(found.l_len) {
        Ok(0) | Err(_) => u64::MAX,
        Ok(len) => start.saturating_add(len - 1),
    };
    Ok(Some(Blocker { start, end, kind, owner: None }))
}

fn kind_of(kind: LockKind) -> libc::c_int {
    match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    }
}

/// `fcntl` with the lock of an open file.
#[expect(unsafe_code, reason = "rustix has no locks of open files")]
fn range(
    file: BorrowedFd<'_>,
    command: libc::c_int,
    lock: &Lock,
    kind: libc::c_int,
) -> io::Result<libc::flock> {
    let start = i64::try_from(lock.start).map_err(|_| io::Errno::INVAL)?;
    // To the end, wherever it is: as far as the kernel counts
    let len = match i64::try_from(lock.end) {
        Ok(end) if end < i64::MAX => (end - start).checked_add(1).ok_or(io::Errno::INVAL)?,
        _ => 0,
    };
    let kind = libc::c_short::try_from(kind).map_err(|_| io::Errno::INVAL)?;
    let mut flock = libc::flock {
        l_type: kind,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: these commands take a `struct flock`, and read and write nothing else.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut flock) };
    if result == -1 {
        let error = std::io::Error::last_os_error();
        return Err(match io::Errno::from_io_error(&error) {
            // One or the other, says POSIX
            Some(io::Errno::ACCESS) | None => io::Errno::AGAIN,
            Some(error) => error,
        });
    }
    Ok(flock)
}
