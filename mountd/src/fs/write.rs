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
use super::errors::At;
use super::handle::Handle;
use super::inode::{Effect, Inode};
use crate::caller;
use crate::lock::lock;

/// `FALLOC_FL_KEEP_SIZE`
const KEEP_SIZE: u32 = 1;
/// Every mode of fallocate(2) that moves data: afterwards the length is what the host says.
const COLLAPSE_OR_INSERT: u32 = 0x08 | 0x20;

/// How far behind the end of the file a write may end without anybody's leave, bytes.
const FAR: u64 = 1 << 30;
/// File systems allow at least so long files, bytes.
const LENGTH_MIN: u64 = 1 << 31;
/// How far the longest file's end may be from a power of two, bytes.
const NEAR: u64 = 64 << 10;

/// How a write is asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct WriteMode {
    /// `O_APPEND`: the offset is a hint.
    pub append: bool,
    /// What holds when it returns.
    pub until: Until,
}

/// What holds when a write returns.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Until {
    /// The data is accepted, and will be carried out.
    #[default]
    Accepted,
    /// `O_DIRECT`: the host has it.
    Applied,
    /// `O_DSYNC`: the data is on the host's disk.
    DataStable,
    /// `O_SYNC`: so is all else of the file.
    Stable,
}

impl Fs {
    /// Accepts data, and waits for the host where that is asked for, where only the host knows the
    /// end of the file, and where the host may well refuse it.
    ///
    /// An error of data that was accepted before comes back here, once to each open file.
    pub async fn write(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        data: Bytes,
        how: WriteMode,
    ) -> Result<u32, Errno> {
        let open = self.unbroken(handle)?;
        open.tell_error(At::Write)?;
        let len = u32::try_from(data.len()).map_err(|_| Errno::EINVAL)?;
        let end = offset.saturating_add(u64::from(len));
        let doubtful = may_be_too_long(offset, end, open.inode.size()) || self.is_tight(len);
        tokio::select! {
            room = self.remote.room(data.len()) => room?,
            // told so, and so not written later either
            () = caller::wait_is_over() => return Err(Errno::EINTR),
        }
        if how.append {
            self.append(&open, offset, data).await.inspect_err(|error| self.doubt(*error))?;
        } else {
            let (submitted, touched) = self.ship_write(&open, offset, data);
            if doubtful || how.until != Until::Accepted || !self.remote.is_kept() {
                self.settle_write(&open.inode, submitted, touched, true).await?;
            } else {
                let (fs, inode) = (Arc::clone(self), Arc::clone(&open.inode));
                tokio::spawn(async move {
                    // whoever comes next is told of an error
                    let _ = fs.settle_write(&inode, submitted, touched, false).await;
                });
            }
        }
        self.privileges_go(&open.inode);
        match how.until {
            Until::Accepted | Until::Applied => {}
            Until::DataStable => self.sync(handle, true).await?,
            Until::Stable => self.sync(handle, false).await?,
        }
        Ok(len)
    }

    /// Also tells which bytes of the file are other ones afterwards.
    fn ship_write(&self, open: &Handle, offset: u64, data: Bytes) -> (Submitted, Range<u64>) {
        let inode = &open.inode;
        let (node, handle) = (inode.node.into(), Some(open.id));
        let end = offset.saturating_add(data.len() as u64);
        let before = inode.size();
        let submitted = inode.submit(Effect::Extend(end), || {
            self.submit(Mutation::Write { node, handle, offset }, data)
        });
        // a gap behind the old end becomes part of the file too
        let touched = offset.min(before)..end;
        inode.next_epoch();
        self.cache.drop_range(inode.node, touched.clone());
        (submitted, touched)
    }

    /// What changes data takes setuid and setgid away, and the kernel leaves that to the host: it
    /// must ask for the mode.
    fn privileges_go(&self, inode: &Inode) {
        if inode.is_privileged() {
            self.kernel.drop_attributes(inode.node.ino);
        }
    }

    /// Where the end is, only the host knows: other clients and its own processes append too.
    async fn append(&self, open: &Handle, hint: u64, data: Bytes) -> Result<(), Errno> {
        let inode = &open.inode;
        let (node, handle) = (inode.node.into(), Some(open.id));
        let len = data.len() as u64;
        let (expected, submitted) = inode
            .submit_append(len, |size| self.submit(Mutation::Append { node, handle, size }, data));
        inode.next_epoch();
        self.cache.drop_range(inode.node, expected..u64::MAX);
        let seq = submitted.seq;
        let outcome = submitted.wait().await;
        inode.next_epoch();
        self.cache.drop_range(inode.node, expected..u64::MAX);
        let (offset, result) = match outcome {
            Ok(Outcome::Appended { offset, attr }) => (offset, Ok(attr)),
            Ok(_) => (hint, Err(Errno::EPROTO)),
            Err(error) => (hint, Err(error)),
        };
        inode.settle(seq, result.map(Some), self.next_tick());
        if offset != hint {
            // the kernel believes the end, and perhaps the data, to be elsewhere
            inode.void_pages();
            self.kernel.drop_attributes(inode.node.ino);
            self.kernel.drop_pages(inode.node.ino);
        }
        result.map(drop)
    }

    /// `awaited`: an error is told by the caller, not by the next call.
    async fn settle_write(
        &self,
        inode: &Inode,
        submitted: Submitted,
        touched: Range<u64>,
        awaited: bool,
    ) -> Result<(), Errno> {
        let seq = submitted.seq;
        let outcome = submitted.wait().await;
        // what was fetched while the write was under way may be from before it
        inode.next_epoch();
        self.cache.drop_range(inode.node, touched);
        let error = match outcome {
            Ok(Outcome::Attr(attr)) => {
                inode.settle(seq, Ok(Some(attr)), self.next_tick());
                return Ok(());
            }
            Ok(_) => Errno::EPROTO,
            Err(error) => {
                // the first error is the one that says why; those behind it are set aside
                let _ = self.applied(inode, Seq(seq.0.saturating_sub(1))).await;
                error
            }
        };
        self.doubt(error);
        if !awaited {
            tracing::warn!(%error, "the host refused data that was accepted");
            inode.keep_error(error);
        }
        inode.void_pages();
        inode.settle(seq, Err(error), self.next_tick());
        self.kernel.drop_attributes(inode.node.ino);
        self.kernel.drop_pages(inode.node.ino);
        Err(error)
    }

    /// `close`: waits until the file's data is applied, and tells its first error if the handle may
    /// write. `owner` loses its locks of byte ranges.
    pub async fn flush(&self, handle: HandleId, owner: u64) -> Result<(), Errno> {
        let open = self.handles.get(handle)?;
        let applied = self.applied(&open.inode, open.inode.last()).await;
        self.unlock_closed(&open, owner).await;
        applied?;
        open.tell_error(At::Close)
    }

    /// `fsync` and `fdatasync`: waits until the file (or directory) is on the host's disk.
    pub async fn sync(&self, handle: HandleId, data_only: bool) -> Result<(), Errno> {
        let open = self.handles.get(handle)?;
        open.is_open().await;
        let upto = open.inode.last();
        let call = Call::Sync { handle, data_only, upto };
        let synced = self.remote.call(call).await;
        self.applied(&open.inode, upto).await?;
        self.note_undone();
        open.tell_error(At::Sync)?;
        synced.map(drop)
    }

    /// Changes were refused after programs had been told that they are done, as when a host that
    /// lost its memory carries them out again.
    fn note_undone(&self) {
        // what another thread has taken is noted before this one looks at errors
        let _one_at_a_time = lock(&self.undoing);
        for (node, error) in self.remote.undone() {
            let Ok(inode) = self.inodes.get(node.ino) else { continue };
            if inode.node == node {
                inode.keep_error(error);
                inode.void_pages();
                self.drop_blocks(&inode);
                self.kernel.drop_attributes(node.ino);
                self.kernel.drop_pages(node.ino);
            }
        }
    }

    /// Notes what is refused so late, until the file system is dropped.
    pub(super) async fn undone_for_ever(self: Arc<Self>) {
        let fs = Arc::downgrade(&self);
        let mut any = self.remote.any_undone();
        drop(self);
        while any.await {
            let Some(fs) = fs.upgrade() else { return };
            fs.note_undone();
            any = fs.remote.any_undone();
        }
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
        let changed = self.change(&open.inode, effect, mutation, Bytes::new()).await;
        self.privileges_go(&open.inode);
        changed.map(drop)
    }

    /// `copy_file_range`: on the host, no data crosses the wire. Tells how much was copied, bytes;
    /// less than `len` at the end of the source, and where the host stops before.
    pub async fn copy_range(
        self: &Arc<Self>,
        (from, source_offset): (HandleId, u64),
        (to, offset): (HandleId, u64),
        len: u64,
    ) -> Result<u64, Errno> {
        let (source, target) = (self.handles.get(from)?, self.handles.get(to)?);
        target.tell_error(At::Write)?;
        let mutation = Mutation::CopyRange {
            source: source.inode.node.into(),
            source_handle: Some(from),
            source_offset,
            node: target.inode.node.into(),
            handle: Some(to),
            offset,
            len,
        };
        let copied = self.change(&target.inode, Effect::Extend(0), mutation, Bytes::new()).await;
        self.privileges_go(&target.inode);
        match copied? {
            Outcome::Copied { len, .. } => Ok(len),
            _ => Err(Errno::EPROTO),
        }
    }
}

/// Whether a file of `size` bytes may become too long: how long files may be differs between file
/// systems, and mostly it is a power of two, or a little less.
fn may_be_too_long(offset: u64, end: u64, size: u64) -> bool {
    let crosses = end.saturating_add(NEAR).ilog2() > offset.max(1).ilog2();
    end > size.saturating_add(FAR) || end >= LENGTH_MIN && crosses
}
