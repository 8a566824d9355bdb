//! Opening and closing: one round trip brings what is wanted first, and closing costs none.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use p2pfs::id::{HandleId, NodeId, Seq};
use p2pfs::limits::DIR_PAGE_ENTRIES_MAX;
use p2pfs::net::remote::BoxFuture;
use p2pfs::wire::call::{Access, Asked, Call, DataVersion, Reply};
use p2pfs::wire::errno::Errno;
use tokio::sync::OwnedMutexGuard;

use super::dir::{self, Listing};
use super::handle::Handle;
use super::inode::Inode;
use super::{Fs, OpenMode, Opened};
use crate::cache::block::BLOCK;
use crate::lock::lock;

/// Files up to this are read along with their opening, bytes: at 10 Mbit/s as long as one round
/// trip of 50 ms.
const OPEN_READ_BYTES: u64 = 64 << 10;
/// How long closed handles wait for each other: the host is told of all in one packet.
const RELEASE_AFTER: Duration = Duration::from_millis(5);
/// How long a removal on a disk that is nearly full waits for them.
const RELEASE_MAX: Duration = Duration::from_secs(1);

impl Fs {
    /// Opens a file.
    pub async fn open(self: &Arc<Self>, ino: u64, mode: OpenMode) -> Result<Opened, Errno> {
        let inode = self.inodes.get(ino)?;
        let handle = self.handles.number()?;
        let node = inode.node;
        let first = self.read_along(&inode, mode);
        let call = match first {
            Some(len) => Asked::OpenRead { node, handle, len },
            None => Asked::Open { node, handle, access: mode.access },
        };
        let (told, asked, epoch) = (inode.told(), self.tick(), inode.epoch());
        let opening = self.opening(handle, self.remote.call(self.by_caller(call)));
        let (Reply::Attr(mut attr), data) = opening.await? else {
            return Err(Errno::EPROTO);
        };
        let whole = first.is_some() && data.len() as u64 == attr.size;
        let seen = inode.observe(&mut attr, asked);
        if seen.changed {
            self.drop_blocks(&inode);
        }
        if whole && !seen.moving {
            // not if anything else changed it since it was asked for
            self.cache.fill(&inode, epoch + u64::from(seen.changed), &data);
        }
        Ok(self.opened(handle, inode, mode, told))
    }

    /// Opens a directory; its first page comes along. The root is open soon even if the host is
    /// silent, for those who only ask what is mounted; then whoever lists it waits.
    pub async fn open_dir(self: &Arc<Self>, ino: u64) -> Result<Opened, Errno> {
        let inode = self.inodes.get(ino)?;
        let handle = self.handles.number()?;
        let entries_max = DIR_PAGE_ENTRIES_MAX as u32;
        let call = Asked::OpenDir { node: inode.node, handle, entries_max };
        let told = inode.told();
        let call = self.remote.call(self.by_caller(call));
        let call: BoxFuture<_> = {
            let fs = Arc::clone(self);
            Box::pin(async move { fs.opening(handle, call).await })
        };
        let open = self.insert_handle(handle, Arc::clone(&inode), Access::Read);
        // nobody else has it yet
        let listing = Arc::clone(&open.listing).lock_owned().await;
        let opening = Arc::clone(self).listed(open, listing, call);
        let opened = if ino == NodeId::ROOT.ino {
            self.in_time(tokio::spawn(opening)).await.unwrap_or(Ok(()))
        } else {
            opening.await
        };
        if let Err(error) = opened {
            self.handles.remove(handle);
            return Err(error);
        }
        Ok(self.checked(handle, &inode, false, told))
    }

    /// Does what opens a handle on the host. If nobody can tell whether the host has opened it, it
    /// is closed there: what it does not know costs it nothing.
    pub(super) async fn opening<T>(
        self: &Arc<Self>,
        handle: HandleId,
        work: impl Future<Output = Result<T, Errno>>,
    ) -> Result<T, Errno> {
        let is_sent = !self.remote.is_given_up();
        let opened = work.await;
        let unknown = [Errno::EINTR, Errno::ETIMEDOUT, Errno::EPROTO];
        if is_sent && opened.as_ref().is_err_and(|error| unknown.contains(error)) {
            self.unreleased.send_modify(|count| *count += 1);
            // behind a creation that may be on its way
            tokio::spawn(Arc::clone(self).tell_closed(handle, self.last()));
        }
        opened
    }

    /// Takes the first page of a directory that is being opened.
    async fn listed(
        self: Arc<Self>,
        open: Arc<Handle>,
        mut listing: OwnedMutexGuard<Listing>,
        call: BoxFuture<Result<(Reply, Bytes), Errno>>,
    ) -> Result<(), Errno> {
        let asked = self.tick();
        match call.await {
            Ok((Reply::OpenDir(attr, page), _)) if dir::check(&page, 0).is_ok() => {
                let found = self.seen(&open.inode, attr, asked);
                if found.is_settled() {
                    open.inode.note_opened(found.attr);
                }
                listing.begin(page, asked);
                Ok(())
            }
            Ok(_) => Err(listing.fail(Errno::EPROTO)),
            Err(error) => Err(listing.fail(error)),
        }
    }

    /// How much of a file is worth reading along: all of a small one of which nothing is here.
    fn read_along(&self, inode: &Inode, mode: OpenMode) -> Option<u32> {
        let size = inode.size();
        let is_small = (1..=OPEN_READ_BYTES).contains(&size);
        let wanted = mode.access == Access::Read && !mode.truncate && is_small;
        let is_here = || inode.has_pages() || self.cache.holds(inode.node, 0);
        (wanted && !is_here()).then(|| size.next_multiple_of(BLOCK) as u32)
    }

    /// What the kernel is told of an open, whose attributes have been looked at.
    fn opened(
        &self,
        handle: HandleId,
        inode: Arc<Inode>,
        mode: OpenMode,
        told: Option<DataVersion>,
    ) -> Opened {
        self.insert_handle(handle, Arc::clone(&inode), mode.access);
        self.checked(handle, &inode, mode.append, told)
    }

    fn checked(
        &self,
        handle: HandleId,
        inode: &Inode,
        append: bool,
        told: Option<DataVersion>,
    ) -> Opened {
        let check = inode.check_open(told);
        if check.drop_attributes {
            self.kernel.drop_attributes(inode.node.ino);
        }
        Opened { handle, keep_pages: check.keep_pages, direct: append }
    }

    /// Closes a handle; the host is told in its own time.
    pub fn release(self: &Arc<Self>, handle: HandleId) {
        let Some(open) = self.handles.remove(handle) else { return };
        self.close_locks(handle);
        self.unreleased.send_modify(|count| *count += 1);
        let first = {
            let mut closed = lock(&self.closed);
            closed.push(open);
            closed.len() == 1
        };
        if first {
            let fs = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(RELEASE_AFTER).await;
                let closed = std::mem::take(&mut *lock(&fs.closed));
                for open in closed {
                    tokio::spawn(Arc::clone(&fs).tell_release(open));
                }
            });
        }
    }

    async fn tell_release(self: Arc<Self>, open: Arc<Handle>) {
        let (handle, upto) = (open.id, open.inode.last());
        open.is_open().await;
        self.tell_closed(handle, upto).await;
    }

    async fn tell_closed(self: Arc<Self>, handle: HandleId, upto: Seq) {
        if let Err(error) = self.remote.call(Call::Release { handle, upto }).await {
            tracing::debug!(%handle, %error, "the host did not take a release");
        }
        self.unreleased.send_modify(|count| *count -= 1);
    }

    /// Waits, not for long, until the host knows of what is closed: the space of a file that is
    /// removed is free only then.
    pub(crate) async fn released(&self) {
        let mut count = self.unreleased.subscribe();
        let released = count.wait_for(|count| *count == 0);
        let _ = tokio::time::timeout(RELEASE_MAX, released).await;
    }
}
