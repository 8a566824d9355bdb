//! Reading: from cached blocks, from fetches that are under way, from the host.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use p2pfs::id::HandleId;
use p2pfs::wire::call::{Call, Reply, Seek};
use p2pfs::wire::errno::Errno;

use super::Fs;
use super::handle::Handle;
use super::inode::Inode;
use crate::cache::block::{BLOCK, Fetch, Fetched, Piece};
use crate::lock::lock;

/// How often a read starts over because the data changed under it, before it is answered past the
/// cache.
const ATTEMPTS: usize = 8;

/// Larger copies are made away from the network's thread, bytes.
pub(crate) const COPY_BYTES: u32 = 64 << 10;

impl Fs {
    /// File data; shorter only at the end of the file. One answer never mixes versions.
    pub async fn read(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        len: u32,
    ) -> Result<Bytes, Errno> {
        let open = self.unbroken(handle)?;
        // writes that were accepted before are part of the file
        self.applied(&open.inode, open.inode.last()).await?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let ahead_max = self.cache.ahead_max();
        let ahead = lock(&open.ahead).advance(offset, u64::from(len), ahead_max);
        // what cannot be kept is not fetched before it is wanted
        let ahead = ahead.filter(|_| !open.inode.reads_loose());
        for _ in 0..ATTEMPTS {
            let epoch = open.inode.epoch();
            let blocks = offset / BLOCK..(offset + u64::from(len)).div_ceil(BLOCK);
            let (pieces, fetches) = self.cache.plan(&open.inode, epoch, blocks, true);
            self.start(&open, fetches);
            if let Some(ahead) = ahead.clone() {
                let end = ahead.end.min(open.inode.size());
                let blocks = ahead.start / BLOCK..end.div_ceil(BLOCK);
                let (_, fetches) = self.cache.plan(&open.inode, epoch, blocks, false);
                self.start(&open, fetches);
            }
            match assemble(pieces, offset, len).await {
                Ok(Some(data)) if open.inode.epoch() == epoch => return Ok(data),
                Ok(None) => break,
                // another handle's fetch may fail because that handle was closed
                Err(error) if !matches!(error, Errno::EBADF | Errno::ESTALE) => return Err(error),
                _ => {}
            }
        }
        read_past_cache(self, &open, offset, len).await
    }

    fn start(self: &Arc<Self>, open: &Arc<Handle>, fetches: Vec<Arc<Fetch>>) {
        for fetch in fetches {
            let (offset, len) = (fetch.offset(), fetch.len());
            let call = self.remote.call(Call::ReadVersion { handle: open.id, offset, len });
            let fs = Arc::clone(self);
            let inode = Arc::clone(&open.inode);
            tokio::spawn(async move {
                let answer = call.await;
                let result = fs.fetched(&inode, fetch.epoch, len, answer);
                if len > COPY_BYTES {
                    let finish = move || fs.cache.finish(&inode, &fetch, result);
                    tokio::task::spawn_blocking(finish);
                } else {
                    fs.cache.finish(&inode, &fetch, result);
                }
            });
        }
    }

    /// Looks at what a read brought that was asked in `epoch`: if somebody else has changed the
    /// file, whatever is cached of it goes.
    fn fetched(
        &self,
        inode: &Inode,
        epoch: u64,
        len: u32,
        answer: Result<(Reply, Bytes), Errno>,
    ) -> Result<Fetched, Errno> {
        let (found, data) = match answer? {
            (Reply::Version(found), data) if data.len() <= len as usize => (found, data),
            _ => return Err(Errno::EPROTO),
        };
        if inode.epoch() != epoch {
            // our own change came between, or another answer was newer
            return Ok(Fetched { data, loose: true });
        }
        let checked = inode.check_read(&found);
        if checked.changed {
            self.drop_blocks(inode);
            self.kernel.drop_attributes(inode.node.ino);
            self.kernel.drop_pages(inode.node.ino);
        }
        Ok(Fetched { data, loose: checked.loose })
    }

    /// `O_DIRECT`: what the host has now.
    pub async fn read_direct(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        len: u32,
    ) -> Result<Bytes, Errno> {
        let open = self.handles.get(handle)?;
        self.applied(&open.inode, open.inode.last()).await?;
        read_past_cache(self, &open, offset, len).await
    }

    /// `SEEK_DATA` and `SEEK_HOLE`, as the host's file system knows them.
    pub async fn seek(&self, handle: HandleId, offset: u64, what: Seek) -> Result<u64, Errno> {
        let open = self.handles.get(handle)?;
        self.applied(&open.inode, open.inode.last()).await?;
        match self.remote.call(Call::Seek { handle, offset, what }).await?.0 {
            Reply::Offset(found) => Ok(found),
            _ => Err(Errno::EPROTO),
        }
    }
}

/// One call: whatever happens on the host meanwhile, nothing cached is mixed into it.
async fn read_past_cache(fs: &Fs, open: &Handle, offset: u64, len: u32) -> Result<Bytes, Errno> {
    let epoch = open.inode.epoch();
    let answer = fs.remote.call(Call::ReadVersion { handle: open.id, offset, len }).await;
    fs.fetched(&open.inode, epoch, len, answer).map(|fetched| fetched.data)
}

/// Joins pieces, which lie one behind the other, to the answer; it ends at the first short one.
/// `None`: they may be of several versions.
async fn assemble(pieces: Vec<Piece>, offset: u64, len: u32) -> Result<Option<Bytes>, Errno> {
    let end = offset + u64::from(len);
    let single = pieces.len() == 1;
    let mut parts: Vec<Bytes> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (start, stop) = (piece.start(), piece.end());
        let Fetched { data, loose } = piece.data().await?;
        if loose && !single {
            return Ok(None);
        }
        let from = offset.saturating_sub(start).min(data.len() as u64) as usize;
        let to = (end.min(stop) - start).min(data.len() as u64) as usize;
        parts.push(data.slice(from..to.max(from)));
        if (data.len() as u64) < end.min(stop) - start {
            break;
        }
    }
    if let [only] = parts.as_slice() {
        return Ok(Some(only.clone()));
    }
    let mut joined = BytesMut::with_capacity(len as usize);
    for part in parts {
        joined.extend_from_slice(&part);
    }
    Ok(Some(joined.freeze()))
}
