//! Writing: accepted into a bounded log, reported at the next chance, waited for at close.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use p2pfs::id::{HandleId, Seq};
use p2pfs::net::remote::Submitted;
use p2pfs::wire::call::Call;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Mutation, Outcome};

use super::Fs;
use super::handle::Handle;
use super::inode::{Effect, Inode};

/// `FALLOC_FL_KEEP_SIZE`
const KEEP_SIZE: u32 = 1;
/// Every mode of fallocate(2) that moves data: afterwards the length is what the host says.
const COLLAPSE_OR_INSERT: u32 = 0x08 | 0x20;

impl Fs {
    /// Accepts data; `synchronous` (`O_SYNC`, `O_DSYNC`) waits until it is on the host's disk.
    ///
    /// An error of data that was accepted before comes back here, once.
    pub async fn write(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        data: Bytes,
        synchronous: bool,
    ) -> Result<u32, Errno> {
        let open = self.unbroken(handle)?;
        open.inode.take_error()?;
        let len = u32::try_from(data.len()).map_err(|_| Errno::EINVAL)?;
        self.remote.room(data.len()).await?;
        let (submitted, touched) = self.ship_write(&open, offset, data);
        let inode = Arc::clone(&open.inode);
        let fs = Arc::clone(self);
        let settled = async move { fs.settle_write(&inode, submitted, touched).await };
        if synchronous {
            settled.await;
            self.sync(handle, true).await?;
        } else {
            tokio::spawn(settled);
        }
        Ok(len)
    }

    /// Also tells which bytes of the file are other ones afterwards.
    fn ship_write(&self, open: &Handle, offset: u64, data: Bytes) -> (Submitted, Range<u64>) {
        let inode = &open.inode;
        let (node, handle) = (inode.node.into(), Some(open.id));
        let len = data.len() as u64;
        let before = inode.size();
        let (offset, submitted) = if open.append {
            let (end, submitted) = inode.submit_append(len, |offset| {
                self.submit(Mutation::Write { node, handle, offset }, data)
            });
            if end != offset {
                // the kernel put the data elsewhere in its pages
                inode.void_pages();
                self.kernel.drop_pages(inode.node.ino);
            }
            (end, submitted)
        } else {
            let effect = Effect::Extend(offset.saturating_add(len));
            let submitted = inode
                .submit(effect, || self.submit(Mutation::Write { node, handle, offset }, data));
            (offset, submitted)
        };
        // a gap behind the old end becomes part of the file too
        let touched = offset.min(before)..offset.saturating_add(len);
        inode.next_epoch();
        self.cache.drop_range(inode.node, touched.clone());
        (submitted, touched)
    }

    async fn settle_write(&self, inode: &Inode, submitted: Submitted, touched: Range<u64>) {
        let seq = submitted.seq;
        let outcome = submitted.wait().await;
        // what was fetched while the write was under way may be from before it
        inode.next_epoch();
        self.cache.drop_range(inode.node, touched);
        match outcome {
            Ok(Outcome::Attr(attr)) => inode.settle(seq, Ok(Some(attr)), self.next_tick()),
            Ok(_) => self.write_failed(inode, seq, Errno::EPROTO),
            Err(error) => self.write_failed(inode, seq, error),
        }
    }

    fn write_failed(&self, inode: &Inode, seq: Seq, error: Errno) {
        tracing::warn!(%error, "the host refused data that was accepted");
        inode.keep_error(error);
        inode.void_pages();
        inode.settle(seq, Err(error), self.next_tick());
        self.kernel.drop_attributes(inode.node.ino);
        self.kernel.drop_pages(inode.node.ino);
    }

    /// `close`: waits until the file's data is applied, and tells its first error. `owner` loses
    /// its locks of byte ranges.
    pub async fn flush(&self, handle: HandleId, owner: u64) -> Result<(), Errno> {
        let open = self.handles.get(handle)?;
        let applied = self.applied(&open.inode, open.inode.last()).await;
        self.unlock_closed(&open, owner).await;
        applied?;
        open.inode.take_error()
    }

    /// `fsync` and `fdatasync`: waits until the file (or directory) is on the host's disk.
    pub async fn sync(&self, handle: HandleId, data_only: bool) -> Result<(), Errno> {
        let open = self.handles.get(handle)?;
        let upto = open.inode.last();
        let call = Call::Sync { handle, data_only, upto };
        let synced = self.remote.call(call).await;
        self.applied(&open.inode, upto).await?;
        open.inode.take_error()?;
        synced.map(drop)
    }

    /// `fallocate`.
    pub async fn fallocate(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        len: u64,
        mode: u32,
    ) -> Result<(), Errno> {
        let open = self.handles.get(handle)?;
        let effect = if mode & (KEEP_SIZE | COLLAPSE_OR_INSERT) == 0 {
            Effect::Extend(offset.saturating_add(len))
        } else {
            Effect::Extend(0)
        };
        let node = open.inode.node.into();
        let mutation = Mutation::Fallocate { node, handle: Some(handle), offset, len, mode };
        self.change(&open.inode, effect, mutation, Bytes::new()).await.map(drop)
    }
}
