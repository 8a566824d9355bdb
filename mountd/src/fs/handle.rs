//! Open files and directories.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use p2pfs::id::HandleId;
use p2pfs::limits::HANDLES_MAX;
use p2pfs::wire::call::Access;
use p2pfs::wire::errno::Errno;

use super::dir::Listing;
use super::errors::{At, Marks};
use super::inode::Inode;
use crate::cache::readahead::ReadAhead;
use crate::lock::lock;

/// An open file or directory.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) id: HandleId,
    pub(crate) inode: Arc<Inode>,
    /// Whether it may write: who only reads is not told at close what others wrote.
    writes: bool,
    told: Mutex<Marks>,
    pub(crate) ahead: Mutex<ReadAhead>,
    /// Held while a directory is being opened.
    pub(crate) listing: Arc<tokio::sync::Mutex<Listing>>,
}

impl Handle {
    pub(crate) fn new(id: HandleId, inode: Arc<Inode>, access: Access) -> Self {
        Self {
            id,
            writes: access != Access::Read,
            told: Mutex::new(inode.error_marks()),
            inode,
            ahead: Mutex::default(),
            listing: Arc::default(),
        }
    }

    /// An error of what was accepted that this open file was not told of yet.
    pub(crate) fn tell_error(&self, at: At) -> Result<(), Errno> {
        if at == At::Close && !self.writes {
            return Ok(());
        }
        self.inode.tell_error(&mut lock(&self.told), at)
    }

    /// Waits until the host knows of a directory that was opened before it answered.
    pub(crate) async fn is_open(&self) {
        drop(self.listing.lock().await);
    }
}

/// The open files of a mount.
#[derive(Debug, Default)]
pub(crate) struct HandleTable {
    numbers: AtomicU64,
    open: Mutex<HashMap<HandleId, Arc<Handle>>>,
}

impl HandleTable {
    /// A number that no open of this session has had.
    pub(crate) fn number(&self) -> Result<HandleId, Errno> {
        if lock(&self.open).len() >= HANDLES_MAX {
            return Err(Errno::EMFILE);
        }
        Ok(HandleId(self.numbers.fetch_add(1, Ordering::Relaxed) + 1))
    }

    pub(crate) fn insert(&self, handle: Handle) -> Arc<Handle> {
        let handle = Arc::new(handle);
        lock(&self.open).insert(handle.id, Arc::clone(&handle));
        handle
    }

    pub(crate) fn get(&self, id: HandleId) -> Result<Arc<Handle>, Errno> {
        lock(&self.open).get(&id).cloned().ok_or(Errno::EBADF)
    }

    pub(crate) fn remove(&self, id: HandleId) -> Option<Arc<Handle>> {
        lock(&self.open).remove(&id)
    }
}
