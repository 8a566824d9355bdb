//! Reading: from cached blocks, from fetches that are under way, from the host.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use p2pfs::id::HandleId;
use p2pfs::wire::call::{Call, Reply};
use p2pfs::wire::errno::Errno;

use super::Fs;
use super::handle::Handle;
use crate::cache::block::{BLOCK, Fetch, Piece};
use crate::lock::lock;

/// How often a read starts over because the data changed under it, before it is answered past the
/// cache.
const ATTEMPTS: usize = 8;

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
                Ok(data) if open.inode.epoch() == epoch => return Ok(data),
                // another handle's fetch may fail because that handle was closed
                Err(error) if !matches!(error, Errno::EBADF | Errno::ESTALE) => return Err(error),
                _ => {}
            }
        }
        read_past_cache(self, &open, offset, len).await
    }

    fn start(self: &Arc<Self>, open: &Arc<Handle>, fetches: Vec<Arc<Fetch>>) {
        for fetch in fetches {
            let call = self.remote.call(Call::Read {
                handle: open.id,
                offset: fetch.offset(),
                len: fetch.len(),
            });
            let cache = Arc::clone(&self.cache);
            let inode = Arc::clone(&open.inode);
            tokio::spawn(async move {
                let result = match call.await {
                    Ok((Reply::Data, data)) if data.len() <= fetch.len() as usize => Ok(data),
                    Ok(_) => Err(Errno::EPROTO),
                    Err(error) => Err(error),
                };
                cache.finish(&inode, &fetch, result);
            });
        }
    }
}

async fn read_past_cache(fs: &Fs, open: &Handle, offset: u64, len: u32) -> Result<Bytes, Errno> {
    let call = Call::Read { handle: open.id, offset, len };
    match fs.remote.call(call).await? {
        (Reply::Data, data) if data.len() <= len as usize => Ok(data),
        _ => Err(Errno::EPROTO),
    }
}

/// Joins pieces, which lie one behind the other, to the answer; it ends at the first short one.
async fn assemble(pieces: Vec<Piece>, offset: u64, len: u32) -> Result<Bytes, Errno> {
    let end = offset + u64::from(len);
    let mut parts: Vec<Bytes> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (start, stop) = (piece.start(), piece.end());
        let data = piece.data().await?;
        let from = offset.saturating_sub(start).min(data.len() as u64) as usize;
        let to = (end.min(stop) - start).min(data.len() as u64) as usize;
        parts.push(data.slice(from..to.max(from)));
        if (data.len() as u64) < end.min(stop) - start {
            break;
        }
    }
    if let [only] = parts.as_slice() {
        return Ok(only.clone());
    }
    let mut joined = BytesMut::with_capacity(len as usize);
    for part in parts {
        joined.extend_from_slice(&part);
    }
    Ok(joined.freeze())
}
