//! Locks, as the kernel names them.

use fuser::{FileHandle, LockOwner, ReplyLock};
use p2pfs::id::HandleId;
use p2pfs::wire::lease::{Blocker, LockFamily, LockKind};

use crate::fs::LockedBytes;

/// The kernel's end of a file, wherever it is.
const END: u64 = i64::MAX.cast_unsigned();

pub(super) fn bytes(
    handle: FileHandle,
    owner: LockOwner,
    start: u64,
    end: u64,
    family: LockFamily,
) -> LockedBytes {
    let end = if end >= END { u64::MAX } else { end };
    LockedBytes { handle: HandleId(handle.0), owner: owner.0, start, end, family }
}

pub(super) fn tell(found: Option<(Blocker, u32)>, reply: ReplyLock) {
    let Some((Blocker { start, end, kind, .. }, pid)) = found else {
        return reply.locked(0, 0, libc::F_UNLCK, 0);
    };
    let kind = match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    };
    reply.locked(start, end.min(END), kind, pid);
}
