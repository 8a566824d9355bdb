//! File locks: by the host, for all who use the file, there and elsewhere.
//!
//! Whoever gets a lock sees what others wrote before they let it go: it revalidates the file as an
//! open does, and lets a lock go only after its own writes are applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use p2pfs::id::{HandleId, NodeId};
use p2pfs::wire::call::{Call, Reply};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::lease::{Blocker, Lock, LockFamily, LockKind};

use super::Fs;
use super::handle::Handle;
use crate::lock::lock;

/// Which bytes of an open file, for whom.
#[derive(Clone, Copy, Debug)]
pub struct LockedBytes {
    /// Through which it is locked.
    pub handle: HandleId,
    /// The kernel's name for whoever locks.
    pub owner: u64,
    /// From this byte.
    pub start: u64,
    /// To this byte, it included; `u64::MAX` is the end, wherever it is.
    pub end: u64,
    /// `fcntl` or `flock`.
    pub family: LockFamily,
}

/// Who has asked for locks: everybody else's close is none of the host's business.
#[derive(Debug, Default)]
pub(crate) struct LockBook {
    /// Owners of byte ranges, and the processes that asked for them.
    owners: Mutex<BTreeMap<(NodeId, u64), u32>>,
    handles: Mutex<BTreeSet<HandleId>>,
}

impl Fs {
    /// Locks bytes, for process `pid`. `wait`: until they can be had.
    pub async fn lock(
        self: &Arc<Self>,
        bytes: LockedBytes,
        kind: LockKind,
        pid: u32,
        wait: bool,
    ) -> Result<(), Errno> {
        let open = self.unbroken(bytes.handle)?;
        let wanted = of(&open, bytes, kind);
        lock(&self.locks.handles).insert(open.id);
        if bytes.family == LockFamily::Range {
            lock(&self.locks.owners).insert((open.inode.node, bytes.owner), pid);
        }
        tokio::select! {
            locked = self.remote.lock(wanted, wait) => locked?,
            errno = self.remote.given_up() => return Err(errno),
        }
        // who has stopped waiting does not have it
        let unlocked = Unlock { fs: self, lock: Some(wanted) };
        self.revalidate(&open).await?;
        unlocked.keep();
        Ok(())
    }

    /// Lets bytes go, after what was written is applied.
    pub async fn unlock(&self, bytes: LockedBytes) -> Result<(), Errno> {
        let open = self.handles.get(bytes.handle)?;
        let applied = self.applied(&open.inode, open.inode.last()).await;
        self.let_go(of(&open, bytes, LockKind::Shared)).await;
        applied
    }

    /// Unlocks, and waits until the host has: its answer to a later question says so. A host that
    /// is gone frees what nobody reclaims.
    async fn let_go(&self, lock: Lock) {
        self.remote.unlock(lock);
        tokio::select! {
            _ = self.remote.test_lock(lock) => {}
            _ = self.remote.given_up() => {}
        }
    }

    /// Who keeps these bytes from being locked, and which process of this machine that is.
    pub async fn blocker(
        &self,
        bytes: LockedBytes,
        kind: LockKind,
    ) -> Result<Option<(Blocker, u32)>, Errno> {
        let open = self.unbroken(bytes.handle)?;
        let found = tokio::select! {
            found = self.remote.test_lock(of(&open, bytes, kind)) => found?,
            errno = self.remote.given_up() => return Err(errno),
        };
        Ok(found.map(|blocker| {
            let owners = lock(&self.locks.owners);
            let pid = blocker.owner.and_then(|owner| owners.get(&(open.inode.node, owner)));
            (blocker, pid.copied().unwrap_or_default())
        }))
    }

    /// A process closes the file: with any descriptor go all byte ranges that it has locked.
    pub(super) async fn unlock_closed(&self, open: &Handle, owner: u64) {
        if lock(&self.locks.owners).remove(&(open.inode.node, owner)).is_none() {
            return;
        }
        let (handle, family) = (open.id, LockFamily::Range);
        let all = LockedBytes { handle, owner, start: 0, end: u64::MAX, family };
        self.let_go(of(open, all, LockKind::Shared)).await;
    }

    /// The last descriptor of a handle is closed.
    pub(super) fn close_locks(&self, handle: HandleId) {
        if lock(&self.locks.handles).remove(&handle) {
            self.remote.close_locks(handle);
        }
    }

    /// The handle, unless the host lost a lock that it counts on: it fails until it is closed.
    pub(super) fn unbroken(&self, handle: HandleId) -> Result<Arc<Handle>, Errno> {
        let open = self.handles.get(handle)?;
        if self.remote.has_lost_lock(handle) { Err(Errno::EIO) } else { Ok(open) }
    }

    /// The close-to-open check, at a lock.
    async fn revalidate(&self, open: &Handle) -> Result<(), Errno> {
        let inode = &open.inode;
        self.applied(inode, inode.last()).await?;
        let (told, asked) = (inode.told(), self.tick());
        let call = Call::GetAttr { node: inode.node, handle: Some(open.id) };
        let Reply::Attr(attr) = self.remote.call(call).await?.0 else {
            return Err(Errno::EPROTO);
        };
        self.seen(inode, attr, asked);
        let check = inode.check_open(told);
        if !check.keep_pages {
            self.kernel.pages_dropped(inode.node.ino).await;
        } else if check.drop_attributes {
            self.kernel.drop_attributes(inode.node.ino);
        }
        Ok(())
    }
}

/// Lets a lock go, unless it is kept.
struct Unlock<'a> {
    fs: &'a Fs,
    lock: Option<Lock>,
}

impl Unlock<'_> {
    fn keep(mut self) {
        self.lock = None;
    }
}

impl Drop for Unlock<'_> {
    fn drop(&mut self) {
        if let Some(lock) = self.lock {
            self.fs.remote.unlock(lock);
        }
    }
}

fn of(open: &Handle, bytes: LockedBytes, kind: LockKind) -> Lock {
    let LockedBytes { handle, owner, start, end, family } = bytes;
    Lock { node: open.inode.node, handle, owner, start, end, kind, family }
}
